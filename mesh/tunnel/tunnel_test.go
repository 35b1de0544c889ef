package tunnel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"weave/mesh/fdb"
	"weave/mesh/id"
	"weave/mesh/run"
	"weave/mesh/wire"
)

// pair is two hosts with containers A and B.
func pair(t testing.TB) (hosts []*host, devices []*fakeDevice) {
	hosts = newHosts(t, 2)
	devices = join(t, key, hosts...)
	announce(key, hosts[0], macA, ipA, hosts...)
	announce(key, hosts[1], macB, ipB, hosts...)
	return hosts, devices
}

func wantDrops(t *testing.T, got Traffic, want map[string]uint64) {
	t.Helper()
	if !maps.Equal(got.Drops, want) {
		t.Fatalf("drops %v, want %v", got.Drops, want)
	}
}

func TestUnicast(t *testing.T) {
	hosts, devices := pair(t)
	there, back := plain(macB, macA, "there"), plain(macA, macB, "and back")
	devices[0].batches <- [][]byte{there}
	devices[1].batches <- [][]byte{back}
	devices[0].wantFrames(t, back)
	devices[1].wantFrames(t, there)
	devices[0].settle(t)
	out, in := hosts[0].stats().Out, hosts[1].stats().In
	if n := uint64(len(there) - run.VnetHdrLen); out.Frames != 1 || out.Bytes != n || in.Frames != 1 || in.Bytes != n {
		t.Fatalf("counted %+v and %+v", out, in)
	}
}

func TestUnicastGoesToItsPeerOnly(t *testing.T) {
	hosts := newHosts(t, 3)
	devices := join(t, key, hosts...)
	announce(key, hosts[1], macB, ipB, hosts...)
	devices[0].batches <- [][]byte{plain(macB, macA, "for B")}
	devices[0].settle(t)
	devices[1].wantFrames(t, plain(macB, macA, "for B"))
	devices[2].wantNothing(t)
}

func TestBroadcastReachesEachMemberOnce(t *testing.T) {
	const n = maxTrains + 4 // more than trains
	hosts := newHosts(t, n)
	devices := join(t, key, hosts...)
	hosts[n-1].tunnel.SetMembers(key, nil)
	peers := []id.PeerID{hosts[0].id, hosts[0].id}
	for _, h := range hosts[1 : n-1] {
		peers = append(peers, h.id, h.id)
	}
	hosts[0].tunnel.SetMembers(key, peers)
	var frames [][]byte
	for i := range 3 {
		frames = append(frames, plain(broadcast, macA, fmt.Sprint("to all ", i)))
	}
	devices[0].batches <- frames
	devices[0].settle(t)
	devices[0].wantNothing(t)
	devices[n-1].wantNothing(t) // no member
	for _, d := range devices[1 : n-1] {
		d.wantFrames(t, frames...)
	}
	multicast := plain(fdb.MAC{1, 0, 0x5e, 0, 0, 0xfb}, macA, "mDNS")
	devices[0].batches <- [][]byte{multicast}
	devices[1].wantFrames(t, multicast)
}

func TestNothingIsFlooded(t *testing.T) {
	hosts, devices := pair(t)
	announce(key, hosts[0], macC, ipC, hosts...)
	devices[0].batches <- [][]byte{plain(macX, macA, "nobody"), plain(macC, macA, "my neighbour")}
	devices[0].settle(t)
	devices[1].wantNothing(t)
	wantDrops(t, hosts[0].stats().Out, map[string]uint64{"unknown destination": 1})
}

func TestUnannouncedAddressesAreLearned(t *testing.T) {
	hosts, devices := pair(t)
	hello := plain(broadcast, macX, "I am behind a bridge")
	devices[1].batches <- [][]byte{hello}
	devices[0].wantFrames(t, hello)
	answer := plain(macX, macA, "found you")
	devices[0].batches <- [][]byte{answer}
	devices[1].wantFrames(t, answer)
	if here, there := hosts[0].stats(), hosts[1].stats(); here.Learned != 1 || there.Learned != 1 {
		t.Fatalf("learned %d and %d, want 1 and 1", here.Learned, there.Learned)
	}
	hosts[0].clock.advance(fdb.MaxAge)
	devices[0].batches <- [][]byte{answer}
	devices[0].settle(t)
	devices[1].wantNothing(t)
}

func TestSpoofing(t *testing.T) {
	hosts := newHosts(t, 3)
	devices := join(t, key, hosts...)
	announce(key, hosts[0], macA, ipA, hosts...)
	announce(key, hosts[1], macB, ipB, hosts...)
	announce(key, hosts[2], macC, ipC, hosts[0], hosts[2]) // host 1 does not know
	devices[1].batches <- [][]byte{plain(macA, macC, "of another peer")}
	devices[1].settle(t)
	devices[0].wantNothing(t)
	wantDrops(t, hosts[0].stats().In, map[string]uint64{"spoofed source": 1})

	hosts[1].tunnel.RemoveEndpoint(key, hosts[0].id, macA.String())
	devices[1].batches <- [][]byte{plain(broadcast, macA, "of a container here")}
	devices[1].settle(t)
	devices[0].wantNothing(t)
	wantDrops(t, hosts[0].stats().In, map[string]uint64{"spoofed source": 2})

	devices[0].batches <- [][]byte{plain(broadcast, macB, "forged at home")}
	devices[0].settle(t)
	wantDrops(t, hosts[0].stats().Out, map[string]uint64{"spoofed source": 1})
	if out := hosts[0].stats().Out; out.Frames != 0 {
		t.Fatalf("sent %d frames", out.Frames)
	}
}

func TestSegmentsAreIsolated(t *testing.T) {
	const other = "10.33.0.0/16"
	hosts, devices := pair(t)
	elsewhere := join(t, other, hosts[1])[0]
	h := wire.FrameHeader{Segment: segmentID("10.34.0.0/16")}
	frame := plain(macB, macA, "hello")[run.VnetHdrLen:]
	hosts[1].tunnel.Receive(hosts[0].id, 1, h, frame)
	hosts[1].tunnel.Flush()
	if n := hosts[1].tunnel.Homeless(); n != 1 {
		t.Fatalf("%d homeless frames, want 1", n)
	}
	devices[0].batches <- [][]byte{plain(broadcast, macA, "all"), plain(macB, macA, "one")}
	devices[0].settle(t)
	devices[1].wantFrames(t, plain(broadcast, macA, "all"), plain(macB, macA, "one"))
	elsewhere.wantNothing(t)
}

func TestStrangersAreCounted(t *testing.T) {
	hosts, devices := pair(t)
	hosts[1].tunnel.SetMembers(key, nil)
	devices[0].batches <- [][]byte{plain(macB, macA, "early")}
	devices[1].wantFrames(t, plain(macB, macA, "early"))
	if s := hosts[1].stats(); s.Strangers != 1 || s.Members != 0 {
		t.Fatalf("%d strangers, %d members, want 1 and 0", s.Strangers, s.Members)
	}
}

func TestMalformedFramesAreDropped(t *testing.T) {
	hosts, devices := pair(t)
	bad := [][]byte{
		nil,
		make([]byte, run.VnetHdrLen-1),
		make([]byte, run.VnetHdrLen+13),
		plain(macB, broadcast, "from all"),
		plain(macB, fdb.MAC{}, "from nobody"),
		append([]byte{0, 99}, plain(macB, macA, "bad GSO type")[2:]...),
		append([]byte{1, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0}, plain(macB, macA, "bad checksum offset")[10:]...),
	}
	devices[0].batches <- bad
	devices[0].settle(t)
	wantDrops(t, hosts[0].stats().Out, map[string]uint64{"malformed": uint64(len(bad))})

	ok := plain(macB, macA, "ok")[run.VnetHdrLen:]
	h := wire.FrameHeader{Segment: segmentID(key)}
	hosts[1].tunnel.Receive(hosts[0].id, 1, h, ok[:13])
	h.Flags, h.CsumStart = wire.FlagNeedsCsum, 0xff
	hosts[1].tunnel.Receive(hosts[0].id, 2, h, ok)
	hosts[1].tunnel.Flush()
	devices[1].wantNothing(t)
	wantDrops(t, hosts[1].stats().In, map[string]uint64{"malformed": 2})
}

func TestFramesWithoutAWayAreCounted(t *testing.T) {
	hosts, devices := pair(t)
	frame := plain(macB, macA, "lost")
	hosts[0].links[hosts[1].id].set(func(l *fakeLink) { l.down = true })
	devices[0].batches <- [][]byte{frame, frame}
	devices[0].settle(t)
	wantDrops(t, hosts[0].stats().Out, map[string]uint64{"no session": 2})

	hosts[0].links[hosts[1].id].set(func(l *fakeLink) { l.down = false })
	devices[1].fail.Store(true)
	devices[0].batches <- [][]byte{frame}
	devices[0].settle(t)
	wantDrops(t, hosts[1].stats().In, map[string]uint64{"TAP write failed": 1})

	announce(key, &host{id: id.PeerID{99}}, macC, ipC, hosts...)
	devices[0].batches <- [][]byte{plain(macC, macA, "unknown peer")}
	devices[0].settle(t)
	wantDrops(t, hosts[0].stats().Out, map[string]uint64{"no session": 3})
}

func TestLifecycle(t *testing.T) {
	h := newHosts(t, 1)[0]
	seg := Segment{ID: 1, Key: key, MTU: mtu, Device: newFakeDevice()}
	for _, bad := range []int{0, MinMTU - 1, MaxMTU + 1} {
		if err := h.tunnel.AddSegment(Segment{ID: 1, Key: key, MTU: bad, Device: seg.Device}); !errors.Is(err, ErrMTU) {
			t.Fatalf("MTU %d: %v", bad, err)
		}
	}
	if err := h.tunnel.AddSegment(seg); err != nil {
		t.Fatal(err)
	}
	for _, twin := range []Segment{{ID: 1, Key: "other"}, {ID: 2, Key: key}} {
		twin.MTU, twin.Device = mtu, seg.Device
		if err := h.tunnel.AddSegment(twin); !errors.Is(err, ErrExists) {
			t.Fatalf("the same again: %v", err)
		}
	}
	for range 2 {
		if err := h.tunnel.RemoveSegment(key); err != nil {
			t.Fatal(err)
		}
	}
	h.tunnel.SetMembers(key, nil) // nothing there: nothing happens
	h.tunnel.SetEndpoint(key, Endpoint{})
	h.tunnel.RemoveEndpoint(key, h.id, "")
	if _, ok := h.tunnel.Stats(key); ok {
		t.Fatal("stats of a segment that was removed")
	}

	seg.Device = newFakeDevice()
	if err := h.tunnel.AddSegment(seg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.tunnel.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if err := h.tunnel.AddSegment(seg); !errors.Is(err, ErrClosed) {
		t.Fatalf("after the end: %v", err)
	}
}

func TestDeviceThatGoesAwayIsReported(t *testing.T) {
	hosts, devices := pair(t)
	close(devices[0].batches)
	hosts[0].tunnel.segment(key).running.Wait()
	if hosts[0].stats().Failure == "" {
		t.Fatal("no failure in the stats")
	}
}

func TestRunCrossesWhole(t *testing.T) {
	hosts, devices := pair(t)
	payload := bytes.Repeat([]byte("0123456789"), 6000)
	want := tcpRun(payload, 1346, 1000)
	devices[0].batches <- [][]byte{want}
	devices[0].settle(t)
	// Two trains of UDP_SEGMENT, of which one call each was made: what the
	// fake link flushes in between splits the run, and nothing else does.
	link := hosts[0].links[hosts[1].id]
	got := joined(t, devices[1], len(link.taken()))
	if !bytes.Equal(got, payload) {
		t.Fatal("the payload changed")
	}
	pieces := uint64((len(payload) + 1345) / 1346)
	if out, in := hosts[0].stats().Out, hosts[1].stats().In; out.Frames != pieces || in.Frames != pieces {
		t.Fatalf("counted %d and %d frames, want %d", out.Frames, in.Frames, pieces)
	}
	short := tcpRun(payload[:40_000], 1346, 1000)
	devices[0].batches <- [][]byte{short}
	devices[1].wantFrames(t, short)
}

// joined takes n frames and returns their TCP payload.
func joined(t *testing.T, d *fakeDevice, n int) (payload []byte) {
	t.Helper()
	for range n {
		payload = append(payload, d.next(t)[run.VnetHdrLen+54:]...)
	}
	d.wantNothing(t)
	return payload
}

func TestUDPRunsWhereTheDeviceTakesThem(t *testing.T) {
	for _, uso := range []bool{true, false} {
		hosts := newHosts(t, 2)
		device := newFakeDevice()
		device.noUSO = !uso
		hosts[1].attach(key, device)
		source := join(t, key, hosts[0])[0]
		announce(key, hosts[1], macB, ipB, hosts[0])
		sent := udpRun(make([]byte, 3000), 1000)
		source.batches <- [][]byte{sent}
		if uso {
			device.wantFrames(t, sent)
			continue
		}
		for range 3 {
			if m, err := run.DecodeVnet(device.next(t)); err != nil || m.GSO != run.GSONone || !m.NeedsCsum {
				t.Fatalf("piece with %+v, %v", m, err)
			}
		}
		device.wantNothing(t)
	}
}

// TestDatagramsOfOneFlowAreWrittenAtOnce: what came in one batch, and nothing
// of another flow among them.
func TestDatagramsOfOneFlowAreWrittenAtOnce(t *testing.T) {
	_, devices := pair(t)
	other := plain(macB, macA, "of another flow")
	devices[0].batches <- [][]byte{udpDatagram(1, "one"), udpDatagram(2, "two"), udpDatagram(3, "end"), other, udpDatagram(4, "new")}
	b := devices[1].next(t)
	if m, err := run.DecodeVnet(b); err != nil || m.GSO != run.GSOUDP || m.GSOSize != 3 {
		t.Fatalf("got %+v, %v", m, err)
	}
	if got := string(b[run.VnetHdrLen+42:]); got != "onetwoend" {
		t.Fatalf("payload %q", got)
	}
	devices[1].wantFrames(t, other, udpDatagram(4, "new"))
}

func TestTrainsAreEqualButTheLast(t *testing.T) {
	hosts, devices := pair(t)
	payload := make([]byte, 60_000)
	devices[0].batches <- [][]byte{
		plain(macB, macA, "small"),
		tcpRun(payload, 1346, 0),
		plain(macB, macA, "in the last piece's datagram"),
		tcpRun(payload[:30_000], 1000, 60_000),
		tcpRun(payload[:30_000], 1346, 90_000),
	}
	devices[0].settle(t)
	var datagrams int
	for _, lengths := range hosts[0].links[hosts[1].id].taken() {
		total := 0
		for i, n := range lengths {
			total += n
			if n > lengths[0] || n < lengths[0] && i < len(lengths)-1 {
				t.Fatalf("train of %v", lengths)
			}
		}
		if total > trainBytes || len(lengths) > trainDatagrams {
			t.Fatalf("train of %d datagrams, %d bytes", len(lengths), total)
		}
		datagrams += len(lengths)
	}
	if want := 1 + 45 + 30 + 23; datagrams != want {
		t.Fatalf("%d datagrams, want %d", datagrams, want)
	}
}

func TestLostPieceCostsOnePacket(t *testing.T) {
	hosts, devices := pair(t)
	hosts[0].links[hosts[1].id].set(func(l *fakeLink) { l.lose = func(counter uint64) bool { return counter == 10 } })
	payload := make([]byte, 40*1000)
	for i := range payload {
		payload[i] = byte(i / 1000)
	}
	devices[0].batches <- [][]byte{tcpRun(payload, 1000, 0)}
	devices[0].settle(t)
	want := slices.Concat(payload[:9*1000], payload[10*1000:])
	if got := joined(t, devices[1], 2); !bytes.Equal(got, want) {
		t.Fatalf("%d bytes arrived, want %d", len(got), len(want))
	}
}

func TestRunsOfOthersAreNotJoined(t *testing.T) {
	hosts := newHosts(t, 3)
	device := join(t, key, hosts[2])[0]
	var splitter run.Splitter
	frame := tcpRun(make([]byte, 3000), 1000, 0)
	meta, err := run.DecodeVnet(frame)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := splitter.Reset(frame[run.VnetHdrLen:], meta, mtu+14); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		buf := make([]byte, splitter.NextLen())
		_, h, _ := splitter.Next(buf)
		h.Segment = segmentID(key)
		hosts[2].tunnel.Receive(hosts[i%2].id, uint64(i), h, buf)
	}
	hosts[2].tunnel.Flush()
	joined(t, device, 3)
}

func TestSmallFramesShareADatagram(t *testing.T) {
	hosts, devices := pair(t)
	var frames [][]byte
	for i := range batchFrames {
		frames = append(frames, plain(macB, macA, fmt.Sprintf("acknowledgement %02d %040d", i, i)))
	}
	devices[0].batches <- frames
	devices[0].settle(t)
	devices[1].wantFrames(t, frames...)
	if sends := hosts[0].links[hosts[1].id].taken(); len(sends) != 1 || len(sends[0]) != 1 {
		t.Fatalf("sent %v, want one datagram", sends)
	}
}

func TestOrderStays(t *testing.T) {
	_, devices := pair(t)
	var want [][]byte
	for i := range 40 {
		var batch [][]byte
		for j := range batchFrames {
			batch = append(batch, plain(macB, macA, fmt.Sprintf("%d.%d %s", i, j, bytes.Repeat([]byte{'x'}, (i*j*37)%mtu))))
		}
		devices[0].batches <- batch
		want = append(want, batch...)
	}
	devices[0].settle(t)
	devices[1].wantFrames(t, want...)
}

func TestFrameAboveTheMTUGoesWhole(t *testing.T) {
	hosts, devices := pair(t)
	big := plain(macB, macA, string(make([]byte, 9000)))
	tooBig := plain(macB, macA, string(make([]byte, trainBytes)))
	devices[0].batches <- [][]byte{big, tooBig, big}
	devices[0].settle(t)
	devices[1].wantFrames(t, big, big)
	wantDrops(t, hosts[0].stats().Out, map[string]uint64{"too big": 1})
}
