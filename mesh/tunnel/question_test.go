package tunnel

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"weave/mesh/fdb"
	"weave/mesh/id"
	"weave/mesh/neigh"
	"weave/mesh/run"
)

func addr(s string) []byte { return netip.MustParseAddr(s).AsSlice() }

// arpRequest is who-has target, as a TAP has it.
func arpRequest(to, from fdb.MAC, sender, target string) []byte {
	b := plain(to, from, "")
	binary.BigEndian.PutUint16(b[run.VnetHdrLen+12:], 0x0806)
	b = append(b, 0, 1, 8, 0, 6, 4, 0, 1)
	b = append(append(b, from[:]...), addr(sender)...)
	return append(append(b, 0, 0, 0, 0, 0, 0), addr(target)...)
}

func arpReply(to, from fdb.MAC, asker, target string) []byte {
	b := arpRequest(to, from, target, asker)
	b[run.VnetHdrLen+21] = 2
	copy(b[run.VnetHdrLen+32:], to[:])
	return b
}

// solicitation asks for target by IPv6; sender :: makes it a probe.
func solicitation(from fdb.MAC, sender, target string) []byte {
	group := addr("ff02::1:ff00:0")
	copy(group[13:], addr(target)[13:])
	b := plain(fdb.MAC{0x33, 0x33, group[12], group[13], group[14], group[15]}, from, "")
	binary.BigEndian.PutUint16(b[run.VnetHdrLen+12:], 0x86dd)
	ip := append([]byte{0x60, 0, 0, 0, 0, 24, 58, 255}, addr(sender)...)
	ip = append(ip, group...)
	ip = append(ip, 135, 0, 0, 0, 0, 0, 0, 0)
	ip = append(ip, addr(target)...)
	pseudo := append(bytes.Clone(ip[8:]), 0, 24, 0, 58)
	binary.BigEndian.PutUint16(ip[42:], ^onesSum(pseudo))
	return append(b, ip...)
}

func TestQuestions(t *testing.T) {
	const (
		a6, b6, unknown = "fd00::a", "fd00::b", "10.32.0.77"
	)
	tests := []struct {
		name     string
		question []byte
		answer   []byte // nil: none
		passed   bool   // to the members
	}{
		{"remote", arpRequest(broadcast, macA, ipA, ipB), arpReply(macA, macB, ipA, ipB), false},
		{"remote, asked directly", arpRequest(macB, macA, ipA, ipB), arpReply(macA, macB, ipA, ipB), false},
		{"remote, asked by an unannounced one", arpRequest(broadcast, macX, unknown, ipB), arpReply(macX, macB, unknown, ipB), false},
		{"local", arpRequest(broadcast, macX, unknown, ipA), nil, false},
		{"unknown", arpRequest(broadcast, macA, ipA, unknown), nil, true},
		{"probe", arpRequest(broadcast, macX, "0.0.0.0", ipB), nil, true},
		{"gratuitous", arpRequest(broadcast, macX, unknown, unknown), nil, true},
		{"gratuitous for a remote address", arpRequest(broadcast, macX, ipB, ipB), nil, true},
		{"malformed", arpRequest(broadcast, macA, ipA, ipB)[:run.VnetHdrLen+40], nil, false},

		{"remote, IPv6", solicitation(macA, a6, b6), solicited(macA, a6, b6), false},
		{"local, IPv6", solicitation(macX, "fd00::99", a6), nil, false},
		{"unknown, IPv6", solicitation(macA, a6, "fd00::77"), nil, true},
		{"duplicate of a remote address", solicitation(macX, "::", b6), duplicate(b6), false},
		{"duplicate of a local address", solicitation(macX, "::", a6), nil, true},
		{"no duplicate", solicitation(macX, "::", "fd00::77"), nil, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			hosts := newHosts(t, 2)
			devices := join(t, key, hosts...)
			for _, h := range hosts {
				h.tunnel.SetEndpoint(key, Endpoint{ID: "a", MAC: macA, IPs: addrs(ipA, a6), Peer: hosts[0].id})
				h.tunnel.SetEndpoint(key, Endpoint{ID: "b", MAC: macB, IPs: addrs(ipB, b6), Peer: hosts[1].id})
			}
			devices[0].batches <- [][]byte{test.question}
			devices[0].settle(t)
			var want uint64
			if test.answer != nil {
				want = 1
				devices[0].wantFrames(t, test.answer)
			} else {
				devices[0].wantNothing(t)
			}
			if test.passed {
				devices[1].wantFrames(t, test.question)
			} else {
				devices[1].wantNothing(t)
			}
			if got := hosts[0].stats().Answered; got != want {
				t.Fatalf("counted %d answers, want %d", got, want)
			}
		})
	}
}

func addrs(ips ...string) (out []netip.Addr) {
	for _, ip := range ips {
		out = append(out, netip.MustParseAddr(ip))
	}
	return out
}

// solicited and duplicate are macB's answers for target; that they are right
// to the byte is tested where they are made.
func solicited(to fdb.MAC, asker, target string) []byte {
	return answer(solicitation(to, asker, target))
}

func duplicate(target string) []byte { return answer(solicitation(macX, "::", target)) }

func answer(question []byte) []byte {
	m, err := neigh.Parse(question[run.VnetHdrLen:])
	if err != nil {
		panic(err)
	}
	return m.AppendReply(make([]byte, run.VnetHdrLen), macB)
}

func TestUnknownQuestionsAreLimited(t *testing.T) {
	hosts, devices := pair(t)
	question := arpRequest(broadcast, macA, ipA, "10.32.9.9")
	ask := func(n int) {
		for range n {
			devices[0].batches <- [][]byte{question}
		}
		devices[0].settle(t)
	}
	ask(questionBurst + 50)
	if n := len(devices[1].written); n != questionBurst {
		t.Fatalf("%d questions passed, want %d", n, questionBurst)
	}
	wantDrops(t, hosts[0].stats().Out, map[string]uint64{"rate limit": 50})
	hosts[0].clock.advance(time.Second / 2)
	ask(questionRate)
	if n := len(devices[1].written); n != questionBurst+questionRate/2 {
		t.Fatalf("%d questions passed, want %d", n, questionBurst+questionRate/2)
	}
	devices[0].batches <- [][]byte{arpRequest(broadcast, macA, ipA, ipB)} // known: not limited
	devices[0].next(t)
}

func TestStaleCachesAreHealed(t *testing.T) {
	hosts, devices := pair(t)
	set := func(name string, mac fdb.MAC, at *host) {
		hosts[0].tunnel.SetEndpoint(key, Endpoint{ID: name, MAC: mac, IPs: addrs(ipC, "fd00::c"), Peer: at.id})
	}
	set("c", macC, hosts[1])
	devices[0].wantNothing(t)
	set("c", macX, hosts[1]) // other MAC
	wantAnnouncements(t, devices[0], macX)
	hosts[0].tunnel.RemoveEndpoint(key, hosts[1].id, "c")
	devices[0].wantNothing(t)
	set("d", macC, hosts[1]) // other endpoint, later
	wantAnnouncements(t, devices[0], macC)
	set("e", macX, hosts[0]) // it is here: the container tells itself
	devices[0].wantNothing(t)
	hosts[0].tunnel.RemoveEndpoint(key, hosts[0].id, "e")
	wantAnnouncements(t, devices[0], macC)
}

func wantAnnouncements(t *testing.T, d *fakeDevice, mac fdb.MAC) {
	t.Helper()
	want := map[string]bool{}
	for _, ip := range addrs(ipC, "fd00::c") {
		want[string(neigh.AppendAnnouncement(make([]byte, run.VnetHdrLen), mac, ip))] = true
	}
	for range 2 {
		got := d.next(t)
		if !want[string(got)] {
			t.Fatalf("announced %x", got)
		}
		delete(want, string(got))
	}
	d.wantNothing(t)
}

func TestEndpointsOfThisHostAreKnownByItsID(t *testing.T) {
	h := newHosts(t, 1)[0]
	device := join(t, key, h)[0]
	h.tunnel.SetEndpoint(key, Endpoint{ID: "a", MAC: macA, IPs: addrs(ipA), Peer: h.id})
	h.tunnel.Receive(id.PeerID{9}, 1, headerOf(key), plain(broadcast, macA, "not from there")[run.VnetHdrLen:])
	h.tunnel.Flush()
	device.wantNothing(t)
}
