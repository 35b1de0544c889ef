package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"weave/mesh/id"
)

// The layout on the wire, byte by byte: a change here is a new Version.
func TestGolden(t *testing.T) {
	header := make([]byte, HeaderLen)
	Header{Type: TypeSealed, Version: Version, Index: 0x01020304, Counter: 0x1112131415161718}.Put(header)
	fragment := make([]byte, HeaderLen)
	FragmentHeader{Version: Version, Number: 1, Count: 2, Index: 0x01020304, ID: 0x11121314, Total: 0x0123}.Put(fragment)
	frame := make([]byte, FrameHeaderLen)
	FrameHeader{Segment: 0xa1a2a3a4a5a6a7a8, Flags: FlagTCP | FlagMore, Offsets: Offsets{HdrLen: 54, CsumStart: 34, CsumOffset: 16}}.Put(frame)
	relay := make([]byte, RelayHeaderLen)
	RelayHeader{Hops: 31, To: id.PeerID{1, 15: 2}, From: id.PeerID{3, 15: 4}}.Put(relay)
	for name, tt := range map[string]struct {
		got  []byte
		want string
	}{
		"header": {header, "05020000010203041112131415161718"},
		"piece":  {fragment, "0602010201020304111213140123" + "0000"},
		"frame":  {frame, "a1a2a3a4a5a6a7a80a362210"},
		"item":   {AppendItem([]byte{0xff}, KindPing, []byte{7, 8}), "ff0400020708"},
		"relay":  {relay, "1f" + "01000000000000000000000000000002" + "03000000000000000000000000000004"},
		"IPv4":   {AppendAddr(nil, netip.MustParseAddrPort("192.0.2.1:258")), "00000000000000000000ffffc0000201" + "0102"},
		"IPv6":   {AppendAddr(nil, netip.MustParseAddrPort("[2001:db8::1]:258")), "20010db8000000000000000000000001" + "0102"},
		"none":   {AppendAddr(nil, netip.AddrPort{}), "000000000000000000000000000000000000"},
		"empty":  {AppendItem(nil, KindKeepalive, nil), "010000"},
	} {
		if got := hex.EncodeToString(tt.got); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
	if FlagNeedsCsum != 1 || FlagUDP != 4 || FlagContinues != 16 || FlagCsumValid != 32 {
		t.Error("flags moved")
	}
	if SegmentID(0xab).String() != "00000000000000ab" {
		t.Error("segment's text form")
	}
	if Overhead != 47 || Overhead+14+8+40 > TunnelOverhead {
		t.Errorf("overhead %d", Overhead)
	}
}

func TestHeaderRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := Header{
			Type:    Type(rapid.Byte().Draw(t, "type")),
			Version: rapid.Byte().Draw(t, "version"),
			Index:   rapid.Uint32().Draw(t, "index"),
			Counter: rapid.Uint64().Draw(t, "counter"),
		}
		b := bytes.Repeat([]byte{0xee}, HeaderLen+1)
		h.Put(b)
		got, err := ParseHeader(b)
		if err != nil || got != h || b[HeaderLen] != 0xee {
			t.Fatalf("%+v became %+v, %v", h, got, err)
		}
	})
}

func TestFragmentRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := FragmentHeader{
			Version: rapid.Byte().Draw(t, "version"),
			Number:  rapid.Byte().Draw(t, "number"),
			Count:   rapid.Byte().Draw(t, "count"),
			Index:   rapid.Uint32().Draw(t, "index"),
			ID:      rapid.Uint32().Draw(t, "id"),
			Total:   rapid.Uint16().Draw(t, "total"),
		}
		b := bytes.Repeat([]byte{0xee}, HeaderLen+1)
		h.Put(b)
		got, piece, err := ParseFragment(b)
		if err != nil || got != h || !bytes.Equal(piece, []byte{0xee}) {
			t.Fatalf("%+v became %+v, %x, %v", h, got, piece, err)
		}
		if any, err := ParseHeader(b); err != nil || any.Type != TypeFragment || any.Version != h.Version || any.Index != h.Index {
			t.Fatalf("as any datagram it is %+v, %v", any, err)
		}
		if _, _, err := ParseFragment(b[:rapid.IntRange(0, HeaderLen-1).Draw(t, "cut")]); !errors.Is(err, ErrShort) {
			t.Fatal(err)
		}
	})
}

func TestFrameRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := FrameHeader{
			Segment: SegmentID(rapid.Uint64().Draw(t, "segment")),
			Flags:   FrameFlags(rapid.Byte().Draw(t, "flags")),
			Offsets: Offsets{
				HdrLen:     rapid.Byte().Draw(t, "hdrlen"),
				CsumStart:  rapid.Byte().Draw(t, "start"),
				CsumOffset: rapid.Byte().Draw(t, "offset"),
			},
		}
		frame := rapid.SliceOf(rapid.Byte()).Draw(t, "frame")
		b := make([]byte, FrameHeaderLen)
		h.Put(b)
		got, rest, err := ParseFrame(append(b, frame...))
		if err != nil || got != h || !bytes.Equal(rest, frame) {
			t.Fatalf("%+v became %+v, %v", h, got, err)
		}
	})
}

func TestItems(t *testing.T) {
	type item struct {
		kind Kind
		body []byte
	}
	rapid.Check(t, func(t *rapid.T) {
		items := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) item {
			return item{
				Kind(rapid.Byte().Draw(t, "kind")),
				rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(t, "body"),
			}
		}), 1, 10).Draw(t, "items")
		var b []byte
		for _, i := range items {
			b = AppendItem(b, i.kind, i.body)
		}
		whole := b
		for _, want := range items {
			kind, body, rest, err := NextItem(b)
			if err != nil || kind != want.kind || !bytes.Equal(body, want.body) {
				t.Fatalf("got %d %x %v, want %d %x", kind, body, err, want.kind, want.body)
			}
			b = rest
		}
		if len(b) != 0 {
			t.Fatalf("%d bytes left", len(b))
		}
		last := items[len(items)-1]
		start := len(whole) - ItemHeaderLen - len(last.body)
		for end := start; end < len(whole); end++ {
			if _, _, _, err := NextItem(whole[start:end]); !errors.Is(err, ErrShort) {
				t.Fatalf("cut item: %v", err)
			}
		}
	})
}

func TestLongestItem(t *testing.T) {
	b := AppendItem(nil, KindGossip, make([]byte, 65535))
	if _, body, rest, err := NextItem(b); err != nil || len(body) != 65535 || len(rest) != 0 {
		t.Fatal(len(body), len(rest), err)
	}
}

func TestShort(t *testing.T) {
	for n := range HeaderLen {
		if _, err := ParseHeader(make([]byte, n)); !errors.Is(err, ErrShort) {
			t.Errorf("header of %d: %v", n, err)
		}
	}
	for n := range FrameHeaderLen {
		if _, _, err := ParseFrame(make([]byte, n)); !errors.Is(err, ErrShort) {
			t.Errorf("frame of %d: %v", n, err)
		}
	}
	for n := range RelayHeaderLen {
		if _, _, err := ParseRelay(make([]byte, n)); !errors.Is(err, ErrShort) {
			t.Errorf("relay's header of %d: %v", n, err)
		}
	}
}

// Addresses come back as they were, and none that is not of one host.
func TestAddr(t *testing.T) {
	for text, want := range map[string]bool{
		"192.0.2.1:1": true, "[2001:db8::1]:65535": true, "[::ffff:192.0.2.1]:1": true,
		"192.0.2.1:0": false, "0.0.0.0:1": false, "[::]:1": false, "239.1.2.3:1": false, "[ff02::1]:1": false,
	} {
		a := netip.MustParseAddrPort(text)
		got, ok := ParseAddr(AppendAddr(nil, a))
		if ok != want || ok && got != netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) {
			t.Errorf("%s: %s, %v", a, got, ok)
		}
	}
	for _, n := range []int{0, AddrLen - 1, AddrLen + 1} {
		if _, ok := ParseAddr(make([]byte, n)); ok {
			t.Errorf("%d bytes taken for an address", n)
		}
	}
}

func FuzzDatagram(f *testing.F) {
	frame := make([]byte, FrameHeaderLen+3)
	f.Add(AppendItem(AppendItem(nil, KindFrame, frame), KindPing, []byte("x")))
	f.Add(AppendItem(nil, KindRelay, make([]byte, RelayHeaderLen+3)))
	f.Add([]byte{2, 0xff, 0xff, 0})
	f.Add(append([]byte{byte(TypeFragment)}, make([]byte, HeaderLen)...))
	f.Add(AppendAddr(nil, netip.MustParseAddrPort("192.0.2.1:1")))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = ParseHeader(b)
		if a, ok := ParseAddr(b); ok && !bytes.Equal(AppendAddr(nil, a), b) {
			t.Fatalf("address %x was read as %v", b, a)
		}
		if h, _, err := ParseFragment(b); err == nil && Type(b[0]) == TypeFragment {
			again := make([]byte, HeaderLen)
			if h.Put(again); !bytes.Equal(again[:14], b[:14]) { // the rest is not in use
				t.Fatal("fragment's header does not write back")
			}
		}
		taken := 0
		for rest := b; len(rest) > 0; {
			kind, body, next, err := NextItem(rest)
			if err != nil {
				break
			}
			taken += ItemHeaderLen + len(body)
			if !bytes.Equal(AppendItem(nil, kind, body), b[taken-ItemHeaderLen-len(body):taken]) {
				t.Fatal("item does not write back to what it was read from")
			}
			if h, fr, err := ParseFrame(body); kind == KindFrame && err == nil {
				again := make([]byte, FrameHeaderLen)
				h.Put(again)
				if !bytes.Equal(append(again, fr...), body) {
					t.Fatal("frame does not write back")
				}
			}
			if h, d, err := ParseRelay(body); kind == KindRelay && err == nil {
				again := make([]byte, RelayHeaderLen)
				h.Put(again)
				if !bytes.Equal(append(again, d...), body) {
					t.Fatal("relay's item does not write back")
				}
			}
			rest = next
		}
	})
}
