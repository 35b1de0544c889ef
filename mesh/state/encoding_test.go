package state

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"weave/mesh/id"
)

// unhex reads hex with spaces and line ends in it.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The layout of the package comment, byte for byte: peers of other builds read
// what we write.
func TestGolden(t *testing.T) {
	a := New(id.PeerID{0xa1, 15: 1}, 300)
	first := set(t, a, "x", "hello")
	a.Delete("k", "x", noon)
	set(t, a, "y", "")
	b := New(id.PeerID{0xb0}, 1)
	set(t, b, "z", "")
	pull(t, a, b)
	pull(t, a, New(id.PeerID{0xc0}, 1)) // has published nothing

	const owner = "a1000000000000000000000000000001"
	for name, tc := range map[string]struct {
		got  []byte
		want string
	}{
		"one change": {first, `01 01 ` + owner + ` ac02 00 01 00 01
			00 01 01 6b 01 78 05 68656c6c6f`},
		"whole set": {a.Announce(), `01 01 ` + owner + ` ac02 00 03 00 02
			01 02 01 6b 01 78
			00 01 01 6b 01 79 00`},
		"digest": {a.Digest(), `01 02 ` + owner + ` ac02 03
			b0000000000000000000000000000000 01 01`},
	} {
		if want := unhex(t, tc.want); !bytes.Equal(tc.got, want) {
			t.Errorf("%s:\n got %x\nwant %x", name, tc.got, want)
		}
	}
}

func FuzzMerge(f *testing.F) {
	a := New(alice, 1)
	f.Add(set(f, a, "x", "1"))
	a.Delete("k", "x", noon)
	set(f, a, "y", "2")
	f.Add(a.Announce())
	a.Prune(noon.AddDate(1, 0, 0), 0)
	f.Add(a.Announce())
	f.Add(a.Digest())
	f.Add([]byte{format, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, in []byte) {
		b := New(bob, 1)
		_, _ = b.Merge(in, noon) // only its effects count here
		if _, ok := b.Get(bob, "k", "x"); ok {
			t.Error("a delta wrote our own record")
		}
		// Whatever was taken in can be passed on.
		c := New(carol, 1)
		pull(t, c, b)
		pull(t, b, c)
		if !bytes.Equal(b.Digest(), c.Digest()) {
			t.Errorf("digests differ after the exchange: %x and %x", b.Digest(), c.Digest())
		}
	})
}

func FuzzDeltaEncoding(f *testing.F) {
	a := New(alice, 1)
	set(f, a, "x", "1")
	f.Add(a.Announce())
	f.Fuzz(func(t *testing.T, in []byte) {
		blocks, err := decodeDelta(in)
		if err != nil {
			return
		}
		again, err := decodeDelta(encodeDelta(blocks))
		if err != nil || len(again) != len(blocks) {
			t.Errorf("what was decoded does not encode: %v", err)
		}
	})
}

func FuzzMissing(f *testing.F) {
	a := New(alice, 2)
	set(f, a, "x", "1")
	b := New(bob, 1)
	pull(f, a, b)
	f.Add(a.Digest())
	f.Add(b.Digest())
	f.Fuzz(func(t *testing.T, in []byte) {
		delta, err := a.Missing(in)
		if err != nil || delta == nil {
			return
		}
		if _, err := New(carol, 1).Merge(delta, noon); err != nil {
			t.Errorf("the answer is refused: %v", err)
		}
	})
}
