package mesh

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weave/mesh/handshake"
	"weave/mesh/id"
)

func TestSplitSeed(t *testing.T) {
	for in, want := range map[string]string{
		"host:6783": "host 6783", "192.0.2.1:1": "192.0.2.1 1", "[2001:db8::1]:65535": "2001:db8::1 65535",
		"": "", "host": "", ":6783": "", "host:": "", "host:0": "", "host:65536": "", "host:+1": "", "host:x": "",
		"2001:db8::1:6783": "", "[::1": "", "a:1:2": "",
	} {
		host, port, err := splitSeed(in)
		got := fmt.Sprintf("%s %d", host, port)
		if err != nil {
			got = ""
		}
		if got != want {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
}

func FuzzSplitSeed(f *testing.F) {
	for _, s := range []string{"host:6783", "[::1]:1", "[fe80::1%eth0]:2", "a:b:c", "\x00:1", ":", "]:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if host, port, err := splitSeed(s); err == nil && (host == "" || port == 0) {
			t.Errorf("%q is %q, %d", s, host, port)
		}
	})
}

func TestResolve(t *testing.T) {
	got, err := resolve(within(t), systemLookup, "localhost:99")
	if err != nil || !slices.ContainsFunc(got, func(a netip.AddrPort) bool { return a.Addr().IsLoopback() && a.Port() == 99 }) {
		t.Errorf("got %v, %v", got, err)
	}
	if got, err = resolve(within(t), systemLookup, "[::ffff:192.0.2.1]:5"); err != nil || got[0] != netip.MustParseAddrPort("192.0.2.1:5") {
		t.Errorf("got %v, %v", got, err)
	}
	lo, err := net.InterfaceByName("lo")
	must(t, err)
	byNumber := netip.AddrPortFrom(addr("fe80::1").WithZone(strconv.Itoa(lo.Index)), 5)
	for _, s := range []string{"[fe80::1%lo]:5", byNumber.String()} {
		if got, err = resolve(within(t), systemLookup, s); err != nil || !slices.Equal(got, []netip.AddrPort{byNumber}) {
			t.Errorf("%s: got %v, %v", s, got, err)
		}
	}
	if got, err = resolve(within(t), systemLookup, "[fe80::1%nowhere]:5"); err == nil || !strings.Contains(err.Error(), `no link "nowhere"`) {
		t.Errorf("got %v, %v", got, err)
	}
	if got, err = resolve(within(t), systemLookup, "no such host:5"); err == nil {
		t.Errorf("got %v", got)
	}
}

func TestSeeds(t *testing.T) {
	store, peer, now := newStore(), id.PeerID{5}, time.Unix(1000, 0)
	load := func(configured ...string) *seeds {
		s, err := loadSeeds(store, configured)
		must(t, err)
		return s
	}
	s := load("a:1", "b:1", "a:1")
	must(t, s.add("c:1"))
	must(t, s.add("c:1"))
	must(t, s.add("b:1"))
	if err := s.add("c"); err == nil {
		t.Error("added what is no address")
	}
	if got := seedAddrs(s.unmet()); !slices.Equal(got, []string{"a:1", "b:1", "c:1"}) {
		t.Errorf("unmet %v", got)
	}
	must(t, s.met("a:1", now, peer))
	s.failed("b:1", now, errDisk, false)
	s.failed("c:1", now, handshake.ErrSelf, true)
	if got := seedAddrs(s.unmet()); !slices.Equal(got, []string{"b:1"}) {
		t.Errorf("unmet %v", got)
	}
	want := []Seed{
		{Addr: "a:1", Configured: true, Peer: peer, Tried: now},
		{Addr: "b:1", Configured: true, Added: true, Error: errDisk.Error(), Tried: now},
		{Addr: "c:1", Added: true, Self: true, Tried: now},
	}
	if got := s.snapshot(); !slices.Equal(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	s.failed("a:1", now, errDisk, false)
	if x := s.snapshot()[0]; !x.Met() || x.Error == "" {
		t.Errorf("a failure does not undo that somebody was met: %+v", x)
	}

	// Another configuration: who was added or met is remembered, the rest not.
	s = load("d:1")
	want = []Seed{{Addr: "d:1", Configured: true}, {Addr: "b:1", Added: true}, {Addr: "c:1", Added: true}}
	if got := s.snapshot(); !slices.Equal(got, want) || !slices.Equal(store.keys(bucketSeeds), []string{"b:1", "c:1"}) {
		t.Errorf("got %+v, on disk %v", got, store.keys(bucketSeeds))
	}
	if _, err := s.forget("a:1"); !errors.Is(err, ErrNoSeed) {
		t.Errorf("forget what was never known: %v", err)
	}
	if _, err := s.forget("d:1"); !errors.Is(err, ErrConfigured) {
		t.Errorf("forget what is configured: %v", err)
	}
	_, err := s.forget("b:1")
	must(t, err)
	s.failed("b:1", now, errDisk, false)
	must(t, s.met("b:1", now, peer))
	if got := load().snapshot(); !slices.Equal(got, []Seed{{Addr: "c:1", Added: true}}) {
		t.Errorf("after all: %+v", got)
	}
}

func TestSeedsOnFullDisk(t *testing.T) {
	store := newStore()
	s, err := loadSeeds(store, []string{"a:1"})
	must(t, err)
	must(t, s.add("b:1"))
	store.fail(errDisk)
	if err := s.add("c:1"); !errors.Is(err, errDisk) || len(s.snapshot()) != 2 {
		t.Errorf("added %v: %v", s.snapshot(), err)
	}
	if _, err := s.forget("b:1"); !errors.Is(err, errDisk) || len(s.snapshot()) != 2 {
		t.Errorf("forgotten, %v is left: %v", s.snapshot(), err)
	}
	if err := s.met("a:1", time.Now(), id.PeerID{1}); !errors.Is(err, errDisk) || !s.snapshot()[0].Met() {
		t.Errorf("met %v: %v", s.snapshot(), err)
	}
}

func TestSeedsAreBounded(t *testing.T) {
	s, err := loadSeeds(newStore(), nil)
	must(t, err)
	for i := range maxSeeds {
		must(t, s.add(fmt.Sprintf("host%d:1", i)))
	}
	if err := s.add("more:1"); err == nil {
		t.Error("no bound")
	}
	must(t, s.add("host0:1"))
}

func TestKnown(t *testing.T) {
	store, self, p, q := newStore(), id.PeerID{9}, id.PeerID{1}, id.PeerID{2}
	k, err := loadKnown(store, self)
	must(t, err)
	at := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:6783")}
	must(t, k.remember(q, knownPeer{"q", at}))
	store.fail(errDisk)
	if err := k.remember(p, knownPeer{"p", nil}); !errors.Is(err, errDisk) {
		t.Errorf("remember: %v", err)
	}
	if err := k.save(); !errors.Is(err, errDisk) {
		t.Errorf("save: %v", err)
	}
	if !slices.Equal(k.list(), []id.PeerID{p, q}) {
		t.Errorf("who is not on disk counts all the same: %v", k.list())
	}
	store.fail(nil)
	must(t, k.save())
	must(t, store.Apply(bucketPeers, map[string][]byte{self.String(): []byte(`{}`)}))
	if k, err = loadKnown(store, self); err != nil {
		t.Fatal(err)
	}
	if got, ok := k.get(q); !slices.Equal(k.list(), []id.PeerID{p, q}) || !ok || !got.equal(knownPeer{"q", at}) {
		t.Errorf("after a restart: %v, %+v", k.list(), got)
	}
	store.fail(errDisk)
	must(t, k.remember(q, knownPeer{"q", at})) // nothing new
}

func TestKnownIsBounded(t *testing.T) {
	k, err := loadKnown(newStore(), id.PeerID{})
	must(t, err)
	for i := range maxKnown {
		must(t, k.remember(id.PeerID{1, byte(i), byte(i >> 8)}, knownPeer{}))
	}
	if err := k.remember(id.PeerID{2}, knownPeer{}); err == nil {
		t.Error("no bound")
	}
	must(t, k.remember(id.PeerID{1}, knownPeer{Nickname: "renamed"}))
}

func TestDecodeEndpoint(t *testing.T) {
	good := `{"segment":"s","mac":"02:00:00:00:00:01","addrs":["10.0.0.1","fd00::1"],"bits":[24,64],"container":"web","host":true}`
	e, err := decodeEndpoint("id", []byte(good))
	want := Endpoint{"id", "s", MAC{2, 0, 0, 0, 0, 1}, []netip.Addr{addr("10.0.0.1"), addr("fd00::1")}, []int{24, 64}, "web", true}
	if err != nil || fmt.Sprint(e) != fmt.Sprint(want) {
		t.Errorf("got %+v, %v", e, err)
	}
	for name, change := range map[string][2]string{
		"no JSON":           {`{`, ``},
		"no segment":        {`"s"`, `""`},
		"long segment":      {`"s"`, `"` + strings.Repeat("s", 300) + `"`},
		"no MAC":            {`02:00:00:00:00:01`, ``},
		"long MAC":          {`02:00:00:00:00:01`, `02:00:00:00:00:00:00:01`},
		"multicast MAC":     {`02:`, `03:`},
		"zero MAC":          {`02:00:00:00:00:01`, `00:00:00:00:00:00`},
		"no address":        {`10.0.0.1`, ``},
		"unspecified":       {`10.0.0.1`, `0.0.0.0`},
		"multicast":         {`10.0.0.1`, `224.0.0.1`},
		"zone":              {`fd00::1`, `fe80::1%eth0`},
		"too many":          {`"10.0.0.1"`, strings.Repeat(`"10.0.0.1",`, 8) + `"10.0.0.2"`},
		"addresses no list": {`["10.0.0.1","fd00::1"]`, `7`},
		"lengths too few":   {`24,`, ``},
		"lengths too many":  {`24,`, `24,24,`},
	} {
		value := strings.Replace(good, change[0], change[1], 1)
		if e, err := decodeEndpoint("id", []byte(value)); err == nil {
			t.Errorf("%s: got %+v", name, e)
		}
	}
	if _, err := decodeEndpoint("", []byte(good)); err == nil {
		t.Error("an endpoint without an ID")
	}
	e, err = decodeEndpoint("id", []byte(`{"segment":"s","mac":"02:00:00:00:00:01","addrs":["::ffff:10.0.0.1"],"container":"a\u001b[31m\u202e`+strings.Repeat("é", 100)+`"}`))
	if err != nil || e.Addrs[0] != addr("10.0.0.1") || len(e.Container) > maxContainer || !strings.HasPrefix(e.Container, "a?[31m?é") {
		t.Errorf("got %+v, %v", e, err)
	}
}

func FuzzDecodeEndpoint(f *testing.F) {
	f.Add([]byte(`{"segment":"s","mac":"02:00:00:00:00:01","addrs":["10.0.0.1"],"container":"web"}`))
	f.Add([]byte(`{"segment":"s","mac":"02-00-00-00-00-01","addrs":[null]}`))
	f.Add([]byte(`{"segment":"\ud800","mac":"0200.0000.0001","addrs":null,"container":"\u0000"}`))
	f.Add([]byte(`[]`))
	f.Add([]byte(`{"addrs":[{}]}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		e, err := decodeEndpoint("id", value)
		if err != nil {
			return
		}
		again, err := e.encode()
		if err != nil {
			t.Fatalf("%+v is accepted, and not published: %v", e, err)
		}
		if same, err := decodeEndpoint("id", again); err != nil || fmt.Sprint(same) != fmt.Sprint(e) {
			t.Errorf("%+v became %+v, %v", e, same, err)
		}
	})
}

func FuzzDecodeOthers(f *testing.F) {
	f.Add([]byte(`{"mtu":1400}`))
	f.Add([]byte(`{"mtu":-1,"free":18446744073709551616}`))
	f.Add([]byte(`{"free":7}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, value []byte) {
		if s, err := decodeSegment(value); err == nil && (s.MTU < 68 || s.MTU > 65535) {
			t.Errorf("MTU %d", s.MTU)
		}
		_, _ = decodeFree(value) // any number is good
	})
}

func FuzzReadBlob(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, 'h', 'i', '!'})
	f.Add([]byte{0, 0, 0, 9, 'h', 'i'})
	f.Add([]byte{255, 255, 255, 255})
	f.Add([]byte{0, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		b, err := readBlob(bytes.NewReader(in))
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := writeBlob(&out, b); err != nil || !bytes.HasPrefix(in, out.Bytes()) {
			t.Errorf("%x was read as %x", in, b)
		}
	})
}

func TestReadBlobCutOff(t *testing.T) {
	for _, in := range []string{"", "\x00\x00", "\x00\x00\x00\x05four"} {
		if b, err := readBlob(strings.NewReader(in)); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%q: %q, %v", in, b, err)
		}
	}
}

// dumb is the index as one would write it without a thought for its cost: it
// looks at all records each time.
type dumb map[string]any // "owner/kind/key" -> decoded value

func (d dumb) mtu(key string, but id.PeerID) (least int, members []id.PeerID) {
	for i := range owners {
		p := id.PeerID{byte(i)}
		if mtu, ok := d[fmt.Sprint(p, kindSegment, key)].(int); ok && p != but {
			members = append(members, p)
			if least == 0 || mtu < least {
				least = mtu
			}
		}
	}
	return least, members
}

func (d dumb) endpoints() []OwnedEndpoint {
	var out []OwnedEndpoint
	for _, v := range d {
		if e, ok := v.(OwnedEndpoint); ok {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, compareEndpoints)
	return out
}

func (d dumb) holder(key string, a netip.Addr, but id.PeerID) (OwnedEndpoint, bool) {
	for _, e := range d.endpoints() {
		if e.Owner != but && e.Segment == key && slices.Contains(e.Addrs, a) {
			return e, true
		}
	}
	return OwnedEndpoint{}, false
}

const owners = 3

// TestIndex compares the index with a dumb one.
func TestIndex(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x, d := newIndex(), dumb{}
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) { compare(t, x, d) },
			"segment": func(t *rapid.T) {
				owner, key, mtu := drawOwner(t), drawSegment(t), rapid.SampledFrom([]int{0, 1300, 1400}).Draw(t, "mtu")
				delete(d, fmt.Sprint(owner, kindSegment, key))
				value := recordValue(segmentRecord{MTU: mtu})
				if mtu != 0 {
					d[fmt.Sprint(owner, kindSegment, key)] = mtu
				} else if rapid.Bool().Draw(t, "deleted") {
					value = nil
				}
				if err := x.setSegment(owner, key, value); (err != nil) != (mtu == 0 && value != nil) {
					t.Fatalf("%s: %v", value, err)
				}
			},
			"endpoint": func(t *rapid.T) {
				owner, key := drawOwner(t), rapid.SampledFrom([]string{"e1", "e2"}).Draw(t, "ID")
				before, known := d[fmt.Sprint(owner, kindEndpoint, key)]
				delete(d, fmt.Sprint(owner, kindEndpoint, key))
				value, now := drawEndpoint(t, owner, key)
				if now != nil {
					d[fmt.Sprint(owner, kindEndpoint, key)] = *now
				}
				old, got, err := x.setEndpoint(owner, key, value)
				if (old != nil) != known || known && fmt.Sprint(*old) != fmt.Sprint(before) {
					t.Fatalf("before was %v, want %v", old, before)
				}
				if (got != nil) != (now != nil) || (err != nil) != (now == nil && value != nil) {
					t.Fatalf("%s: got %v, %v", value, got, err)
				}
			},
			"free": func(t *rapid.T) {
				owner, pool, free := drawOwner(t), drawSegment(t), rapid.SampledFrom([]string{"", "{", `{"free":5}`}).Draw(t, "free")
				delete(d, fmt.Sprint(owner, kindFree, pool))
				value := []byte(free)
				if free == "" {
					value = nil
				} else if free != "{" {
					d[fmt.Sprint(owner, kindFree, pool)] = uint64(5)
				}
				if err := x.setFree(owner, pool, value); (err != nil) != (free == "{") {
					t.Fatalf("%s: %v", value, err)
				}
			},
		})
	})
}

func drawOwner(t *rapid.T) id.PeerID {
	return id.PeerID{byte(rapid.IntRange(0, owners-1).Draw(t, "owner"))}
}
func drawSegment(t *rapid.T) string { return rapid.SampledFrom([]string{blue, red}).Draw(t, "key") }

// drawEndpoint returns a record's value and what it means; nil if it means
// nothing.
func drawEndpoint(t *rapid.T, owner id.PeerID, key string) ([]byte, *OwnedEndpoint) {
	switch rapid.IntRange(0, 4).Draw(t, "what") {
	case 0:
		return nil, nil
	case 1:
		return []byte("rubbish"), nil
	}
	e := Endpoint{ID: key, Segment: drawSegment(t), MAC: MAC{2}}
	e.Addrs = rapid.SliceOfN(rapid.SampledFrom([]netip.Addr{addr("10.0.0.1"), addr("10.0.0.2"), addr("fd00::1")}), 0, 3).Draw(t, "addrs")
	value, err := e.encode()
	if err != nil {
		t.Fatal(err)
	}
	return value, &OwnedEndpoint{e, owner}
}

func compare(t *rapid.T, x *index, d dumb) {
	if got, want := fmt.Sprint(x.all()), fmt.Sprint(d.endpoints()); got != want {
		t.Fatalf("endpoints %s, want %s", got, want)
	}
	places := map[string]bool{}
	for _, key := range []string{blue, red} {
		for i := range owners + 1 {
			but := id.PeerID{byte(i)}
			mtu, members := d.mtu(key, but)
			if got := x.members(key, but); x.mtu(key, but) != mtu || !slices.Equal(got, members) {
				t.Fatalf("%s but %v: MTU %d, want %d; members %v, want %v", key, but, x.mtu(key, but), mtu, got, members)
			}
			for _, a := range []string{"10.0.0.1", "10.0.0.2", "fd00::1", "10.0.0.3"} {
				got, ok := x.holder(key, addr(a), but)
				want, wantOK := d.holder(key, addr(a), but)
				if ok != wantOK || fmt.Sprint(got) != fmt.Sprint(want) {
					t.Fatalf("holder of %s on %s but %v: %v, want %v", a, key, but, got, want)
				}
			}
			if got, ok := x.free[key][but]; ok != (d[fmt.Sprint(but, kindFree, key)] != nil) || ok && got != 5 {
				t.Fatalf("free in %s: %v", key, x.free)
			}
		}
		if _, members := d.mtu(key, id.PeerID{owners}); len(members) > 0 {
			places[key] = true
		}
	}
	for _, e := range d.endpoints() {
		places[e.Segment] = true
	}
	if !maps.EqualFunc(places, x.segments, func(bool, *place) bool { return true }) {
		t.Fatalf("segments %v, want %v", x.segments, places)
	}
}

// TestRecordsAreSmall holds that the largest record of an endpoint is one that
// the table takes.
func TestRecordsAreSmall(t *testing.T) {
	e := Endpoint{ID: "e", Segment: strings.Repeat("\x01", 256), MAC: MAC{2}, Container: strings.Repeat("\x01<é", 1000)}
	for range maxEndpointAddrs {
		e.Addrs = append(e.Addrs, addr("2001:db8:aaaa:aaaa:aaaa:aaaa:aaaa:aaaa"))
	}
	value, err := e.encode()
	if err != nil || len(value) > 4096 || !json.Valid(value) {
		t.Errorf("%d bytes, %v", len(value), err)
	}
}

func seedAddrs(list []Seed) []string {
	var out []string
	for _, s := range list {
		out = append(out, s.Addr)
	}
	return out
}
