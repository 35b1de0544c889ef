package tunnel

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weave/mesh/fdb"
	"weave/mesh/id"
	"weave/mesh/run"
	"weave/mesh/wire"
)

func headerOf(key string) wire.FrameHeader { return wire.FrameHeader{Segment: segmentID(key)} }

// steadyDevice gives the same frames again and again, and takes all.
type steadyDevice struct {
	frames [][]byte
	queues int
	left   bool // says that there are more
}

func (d *steadyDevice) Queues() int { return d.queues }

func (d *steadyDevice) ReadBatch(_ int, bufs [][]byte, sizes []int) (int, bool, error) {
	for i, f := range d.frames {
		sizes[i] = copy(bufs[i], f)
	}
	return len(d.frames), d.left, nil
}

func (*steadyDevice) Write([]byte) error { return nil }
func (*steadyDevice) USO() bool          { return true }
func (*steadyDevice) Close() error       { return nil }

// wireLink hands what is sent to a tunnel, as the transport does: opened in
// place, one frame after the other.
type wireLink struct {
	from id.PeerID
	to   *Tunnel

	mu      sync.Mutex // one goroutine at a time receives
	counter uint64     // guarded by mu
}

func (l *wireLink) Link(id.PeerID) Link { return l }

func (l *wireLink) Seal(buf []byte, size int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(buf) > 0 {
		l.counter++
		wire.Header{Type: wire.TypeSealed, Version: wire.Version, Counter: l.counter}.Put(buf)
		buf = buf[min(size, len(buf)):]
	}
	return nil
}

func (l *wireLink) Send(buf []byte, size int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(buf) > 0 {
		d := buf[:min(size, len(buf))]
		buf = buf[len(d):]
		h, err := wire.ParseHeader(d)
		if err != nil {
			return err
		}
		for items := d[wire.HeaderLen : len(d)-wire.TagLen]; len(items) > 0; {
			_, body, rest, err := wire.NextItem(items)
			if err != nil {
				return err
			}
			fh, frame, err := wire.ParseFrame(body)
			if err != nil {
				return err
			}
			l.to.Receive(l.from, h.Counter, fh, frame)
			items = rest
		}
	}
	l.to.Flush()
	return nil
}

// loop is the sending half of one tunnel, whose turns the test makes, with the
// receiving half of another.
func loop(t testing.TB, frames [][]byte, queues int) *segment {
	log := quiet()
	sender, receiver := id.PeerID{1}, id.PeerID{2}
	to := &host{t: t, tunnel: New(Config{Self: receiver, Log: log, Clock: time.Now})}
	to.attach(key, sinkDevice{newFakeDevice()})
	cfg := Config{Self: sender, Links: &wireLink{from: sender, to: to.tunnel}, Log: log, Clock: time.Now}
	s := newSegment(cfg, Segment{ID: segmentID(key), Key: key, MTU: mtu, Device: &steadyDevice{frames: frames, queues: queues}})
	s.setMembers([]id.PeerID{receiver})
	s.setEndpoint(fdb.Endpoint{At: fdb.At(receiver), ID: "b", MAC: macB, IPs: addrs(ipB)})
	s.setEndpoint(fdb.Endpoint{At: fdb.Here(), ID: "a", MAC: macA, IPs: addrs(ipA)})
	return s
}

// sinkDevice gives nothing and takes all.
type sinkDevice struct{ *fakeDevice }

func (sinkDevice) Write([]byte) error { return nil }

func hotFrames() map[string][][]byte {
	return map[string][][]byte{
		"run":       {tcpRun(make([]byte, 60_000), 1346, 0)},
		"small":     slices.Repeat([][]byte{plain(macB, macA, "acknowledgement")}, batchFrames),
		"broadcast": {plain(broadcast, macA, "to all")},
		"learned":   {plain(macB, macX, "from behind a bridge")},
		"datagrams": slices.Repeat([][]byte{udpDatagram(1, "one of a flow")}, batchFrames),
		"question":  {arpRequest(broadcast, macA, ipA, ipB)},
		"unknown":   {plain(macC, macA, "nobody")},
	}
}

func TestNoAllocations(t *testing.T) {
	for name, frames := range hotFrames() {
		for queues := 1; queues <= 2; queues++ {
			t.Run(fmt.Sprint(name, queues), func(t *testing.T) {
				s := loop(t, frames, queues)
				allocs := testing.AllocsPerRun(100, func() {
					if err := s.outs[queues-1].turn(); err != nil {
						t.Fatal(err)
					}
				})
				if allocs != 0 {
					t.Fatalf("%v allocations per turn", allocs)
				}
			})
		}
	}
}

// TestOneLookForMany: the frames of a batch share what was found out about one of
// them, but only with their like, and not with the next batch.
func TestOneLookForMany(t *testing.T) {
	hosts, devices := pair(t)
	announce(key, hosts[1], macC, ipC, hosts...)
	one, two, three := plain(macB, macA, "one"), plain(macB, macA, "two"), plain(macC, macA, "three")
	devices[0].batches <- [][]byte{one, plain(macB, macC, "forged"), two, plain(macX, macA, "unknown"), three}
	devices[0].batches <- [][]byte{plain(fdb.MAC{}, macA, "nobody"), three}
	devices[0].settle(t)
	devices[1].wantFrames(t, one, two, three, three)
	wantDrops(t, hosts[0].stats().Out, map[string]uint64{"spoofed source": 1, "unknown destination": 2})

	announce(key, hosts[1], macA, ipA, hosts[0])
	hosts[0].tunnel.RemoveEndpoint(key, hosts[0].id, macA.String())
	devices[0].batches <- [][]byte{three}
	devices[0].settle(t)
	wantDrops(t, hosts[0].stats().Out, map[string]uint64{"spoofed source": 2, "unknown destination": 2})

	receive := func(from id.PeerID, text string) {
		hosts[1].tunnel.Receive(from, 1, headerOf(key), plain(macB, macA, text)[run.VnetHdrLen:])
	}
	receive(hosts[0].id, "from where it is")
	receive(id.PeerID{9}, "from elsewhere")
	hosts[1].tunnel.Flush()
	hosts[1].tunnel.SetEndpoint(key, Endpoint{ID: "moved", MAC: macA, IPs: addrs(ipA), Peer: id.PeerID{9}})
	hosts[1].tunnel.RemoveEndpoint(key, hosts[0].id, macA.String())
	receive(hosts[0].id, "from where it was")
	hosts[1].tunnel.Flush()
	devices[1].wantFrames(t, plain(macB, macA, "from where it is"))
	wantDrops(t, hosts[1].stats().In, map[string]uint64{"spoofed source": 2})
}

// One turn, there and back up to the TAP, without the seal and the kernel.
func BenchmarkTurn(b *testing.B) {
	for _, name := range []string{"run", "small"} {
		b.Run(name, func(b *testing.B) {
			frames := hotFrames()[name]
			s := loop(b, frames, 1)
			b.SetBytes(int64(len(frames) * len(frames[0])))
			b.ReportAllocs()
			for b.Loop() {
				if err := s.outs[0].turn(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// recorder is a link that checks trains and keeps the frames that went by.
type recorder struct {
	fail   error
	frames []string
}

func (r *recorder) Seal(buf []byte, size int) error {
	for len(buf) > 0 {
		d := buf[:min(size, len(buf))]
		buf = buf[len(d):]
		d[0] = byte(wire.TypeSealed)
		copy(d[len(d)-wire.TagLen:], tag)
	}
	return nil
}

func (r *recorder) Send(buf []byte, size int) error {
	if len(buf) > trainBytes || len(buf) > size*trainDatagrams {
		r.fail = fmt.Errorf("train of %d bytes in datagrams of %d", len(buf), size)
	}
	for len(buf) > 0 {
		d := buf[:min(size, len(buf))]
		buf = buf[len(d):]
		if d[0] != byte(wire.TypeSealed) || string(d[len(d)-wire.TagLen:]) != tag {
			return errors.New("not sealed whole")
		}
		for items := d[wire.HeaderLen : len(d)-wire.TagLen]; len(items) > 0; {
			_, body, rest, err := wire.NextItem(items)
			if err != nil {
				return err
			}
			_, frame, err := wire.ParseFrame(body)
			if err != nil {
				return err
			}
			r.frames = append(r.frames, string(frame))
			items = rest
		}
	}
	return nil
}

// Whatever sizes come, every frame leaves once and in order, in trains that
// UDP_SEGMENT takes.
func TestTrainKeepsFrames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r, count := new(recorder), new(counters)
		train := newTrain(rapid.IntRange(100, 2000).Draw(t, "packed"), rapid.Bool().Draw(t, "shared"), count)
		train.link = r
		size := rapid.OneOf(rapid.IntRange(14, 100), rapid.IntRange(1300, 1500), rapid.IntRange(14, trainBytes-wire.Overhead))
		var want []string
		for range rapid.IntRange(0, 150).Draw(t, "frames") {
			n := size.Draw(t, "size")
			frame := bytes.Repeat([]byte{byte(len(want))}, n)
			copy(train.room(n, rapid.Bool().Draw(t, "alone")), frame)
			train.add(wire.FrameHeader{}, n)
			want = append(want, string(frame))
		}
		train.send()
		if r.fail != nil {
			t.Fatal(r.fail)
		}
		if !slices.Equal(r.frames, want) || count.frames.Load() != uint64(len(want)) || count.drops[dropSend].Load() != 0 {
			t.Fatalf("%d of %d frames left, %d counted", len(r.frames), len(want), count.frames.Load())
		}
	})
}

// Control calls, both directions, and the end, all at once.
func TestConcurrentUse(t *testing.T) {
	hosts, devices := pair(t)
	var stop atomic.Bool
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		for i := 0; !stop.Load(); i++ {
			announce(key, hosts[i%2], macC, ipC, hosts[0])
			hosts[0].tunnel.SetMembers(key, []id.PeerID{hosts[1].id})
			hosts[0].tunnel.Stats(key)
			_ = join1(hosts[1], fmt.Sprint("other ", i%3))
		}
	}()
	frame := plain(macB, macA, "through it all")
	for range 200 {
		devices[0].batches <- [][]byte{frame, tcpRun(make([]byte, 5000), 1000, 0), plain(broadcast, macX, "all")}
		for range 3 {
			devices[1].next(t)
		}
	}
	stop.Store(true)
	<-finished
}

// join1 puts a host on a segment and takes it off again.
func join1(h *host, key string) error {
	if err := h.tunnel.AddSegment(Segment{ID: segmentID(key[len(key)-1:]), Key: key, MTU: mtu, Device: newFakeDevice()}); err != nil {
		return err
	}
	return h.tunnel.RemoveSegment(key)
}

func FuzzReceive(f *testing.F) {
	frame := tcpRun(make([]byte, 500), 1000, 0)[run.VnetHdrLen:]
	f.Add(uint64(1), byte(wire.FlagNeedsCsum|wire.FlagTCP|wire.FlagMore), byte(54), byte(34), byte(16), frame)
	f.Add(uint64(2), byte(0), byte(0), byte(0), byte(0), []byte("short"))
	h, device := newHosts(f, 1)[0], newFakeDevice()
	h.attach(key, device) // once: its buffers take longer than a frame
	f.Fuzz(func(t *testing.T, counter uint64, flags, hdrLen, start, offset byte, frame []byte) {
		h.t = t
		counted := func(s Stats) uint64 { return s.In.Frames + s.In.Drops["malformed"] + s.In.Drops["spoofed source"] }
		before := counted(h.stats())
		header := wire.FrameHeader{Segment: segmentID(key), Flags: wire.FrameFlags(flags), Offsets: wire.Offsets{HdrLen: hdrLen, CsumStart: start, CsumOffset: offset}}
		for i := range uint64(3) {
			h.tunnel.Receive(id.PeerID{2}, counter+i, header, frame)
			header.Flags |= wire.FlagContinues
		}
		h.tunnel.Flush()
		if s := h.stats(); counted(s)-before != 3 {
			t.Fatalf("3 frames came, counted %d: %+v", counted(s)-before, s.In)
		}
		for len(device.written) > 0 {
			b := <-device.written
			if m, err := run.DecodeVnet(b); err != nil || len(b) > run.VnetHdrLen+3*len(frame) || int(m.CsumStart)+int(m.CsumOffset) > len(b) {
				t.Fatalf("wrote %d bytes with %+v, %v", len(b), m, err)
			}
		}
	})
}
