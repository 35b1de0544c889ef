package id

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"testing"

	"pgregory.net/rapid"
)

func peerID() *rapid.Generator[PeerID] {
	return rapid.Custom(func(t *rapid.T) PeerID {
		return PeerID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id"))
	})
}

func TestIdentity(t *testing.T) {
	one, err := Generate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	again, err := FromPrivate(one.Private)
	if err != nil {
		t.Fatal(err)
	}
	if again.ID != one.ID || !bytes.Equal(again.Public, one.Public) || one.ID != FromPublic(one.Public) {
		t.Error("the same key gave another identity")
	}
	if one.ID.IsZero() || !(PeerID{}).IsZero() {
		t.Error("IsZero")
	}
	if _, err := Generate(bytes.NewReader(make([]byte, 5))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short randomness: %v", err)
	}
	if _, err := FromPrivate(make([]byte, 31)); err == nil {
		t.Error("short key accepted")
	}
}

// The key pair is Alice's of RFC 7748; a change of curve or hash, which would
// rename all peers, does not pass unseen.
func TestKnownIdentity(t *testing.T) {
	private, err := hex.DecodeString("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
	if err != nil {
		t.Fatal(err)
	}
	i, err := FromPrivate(private)
	if err != nil {
		t.Fatal(err)
	}
	const public = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
	if got := hex.EncodeToString(i.Public); got != public {
		t.Errorf("public key %s, want %s", got, public)
	}
	if got := i.ID.String(); got != "gagjzfqdxevewopnhfml7esace" {
		t.Errorf("ID %s", got)
	}
	private[0] ^= 1
	if i.Private[0] != 0x77 {
		t.Error("FromPrivate keeps its caller's bytes")
	}
}

func TestText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := peerID().Draw(t, "p")
		q, err := Parse(p.String())
		if err != nil || q != p {
			t.Fatalf("%s became %s, %v", p, q, err)
		}
		if len(p.String()) != 26 || p.Short() != p.String()[:10] {
			t.Fatalf("forms %q, %q", p, p.Short())
		}
		b, err := json.Marshal(map[PeerID]PeerID{p: p})
		if err != nil {
			t.Fatal(err)
		}
		var m map[PeerID]PeerID
		if err := json.Unmarshal(b, &m); err != nil || m[p] != p {
			t.Fatalf("%s: %v", b, err)
		}
	})
}

func TestCompare(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, q := peerID().Draw(t, "p"), peerID().Draw(t, "q")
		if got, want := p.Compare(q), bytes.Compare(p[:], q[:]); got != want {
			t.Fatalf("got %d, want %d", got, want)
		}
		if p.Compare(p) != 0 {
			t.Fatal("not equal to itself")
		}
	})
}

func TestParseRefuses(t *testing.T) {
	for _, s := range []string{
		"", "a", "aaaaaaaaaaaaaaaaaaaaaaaaa", "aaaaaaaaaaaaaaaaaaaaaaaaaaa",
		"AAAAAAAAAAAAAAAAAAAAAAAAAA", "aaaaaaaaaaaaaaaaaaaaaaaaa1", "aaaaaaaaaaaaaaaaaaaaaaaaa=",
		"aaaaaaaaaaaaaaaaaaaaaaaaab", // trailing bits set
		"aaaaaaaaaaaaa\naaaaaaaaaaaaa",
	} {
		if p, err := Parse(s); err == nil {
			t.Errorf("%q became %s", s, p)
		}
	}
	var p PeerID
	if err := p.UnmarshalText([]byte("x")); err == nil || !p.IsZero() {
		t.Errorf("UnmarshalText: %v, %s", err, p)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(PeerID{1, 2, 3}.String())
	f.Add("aaaaaaaaaaaaaaaaaaaaaaaaab")
	f.Add("a\r\na")
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := Parse(s); err == nil && p.String() != s {
			t.Fatalf("%q has a second spelling, %q", p, s)
		}
	})
}
