package neigh

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"weave/mesh/fdb"
)

var (
	owner = fdb.MAC{0x02, 0, 0, 0, 0, 0x0b}
	ip4   = netip.MustParseAddr("10.32.0.2")
	ip6   = netip.MustParseAddr("fd00::2")
)

// unhex reads hex digits with spaces and line ends between them.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Frames as a Linux host sends them.
const (
	arpRequestHex = `
		ff ff ff ff ff ff  02 00 00 00 00 0a  08 06
		00 01 08 00 06 04 00 01  02 00 00 00 00 0a  0a 20 00 01
		00 00 00 00 00 00  0a 20 00 02`
	arpReplyHex = `
		02 00 00 00 00 0a  02 00 00 00 00 0b  08 06
		00 01 08 00 06 04 00 02  02 00 00 00 00 0b  0a 20 00 02
		02 00 00 00 00 0a  0a 20 00 01`
	gratuitousHex = `
		ff ff ff ff ff ff  02 00 00 00 00 0b  08 06
		00 01 08 00 06 04 00 01  02 00 00 00 00 0b  0a 20 00 02
		00 00 00 00 00 00  0a 20 00 02`
	// fd00::1 asks ff02::1:ff00:2 for fd00::2, with its link-layer address.
	solicitationHex = `
		33 33 ff 00 00 02  02 00 00 00 00 0a  86 dd
		60 00 00 00 00 20 3a ff
		fd 00 00 00 00 00 00 00 00 00 00 00 00 00 00 01
		ff 02 00 00 00 00 00 00 00 00 00 01 ff 00 00 02
		87 00 7d 8e 00 00 00 00
		fd 00 00 00 00 00 00 00 00 00 00 00 00 00 00 02
		01 01 02 00 00 00 00 0a`
	advertHex = `
		02 00 00 00 00 0a  02 00 00 00 00 0b  86 dd
		60 00 00 00 00 20 3a ff
		fd 00 00 00 00 00 00 00 00 00 00 00 00 00 00 02
		fd 00 00 00 00 00 00 00 00 00 00 00 00 00 00 01
		88 00 1c 91 60 00 00 00
		fd 00 00 00 00 00 00 00 00 00 00 00 00 00 00 02
		02 01 02 00 00 00 00 0b`
)

// solicitation returns a valid one, changed by edit, its checksum put right.
func solicitation(t testing.TB, edit func(frame []byte)) []byte {
	t.Helper()
	frame := unhex(t, solicitationHex)
	edit(frame)
	ip := frame[ethernetLen:]
	binary.BigEndian.PutUint16(ip[ipv6Len+2:], 0)
	binary.BigEndian.PutUint16(ip[ipv6Len+2:], checksum(ip))
	return frame
}

// probe6 is duplicate address detection for fd00::2.
func probe6(t testing.TB) []byte {
	frame := unhex(t, solicitationHex)[:ethernetLen+ipv6Len+neighborLen]
	ip := frame[ethernetLen:]
	ip[5] = neighborLen
	clear(ip[8:24])
	binary.BigEndian.PutUint16(ip[ipv6Len+2:], 0)
	binary.BigEndian.PutUint16(ip[ipv6Len+2:], checksum(ip))
	return frame
}

func TestGoldenReplies(t *testing.T) {
	for _, test := range []struct{ name, question, answer string }{
		{"ARP", arpRequestHex, arpReplyHex},
		{"NS", solicitationHex, advertHex},
	} {
		t.Run(test.name, func(t *testing.T) {
			m, err := Parse(unhex(t, test.question))
			if err != nil || m.Op != Request {
				t.Fatalf("Parse = %+v, %v", m, err)
			}
			got := m.AppendReply(nil, owner)
			if want := unhex(t, test.answer); string(got) != string(want) {
				t.Fatalf("reply\n%x, want\n%x", got, want)
			}
		})
	}
}

func TestAnnouncements(t *testing.T) {
	if got, want := AppendAnnouncement(nil, owner, ip4), unhex(t, gratuitousHex); string(got) != string(want) {
		t.Fatalf("gratuitous ARP\n%x, want\n%x", got, want)
	}
	wantAdvertToAll(t, AppendAnnouncement(nil, owner, ip6))
}

func wantAdvertToAll(t *testing.T, frame []byte) {
	t.Helper()
	if len(frame) != MaxFrame {
		t.Fatalf("%d bytes, want %d", len(frame), MaxFrame)
	}
	ip := frame[ethernetLen:]
	to, target := netip.AddrFrom16([16]byte(ip[24:])), netip.AddrFrom16([16]byte(ip[ipv6Len+8:]))
	flags := ip[ipv6Len+4]
	if fdb.MAC(frame) != allNodesMAC() || source(frame) != owner || to.String() != "ff02::1" || target != ip6 {
		t.Fatalf("wrong addresses in %x", frame)
	}
	if flags != flagOverride || ip[7] != hopLimit || checksum(ip) != 0 {
		t.Fatalf("wrong flags, hop limit or checksum in %x", frame)
	}
}

func TestProbes(t *testing.T) {
	arpProbe := unhex(t, arpRequestHex)
	clear(arpProbe[28:32])
	m, err := Parse(arpProbe)
	if err != nil || m.Op != Probe || m.Target != ip4 {
		t.Fatalf("ARP probe = %+v, %v", m, err)
	}
	m, err = Parse(probe6(t))
	if err != nil || m.Op != Probe || m.Target != ip6 {
		t.Fatalf("DAD = %+v, %v", m, err)
	}
	wantAdvertToAll(t, m.AppendReply(nil, owner))
}

func TestParse(t *testing.T) {
	tests := []struct {
		name  string
		frame []byte
		op    Op
		err   error
	}{
		{"empty", nil, None, nil},
		{"short header", make([]byte, 13), None, nil},
		{"other type", make([]byte, 64), None, nil},
		{"ARP reply", unhex(t, arpReplyHex), None, nil},
		{"gratuitous ARP", unhex(t, gratuitousHex), None, nil},
		{"ARP with padding", append(unhex(t, arpRequestHex), make([]byte, 18)...), Request, nil},
		{"ARP cut", unhex(t, arpRequestHex)[:41], None, ErrMalformed},
		{"ARP of other hardware", edited(unhex(t, arpRequestHex), 15, 6), None, ErrMalformed},
		{"ARP with long addresses", edited(unhex(t, arpRequestHex), 18, 16), None, ErrMalformed},
		{"NA", unhex(t, advertHex), None, nil},
		{"NS with padding", append(unhex(t, solicitationHex), 1, 2, 3), Request, nil},
		{"NS cut", unhex(t, solicitationHex)[:80], None, ErrMalformed},
		{"NS with bad checksum", edited(unhex(t, solicitationHex), 85, 0xff), None, ErrMalformed},
		{"NS from a router away", solicitation(t, func(f []byte) { f[21] = 254 }), None, ErrMalformed},
		{"NS with code", solicitation(t, func(f []byte) { f[55] = 1 }), None, ErrMalformed},
		{"NS for multicast", solicitation(t, func(f []byte) { f[62] = 0xff }), None, ErrMalformed},
		{"NS from multicast", solicitation(t, func(f []byte) { f[22] = 0xff }), None, ErrMalformed},
		{"NS with empty option", solicitation(t, func(f []byte) { f[79] = 0 }), None, ErrMalformed},
		{"NS with long option", solicitation(t, func(f []byte) { f[79] = 2 }), None, ErrMalformed},
		{"NS too short for a target", edited(unhex(t, solicitationHex), 19, 23), None, ErrMalformed},
		{"unicast NS", solicitation(t, func(f []byte) { copy(f[38:54], ip6.AsSlice()) }), Request, nil},
		{"DAD with source option", solicitation(t, func(f []byte) { clear(f[22:38]) }), None, ErrMalformed},
		{"IPv6 of other kind", edited(unhex(t, solicitationHex), 20, 17), None, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m, err := Parse(test.frame)
			if m.Op != test.op || !errors.Is(err, test.err) {
				t.Fatalf("Parse = %v, %v, want %v, %v", m.Op, err, test.op, test.err)
			}
		})
	}
}

func TestDADToUnicastIsMalformed(t *testing.T) {
	frame := probe6(t)
	ip := frame[ethernetLen:]
	copy(ip[24:], ip6.AsSlice())
	binary.BigEndian.PutUint16(ip[ipv6Len+2:], 0)
	binary.BigEndian.PutUint16(ip[ipv6Len+2:], checksum(ip))
	if _, err := Parse(frame); !errors.Is(err, ErrMalformed) {
		t.Fatalf("err = %v", err)
	}
}

func edited(frame []byte, at int, to byte) []byte {
	frame[at] = to
	return frame
}

// Whatever is asked for, the advertisement is a valid packet from the target.
func TestRepliesAreValid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := Message{
			Op:      rapid.SampledFrom([]Op{Request, Probe}).Draw(t, "op"),
			Target:  netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "target"))),
			asker:   fdb.MAC(rapid.SliceOfN(rapid.Byte(), 6, 6).Draw(t, "asker")),
			askerIP: netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "askerIP"))),
		}
		before := []byte("before")
		frame := m.AppendReply(before, owner)[len(before):]
		if ip := frame[ethernetLen:]; checksum(ip) != 0 || int(ip[5]) != len(ip)-ipv6Len {
			t.Fatalf("bad packet %x", ip)
		}
	})
}

func TestHotPathDoesNotAllocate(t *testing.T) {
	dst := make([]byte, 0, MaxFrame)
	for _, question := range [][]byte{unhex(t, arpRequestHex), unhex(t, solicitationHex), probe6(t)} {
		if allocs := testing.AllocsPerRun(100, func() {
			m, _ := Parse(question)
			m.AppendReply(dst, owner)
		}); allocs != 0 {
			t.Errorf("%v allocations", allocs)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{arpRequestHex, arpReplyHex, gratuitousHex, solicitationHex, advertHex} {
		f.Add(unhex(f, s))
	}
	f.Add(probe6(f))
	f.Fuzz(func(t *testing.T, frame []byte) {
		m, err := Parse(frame)
		if err != nil && m != (Message{}) {
			t.Fatalf("a message beside the error: %+v", m)
		}
		if m.Op == None {
			return
		}
		reply := m.AppendReply(nil, owner)
		if len(reply) > MaxFrame || source(reply) != owner {
			t.Fatalf("bad reply %x", reply)
		}
		if again, err := Parse(reply); err != nil || again.Op != None {
			t.Fatalf("the reply asks again: %+v, %v", again, err)
		}
	})
}
