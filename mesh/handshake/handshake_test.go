package handshake

import (
	"bytes"
	"crypto/rand"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"weave/mesh/id"
	"weave/mesh/wire"
)

var (
	testKeys  = Keys{PSK: [32]byte{1}, MAC: [32]byte{2}, Mark: 1}
	otherKeys = Keys{PSK: [32]byte{3}, MAC: [32]byte{4}, Mark: 2}
)

func identity(t testing.TB) id.Identity {
	t.Helper()
	i, err := id.Generate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// party is one side with all it says.
type party struct {
	cfg   Config
	hello Hello
}

func parties(t testing.TB, m Medium) (a, b party) {
	a = party{
		Config{Identity: identity(t), Keys: testKeys, Medium: m, Index: 11},
		Hello{Nickname: "alpha-host", AES: true, Incarnation: 7, Port: 6783,
			Advertise: netip.MustParseAddr("192.0.2.1"), Seen: netip.MustParseAddrPort("[2001:db8::1]:99")},
	}
	b = party{
		Config{Identity: identity(t), Keys: testKeys, Medium: m, Index: 22},
		Hello{Nickname: "bravo-host", AES: true, Incarnation: 1 << 60, Seen: netip.MustParseAddrPort("198.51.100.7:1")},
	}
	return a, b
}

// exchange is a whole handshake with all its messages.
type exchange struct {
	a, b             *Machine
	msg1, msg2, msg3 []byte
	ra, rb           Result
}

func run(t testing.TB, a, b party) exchange {
	t.Helper()
	var x exchange
	var err error
	if x.a, x.msg1, err = Initiate(a.cfg); err != nil {
		t.Fatal(err)
	}
	if x.b, x.msg2, err = Respond(b.cfg, x.msg1, b.hello); err != nil {
		t.Fatal(err)
	}
	if x.msg3, x.ra, err = x.a.Answer(x.msg2, a.hello); err != nil {
		t.Fatal(err)
	}
	if x.rb, err = x.b.Conclude(x.msg3); err != nil {
		t.Fatal(err)
	}
	return x
}

func TestBothSidesAgree(t *testing.T) {
	for _, m := range []Medium{Datagrams, Stream} {
		a, b := parties(t, m)
		x := run(t, a, b)
		if x.ra.Send != x.rb.Receive || x.ra.Receive != x.rb.Send || x.ra.Send == x.ra.Receive {
			t.Error("keys do not match")
		}
		if x.ra.Peer != b.cfg.Identity.ID || x.rb.Peer != a.cfg.Identity.ID {
			t.Error("wrong peer IDs")
		}
		if x.ra.Hello != b.hello || x.rb.Hello != a.hello {
			t.Errorf("hello changed: %+v, %+v", x.ra.Hello, x.rb.Hello)
		}
		if x.ra.Index != 22 || x.rb.Index != 11 || !x.ra.AES || !x.rb.AES {
			t.Errorf("results: %+v, %+v", x.ra, x.rb)
		}
		if len(x.msg1) != Len1 || len(x.msg2) != Len2 || len(x.msg3) != Len3 {
			t.Errorf("lengths %d, %d, %d", len(x.msg1), len(x.msg2), len(x.msg3))
		}
	}
}

func TestNoAmplification(t *testing.T) {
	if Len2 >= Len1 || Len3 >= Len2 || RejectLen >= Len1 {
		t.Fatal("an answer is no shorter than what it answers")
	}
}

func TestAESNeedsBoth(t *testing.T) {
	a, b := parties(t, Datagrams)
	b.hello.AES = false
	x := run(t, a, b)
	if x.ra.AES || x.rb.AES {
		t.Fatal("AES though one side has none")
	}
}

func TestNothingReadable(t *testing.T) {
	a, b := parties(t, Datagrams)
	x := run(t, a, b)
	for i, msg := range [][]byte{x.msg1, x.msg2, x.msg3} {
		for _, secret := range [][]byte{
			[]byte("host"), a.cfg.Identity.Public, b.cfg.Identity.Public,
			a.cfg.Identity.ID[:], b.cfg.Identity.ID[:],
			{192, 0, 2, 1}, {198, 51, 100, 7},
		} {
			if bytes.Contains(msg, secret) {
				t.Errorf("message %d shows %q", i+1, secret)
			}
		}
	}
}

// A stranger with a key of its own must not get so far that the responder's
// static key or Hello leave it, nor the initiator's.
func TestStranger(t *testing.T) {
	a, b := parties(t, Datagrams)
	stranger := party{Config{Identity: identity(t), Keys: otherKeys, Medium: Datagrams}, Hello{}}
	_, msg1, err := Initiate(stranger.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := Respond(b.cfg, msg1, b.hello); !errors.Is(err, ErrPassword) {
		t.Errorf("stranger's message 1: %v", err)
	}
	// Nor does the mark, which whoever looks on sees.
	stranger.cfg.Keys.Mark = testKeys.Mark
	if _, msg1, err = Initiate(stranger.cfg); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Respond(b.cfg, msg1, b.hello); !errors.Is(err, ErrPassword) {
		t.Errorf("message 1 with the mark alone: %v", err)
	}
	// The MAC key alone does not help either: the PSK is in the first message.
	stranger.cfg.Keys.MAC, stranger.cfg.Keys.Mark = testKeys.MAC, testKeys.Mark
	if _, msg1, err = Initiate(stranger.cfg); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Respond(b.cfg, msg1, b.hello); !errors.Is(err, ErrFailed) {
		t.Errorf("message 1 without the PSK: %v", err)
	}
	m, msg1, err := Initiate(a.cfg)
	if err != nil {
		t.Fatal(err)
	}
	forged := bytes.Clone(msg1[:Len2])
	wire.Header{Type: wire.TypeHandshake2, Version: wire.Version, Index: 11}.Put(forged)
	if _, _, err := m.Answer(forged, a.hello); !errors.Is(err, ErrPassword) {
		t.Errorf("forged message 2: %v", err)
	}
}

func TestWho(t *testing.T) {
	a, b := parties(t, Datagrams)
	tests := []struct {
		name string
		set  func(a, b *party)
		want error
	}{
		{"anybody", func(_, _ *party) {}, nil},
		{"the wanted peer", func(a, b *party) { a.cfg.Want = b.cfg.Identity.ID }, nil},
		{"another peer", func(a, _ *party) { a.cfg.Want = id.PeerID{1} }, ErrPeer},
		{"itself", func(a, b *party) { b.cfg.Identity = a.cfg.Identity }, ErrSelf},
		{"other medium", func(_, b *party) { b.cfg.Medium = Stream }, ErrFailed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, b := a, b
			tt.set(&a, &b)
			m, msg1, err := Initiate(a.cfg)
			if err != nil {
				t.Fatal(err)
			}
			_, msg2, err := Respond(b.cfg, msg1, b.hello)
			if err == nil {
				_, _, err = m.Answer(msg2, a.hello)
			}
			if !errors.Is(err, tt.want) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// No bit of a message can change, be lost or be added, and a Machine that saw
// such a message completes with the true one all the same.
func TestDamage(t *testing.T) {
	a, b := parties(t, Datagrams)
	rapid.Check(t, func(rt *rapid.T) {
		damage := func(msg []byte, label string) []byte {
			msg = bytes.Clone(msg)
			switch rapid.IntRange(0, 2).Draw(rt, label) {
			case 0:
				bit := rapid.IntRange(0, len(msg)*8-1).Draw(rt, "bit")
				msg[bit/8] ^= 1 << (bit % 8)
			case 1:
				msg = msg[:rapid.IntRange(0, len(msg)-1).Draw(rt, "cut")]
			case 2:
				msg = append(msg, 0)
			}
			return msg
		}
		harmless := func(err error) {
			if err == nil || errors.Is(err, ErrFailed) {
				rt.Fatalf("damaged message: %v", err)
			}
		}
		ma, msg1, err := Initiate(a.cfg)
		if err != nil {
			rt.Fatal(err)
		}
		_, _, err = Respond(b.cfg, damage(msg1, "1"), b.hello)
		harmless(err)
		mb, msg2, err := Respond(b.cfg, msg1, b.hello)
		if err != nil {
			rt.Fatal(err)
		}
		_, _, err = ma.Answer(damage(msg2, "2"), a.hello)
		harmless(err)
		msg3, _, err := ma.Answer(msg2, a.hello)
		if err != nil {
			rt.Fatal(err)
		}
		_, err = mb.Conclude(damage(msg3, "3"))
		harmless(err)
		if _, err = mb.Conclude(msg3); err != nil {
			rt.Fatal(err)
		}
	})
}

func TestReplayAndDisorder(t *testing.T) {
	a, b := parties(t, Datagrams)
	x := run(t, a, b)
	y := run(t, a, b)
	fresh, msg1, err := Initiate(a.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := fresh.Answer(x.msg2, a.hello); !errors.Is(err, ErrFailed) {
		t.Errorf("message 2 of another handshake: %v", err)
	}
	responder, _, err := Respond(b.cfg, msg1, b.hello)
	if err != nil {
		t.Fatal(err)
	}
	for _, msg := range [][]byte{x.msg1, x.msg2} {
		if _, err := responder.Conclude(msg); !errors.Is(err, ErrMalformed) {
			t.Errorf("wrong message in place of message 3: %v", err)
		}
	}
	if _, err := responder.Conclude(y.msg3); !errors.Is(err, ErrFailed) {
		t.Errorf("message 3 of another handshake: %v", err)
	}
	if _, err := y.b.Conclude(y.msg3); err == nil {
		t.Error("message 3 taken twice")
	}
}

func TestReject(t *testing.T) {
	a, _ := parties(t, Datagrams)
	_, msg1, err := Initiate(a.cfg)
	if err != nil {
		t.Fatal(err)
	}
	other := bytes.Clone(msg1)
	other[1] = 9

	h, err := Verify(otherKeys, msg1)
	index, reason, perr := ParseReject(Reject(h, err))
	if perr != nil || index != 11 || !errors.Is(reason, ErrPassword) || reason.Error() != "password differs" {
		t.Errorf("password: index %d, reason %v, error %v", index, reason, perr)
	}

	h, err = Verify(testKeys, other)
	if !errors.Is(err, ErrVersion) || err.Error() != "protocol version 9, ours is 2" {
		t.Errorf("version: %v", err)
	}
	b := Reject(h, err)
	if _, _, perr := ParseReject(b); !errors.Is(perr, ErrMalformed) {
		t.Errorf("rejected for our own version: %v", perr)
	}
	b[1] = 9 // as the other version would send it
	if index, reason, perr = ParseReject(b); perr != nil || index != 11 || !errors.Is(reason, ErrVersion) {
		t.Errorf("version: index %d, reason %v, error %v", index, reason, perr)
	}

	if Reject(h, ErrMalformed) != nil || Reject(wire.Header{Type: wire.TypeHandshake2}, ErrPassword) != nil {
		t.Error("rejection of what deserves none")
	}
}

func TestHelloCheck(t *testing.T) {
	for name, ok := range map[string]bool{
		"":                       true,
		"host-1.example":         true,
		"größe":                  true,
		strings.Repeat("x", 128): true,
		strings.Repeat("x", 129): false,
		"a\x1b[31m":              false,
		"a\nb":                   false,
		"\xff":                   false,
	} {
		if err := (Hello{Nickname: name}).Check(); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestHelloRoundTrip(t *testing.T) {
	addr := rapid.Custom(func(t *rapid.T) netip.Addr {
		b := rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "addr")
		a := netip.AddrFrom16([16]byte(b)).Unmap()
		if a.IsUnspecified() {
			return netip.Addr{}
		}
		return a
	})
	rapid.Check(t, func(t *rapid.T) {
		h := Hello{
			Nickname:    rapid.StringMatching(`[a-z0-9.-]{0,128}`).Draw(t, "nickname"),
			AES:         rapid.Bool().Draw(t, "aes"),
			Incarnation: rapid.Uint64().Draw(t, "incarnation"),
			Port:        rapid.Uint16().Draw(t, "port"),
			Advertise:   addr.Draw(t, "advertise"),
		}
		if seen := addr.Draw(t, "seen"); seen.IsValid() {
			h.Seen = netip.AddrPortFrom(seen, rapid.Uint16().Draw(t, "seen port"))
		}
		b, err := h.marshal()
		if err != nil || len(b) != helloLen {
			t.Fatal(len(b), err)
		}
		if got, err := unmarshalHello(b); err != nil || got != h {
			t.Fatalf("%+v became %+v, %v", h, got, err)
		}
	})
}

func TestDerive(t *testing.T) {
	empty, one, again := Derive(nil), Derive([]byte("one")), Derive([]byte("one"))
	if empty == one || one != again || one.PSK == one.MAC || empty.Mark == one.Mark || empty.PSK == [32]byte{} {
		t.Fatal("keys do not follow from the password")
	}
}

func TestSubkey(t *testing.T) {
	one, two := testKeys.Subkey("one"), testKeys.Subkey("two")
	if one == two || one != testKeys.Subkey("one") || one == otherKeys.Subkey("one") || one == testKeys.PSK || one == [32]byte{} {
		t.Fatal("subkeys do not follow from the key and their purpose")
	}
}

func FuzzHello(f *testing.F) {
	b, _ := Hello{Nickname: "host", Port: 1}.marshal()
	f.Add(b)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := unmarshalHello(b)
		if err != nil {
			return
		}
		if _, err := h.marshal(); err != nil {
			t.Fatalf("%+v was read but cannot be written: %v", h, err)
		}
	})
}

// FuzzMessages feeds junk under a right MAC: an insider's, the worst there is.
func FuzzMessages(f *testing.F) {
	a, b := parties(f, Datagrams)
	x := run(f, a, b)
	f.Add(x.msg1)
	f.Add(x.msg2)
	f.Add(x.msg3)
	f.Add(x.msg1[:20])
	f.Fuzz(func(t *testing.T, msg []byte) {
		if len(msg) > MACLen {
			body := msg[:len(msg)-MACLen]
			msg = append(bytes.Clone(body), sum(testKeys, body)...)
		}
		ma, _, err := Initiate(a.cfg)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := ma.Answer(msg, a.hello); err == nil {
			t.Fatal("junk taken for message 2")
		}
		mb, _, err := Respond(b.cfg, x.msg1, b.hello)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := mb.Conclude(msg); err == nil {
			t.Fatal("junk taken for message 3")
		}
		_, _, _ = Respond(b.cfg, msg, b.hello)
	})
}

// FuzzReject: what we tell strangers is read as it was meant, and what strangers
// tell us is a number and a reason that somebody could have told.
func FuzzReject(f *testing.F) {
	a, _ := parties(f, Datagrams)
	_, msg1, err := Initiate(a.cfg)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(msg1)
	other := bytes.Clone(msg1)
	other[len(other)-1]++ // as if under another password
	f.Add(other)
	for _, reason := range []error{ErrPassword, VersionError{9}} {
		f.Add(Reject(wire.Header{Type: wire.TypeHandshake1, Counter: 7}, reason))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if index, reason, err := ParseReject(b); err == nil {
			again := Reject(wire.Header{Type: wire.TypeHandshake1, Counter: uint64(index)}, reason)
			again[1] = b[1] // the version of who rejects
			if i, r, err := ParseReject(again); err != nil || i != index || r != reason {
				t.Errorf("%v for %d became %v for %d, %v", reason, index, r, i, err)
			}
		}
		h, why := Verify(testKeys, b)
		answer := Reject(h, why)
		if answer == nil {
			return
		}
		index, reason, err := ParseReject(answer)
		if errors.Is(why, ErrVersion) && err != nil {
			return // it is of our version, which the stranger does not have
		}
		if err != nil || index != uint32(h.Counter) || !errors.Is(why, reason) {
			t.Errorf("%v for %d is read as %v for %d, %v", why, h.Counter, reason, index, err)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	a, _ := parties(b, Datagrams)
	_, msg1, err := Initiate(a.cfg)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := Verify(otherKeys, msg1); err == nil {
			b.Fatal("taken")
		}
	}
}

func BenchmarkRespond(b *testing.B) {
	x, y := parties(b, Datagrams)
	_, msg1, err := Initiate(x.cfg)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, _, err := Respond(y.cfg, msg1, y.hello); err != nil {
			b.Fatal(err)
		}
	}
}
