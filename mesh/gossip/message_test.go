package gossip

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/memberlist"

	"weave/mesh/id"
)

func TestMetaGolden(t *testing.T) {
	m := meta{nickname: "höst", candidates: []netip.AddrPort{
		netip.MustParseAddrPort("192.0.2.1:6783"),
		netip.MustParseAddrPort("[2001:db8::1]:6784"),
	}}
	want := "\x01\x05h\xc3\xb6st\x02" +
		"\x04\xc0\x00\x02\x01\x1a\x7f" +
		"\x10\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x1a\x80"
	if got := string(m.encode()); got != want {
		t.Errorf("encode: %q, want %q", got, want)
	}
	back, err := parseMeta([]byte(want))
	if err != nil || !reflect.DeepEqual(back, m) {
		t.Errorf("parse: %+v, %v", back, err)
	}
}

func TestMetaIsCleanAndBounded(t *testing.T) {
	m := meta{nickname: "a\x1b[31mb\n" + strings.Repeat("ö", 100)}
	for _, addr := range []string{"0.0.0.0:1", "192.0.2.1:0", "224.0.0.1:1", "[fe80::1%eth0]:1"} {
		m.candidates = append(m.candidates, netip.MustParseAddrPort(addr))
	}
	for i := range 30 {
		m.candidates = append(m.candidates, netip.AddrPortFrom(netip.AddrFrom16([16]byte{0x20, 15: byte(i)}), 1))
	}
	b := m.encode()
	if len(b) > memberlist.MetaMaxSize {
		t.Errorf("%d bytes", len(b))
	}
	back, err := parseMeta(b)
	if err != nil {
		t.Fatal(err)
	}
	if want := "a[31mb" + strings.Repeat("ö", 29); back.nickname != want {
		t.Errorf("nickname %q, want %q", back.nickname, want)
	}
	if !slices.Equal(back.candidates, m.candidates[4:4+maxCandidates]) {
		t.Errorf("candidates: %v", back.candidates)
	}
}

func TestParseMetaRefuses(t *testing.T) {
	good := meta{nickname: "x", candidates: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1")}}.encode()
	for i := range good {
		if _, err := parseMeta(good[:i]); err == nil {
			t.Errorf("first %d bytes: no error", i)
		}
	}
	for name, b := range map[string][]byte{
		"trailing":   append(slices.Clone(good), 0),
		"format":     append([]byte{2}, good[1:]...),
		"candidates": {metaFormat, 0, maxCandidates + 1},
		"too long":   make([]byte, memberlist.MetaMaxSize+1),
	} {
		if _, err := parseMeta(b); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	// What is well-formed but useless is left out.
	m, err := parseMeta([]byte("\x01\x02\x1b\xff\x03" + "\x10\xfe\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x01" + "\x04\x00\x00\x00\x00\x00\x01" + "\x04\xc0\x00\x02\x01\x00\x00"))
	if err != nil || m.nickname != "" || m.candidates != nil {
		t.Errorf("useless parts: %+v, %v", m, err)
	}
}

func FuzzParseMeta(f *testing.F) {
	f.Add(meta{nickname: "x", candidates: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1")}}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMeta(b)
		if err != nil {
			return
		}
		if again, err := parseMeta(m.encode()); err != nil || !reflect.DeepEqual(again, m) {
			t.Errorf("%+v came back as %+v, %v", m, again, err)
		}
	})
}

func TestMessageGolden(t *testing.T) {
	origin := id.PeerID{0xaa, 15: 0xbb}
	const o = "\xaa\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xbb"
	for want, m := range map[string]message{
		"\x01\x01" + o + "\x03abcdelta": {kind: typeDelta, origin: origin, replica: "abc", delta: []byte("delta")},
		"\x01\x02" + o + "12345678":     {kind: typeSum, origin: origin, sum: sum([]byte("12345678"))},
	} {
		if got := string(m.encode()); got != want {
			t.Errorf("encode: %q, want %q", got, want)
		}
		if back, err := parseMessage([]byte(want)); err != nil || !reflect.DeepEqual(back, m) {
			t.Errorf("parse %q: %+v, %v", want, back, err)
		}
	}
}

func FuzzParseMessage(f *testing.F) {
	f.Add(message{kind: typeDelta, replica: "abc", delta: []byte("delta")}.encode())
	f.Add(message{kind: typeSum}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := parseMessage(b); err == nil && !bytes.Equal(m.encode(), b) {
			t.Errorf("%q came back as %q", b, m.encode())
		}
	})
}

// fixed is a Replica that never changes.
type fixed string

func (f fixed) Digest() []byte              { return []byte(f) }
func (fixed) Missing([]byte) []byte         { return nil }
func (fixed) Merge(id.PeerID, []byte) error { return nil }
func sumFixed(digests map[string]string) sum {
	replicas := map[string]Replica{}
	for name, d := range digests {
		replicas[name] = fixed(d)
	}
	return sumOf(replicas)
}

func TestSumsDiffer(t *testing.T) {
	sums := map[sum]int{}
	for i, digests := range []map[string]string{
		{}, {"a": ""}, {"a": "1"}, {"a": "2"}, {"a": "1", "b": ""}, {"a": "1", "b": "1"}, {"a1": ""}, {"ab": "1"},
	} {
		s := sumFixed(digests)
		if other, same := sums[s]; same {
			t.Errorf("%d and %d have the same sum", i, other)
		}
		sums[s] = i
	}
	if sumFixed(map[string]string{"a": "1", "b": "2"}) != sumFixed(map[string]string{"b": "2", "a": "1"}) {
		t.Error("equal states have different sums")
	}
}

func TestSeenIsBounded(t *testing.T) {
	s := newSeen()
	b := make([]byte, 4)
	for i := range 10 * seenHalf {
		binary.BigEndian.PutUint32(b, uint32(i))
		if !s.add(b) {
			t.Fatalf("message %d is said to be old", i)
		}
		if s.add(b) {
			t.Fatalf("message %d is said to be new twice", i)
		}
		if i >= seenHalf {
			binary.BigEndian.PutUint32(b, uint32(i-seenHalf+1))
			if s.add(b) {
				t.Fatalf("message %d was forgotten too soon", i-seenHalf+1)
			}
		}
	}
	if n := len(s.now) + len(s.old); n > 2*seenHalf {
		t.Errorf("%d messages are remembered", n)
	}
}

// compound packs messages as memberlist does.
func compound(parts ...string) string {
	out := []byte{packetCompound, byte(len(parts))}
	for _, p := range parts {
		out = binary.BigEndian.AppendUint16(out, uint16(len(p)))
	}
	return string(out) + strings.Join(parts, "")
}

func checksummed(s string) string {
	return string(binary.BigEndian.AppendUint32([]byte{packetChecksum}, crc32.ChecksumIEEE([]byte(s)))) + s
}

func TestHarmless(t *testing.T) {
	for packet, want := range map[string]bool{
		"":                                   false,
		"\x00ping":                           true,
		"\x05dead":                           true,
		"\x06push/pull":                      false,
		"\x08user":                           true,
		"\x09compressed":                     false,
		"\x0aencrypted":                      false,
		"\x0bnack":                           true,
		"\x0derror":                          false,
		"\xf4label":                          false,
		compound("\x00ping", "\x08user"):     true,
		compound():                           true,
		compound("\x09x"):                    false,
		compound("\x00", ""):                 false,
		compound(compound("\x00")):           false,
		compound(checksummed("\x00")):        false,
		compound("\x00ping")[:6]:             false,
		"\x07":                               false,
		"\x07\x02\x00\x01":                   false,
		checksummed("\x00ping"):              true,
		checksummed(compound("\x04alive")):   true,
		checksummed("\x09compressed"):        false,
		checksummed(checksummed("\x00ping")): false,
		"\x0c0000\x00ping":                   false,
		"\x0c0000":                           false,
	} {
		if harmless([]byte(packet)) != want {
			t.Errorf("%q: want %v", packet, want)
		}
	}
}

func FuzzHarmless(f *testing.F) {
	f.Add([]byte(compound("\x00ping", "\x08user")))
	f.Add([]byte(checksummed("\x00ping")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if sum := checksummed(string(b)); harmless([]byte(sum)) != (harmless(b) && b[0] != packetChecksum) {
			t.Error("a checksum makes a difference")
		}
		if len(b) <= math.MaxUint16 && harmless([]byte(compound(string(b), "\x00ping"))) != simple(b) {
			t.Error("what is harmful in itself is let in within a compound, or the other way round")
		}
	})
}
