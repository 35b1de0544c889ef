package names

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"weave/mesh"
	"weave/plugin/engine"
)

// TestCollect holds that a container is found by all that it is called, is renamed, and
// is gone with its endpoint.
func TestCollect(t *testing.T) {
	w := newWorld(t)
	w.run()
	w.starts("web", "10.32.0.2", "Shop", "web", "two words", "shop.weave.local")
	for _, name := range []string{"web", "shop", "host-of-web", "web-01234567"} {
		w.await(name, "10.32.0.2")
	}
	if got := w.found("shop.weave.local"); got != nil {
		t.Errorf("the domain is part of a name: %v", got)
	}
	w.set(func() {
		c := w.containers["web-0123456789"]
		c.Name = "renamed"
		w.containers["web-0123456789"] = c
	})
	w.events <- "web-0123456789"
	w.await("renamed", "10.32.0.2")
	w.await("shop", "10.32.0.2")
	w.set(func() { w.endpoints = nil })
	w.await("renamed")
}

// TestOff holds that nobody hears of the names on a network without them.
func TestOff(t *testing.T) {
	w := newWorld(t)
	w.run()
	w.set(func() {
		w.containers["c"] = engine.Container{ID: "c", Name: "web", Attachments: []engine.Attachment{
			{Network: "off", Endpoint: "e-off"}, {Network: "net", Endpoint: "e-net"},
		}}
		w.announce(self, "e-off", "10.33.0.1")
		w.announce(self, "e-net", "10.32.0.1")
	})
	w.events <- "c"
	w.await("web", "10.32.0.1")
}

// TestMissedEvents holds that what happened while the engine was away is learned once it
// is back, and that it is asked to tell again.
func TestMissedEvents(t *testing.T) {
	w := newWorld(t)
	w.run()
	w.starts("web", "10.32.0.2")
	w.starts("db", "10.32.0.3")
	w.await("web", "10.32.0.2")
	w.await("db", "10.32.0.3")
	w.set(func() { w.refuse = errors.New("dockerd starts") })
	w.events <- ""
	w.set(func() {
		delete(w.containers, "web-0123456789")
		w.containers["late"] = engine.Container{ID: "late", Name: "late", Attachments: []engine.Attachment{{Network: "net", Endpoint: "e-late"}}}
		w.announce(self, "e-late", "10.32.0.4")
		w.refuse = nil
	})
	w.await("late", "10.32.0.4")
	w.await("web")
	w.await("db", "10.32.0.3")
}

// TestEngineAway holds that an engine is followed soon after it is back, however long it
// was away.
func TestEngineAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.refuse = errors.New("dockerd is being replaced")
		w.run()
		time.Sleep(5 * time.Minute) // virtual
		w.set(func() { w.refuse = nil })
		w.starts("web", "10.32.0.2")
		began := time.Now()
		w.await("web", "10.32.0.2")
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("names are known after %s", took)
		}
	})
}

// TestOtherSubnet holds that addresses are not answered that this host's containers do
// not reach, though they are on a segment of theirs.
func TestOtherSubnet(t *testing.T) {
	w := newWorld(t)
	w.networks[0].Subnets = []netip.Prefix{netip.MustParsePrefix(segment), netip.MustParsePrefix("fd00::/64")}
	w.announce(other, "e1", "10.99.0.9", "fd00::9")
	w.note(other, topicNames, "e1", `["web"]`)
	w.note(other, topicMade, "web ", `["192.0.2.7"]`)
	n := w.start()
	n.fill()
	w.await("web", "192.0.2.7", "fd00::9")
	if list := n.List(); len(list) != 3 {
		t.Errorf("list: %+v", list)
	}
}

// TestManyEvents holds that more events than may wait are not lost.
func TestManyEvents(t *testing.T) {
	w := newWorld(t)
	w.listed, w.answer = make(chan struct{}, 1), make(chan struct{})
	w.run()
	<-w.listed // nobody reads events now
	w.set(func() {
		for i := range 2 * maxEvents {
			name := fmt.Sprint("c", i)
			w.containers[name] = engine.Container{ID: name, Name: name, Attachments: []engine.Attachment{{Network: "net", Endpoint: "e-" + name}}}
			w.announce(self, "e-"+name, fmt.Sprintf("10.32.%d.%d", i/250, 1+i%250))
		}
	})
	for i := range 2 * maxEvents {
		w.events <- fmt.Sprint("c", i)
	}
	for end := time.Now().Add(20 * time.Second); len(w.events) > 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	close(w.answer)
	for i := range 2 * maxEvents {
		w.await(fmt.Sprint("c", i), fmt.Sprintf("10.32.%d.%d", i/250, 1+i%250))
	}
}

// TestRestart holds that names are told again before the engine was asked, and that
// those of containers that ended meanwhile are taken back.
func TestRestart(t *testing.T) {
	w := newWorld(t)
	_, stop := w.run()
	w.starts("web", "10.32.0.2")
	w.starts("db", "10.32.0.3")
	w.await("web", "10.32.0.2")
	w.await("db", "10.32.0.3")
	stop()
	w.set(func() { delete(w.containers, "db-0123456789") })
	n := w.start()
	n.fill()
	w.await("web", "10.32.0.2")
	w.await("db", "10.32.0.3")
	w.run()
	w.await("db")
	w.await("web", "10.32.0.2")
}

// TestEngineFails holds that an Engine that fails to tell of a container, or to list
// them, takes no name away that was told before.
func TestEngineFails(t *testing.T) {
	for what, fails := range map[string]func(w *world){
		"to tell of one": func(w *world) { w.broken = "web-0123456789" },
		"to list all":    func(w *world) { w.noList = errors.New("internal server error") },
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t)
			_, stop := w.run()
			w.starts("web", "10.32.0.2")
			w.starts("db", "10.32.0.3")
			w.await("web", "10.32.0.2")
			w.await("db", "10.32.0.3")
			stop()
			w.set(func() { fails(w) })
			w.run()
			eventually(t, "it is asked", func() bool { return w.broken == "" || w.refusals() > 0 })
			for _, name := range []string{"db2", "db3"} { // what the first one takes away is gone with the second
				w.set(func() {
					c := w.containers["db-0123456789"]
					c.Name = name
					w.containers[c.ID] = c
				})
				w.events <- "db-0123456789"
				w.await(name, "10.32.0.3")
			}
			if got := w.found("web"); len(got) != 1 {
				t.Errorf("web is %v", got)
			}
			w.set(func() { w.broken, w.noList = "", nil })
			w.set(func() { delete(w.containers, "web-0123456789") })
			w.events <- "" // all are listed anew
			w.await("web")
		})
	}
}

// TestLost holds that what makes no sense on disk costs nothing but itself: names of
// containers are collected anew, and those that were made by hand are told as lost
// until they are made anew.
func TestLost(t *testing.T) {
	w := newWorld(t)
	w.containers["web-0123456789"] = engine.Container{ID: "web-0123456789", Name: "web", Attachments: []engine.Attachment{{Network: "net", Endpoint: "e-web"}}}
	w.announce(self, "e-web", "10.32.0.2")
	w.disk[bucket] = map[string][]byte{"e-web": []byte(`["Web"]`), "e-db": {0xff}}
	w.disk[bucketMade] = map[string][]byte{"printer ": []byte(`["192.0.2.7"]`), "scanner ": []byte(`["192.0`), "no\xffkey": []byte(`["192.0.2.9"]`)}
	n, _ := w.run()
	w.await("web", "10.32.0.2")
	w.await("printer", "192.0.2.7")
	if got, want := n.Lost(), []string{"no\xffkey", "scanner "}; !slices.Equal(got, want) {
		t.Errorf("lost are %q, want %q", got, want)
	}
	if got := len(w.disk[bucketMade]); got != 1 {
		t.Errorf("%d names are on disk", got)
	}
	if err := n.Add(Made{Name: "scanner", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.8")}}); err != nil {
		t.Fatal(err)
	}
	if got, want := n.Lost(), []string{"no\xffkey"}; !slices.Equal(got, want) {
		t.Errorf("lost are %q, want %q", got, want)
	}
}

// TestOwners holds that a name counts only with an endpoint that the same host announces,
// while that host is alive.
func TestOwners(t *testing.T) {
	w := newWorld(t)
	w.announce(other, "e1", "10.32.0.9", "fd00::9")
	w.announce(down, "e2", "10.32.0.10")
	w.announce(self, "mine", "10.32.0.1")
	host := mesh.OwnedEndpoint{Owner: other, Endpoint: mesh.Endpoint{ID: "host", Segment: segment, OfHost: true, Addrs: []netip.Addr{netip.MustParseAddr("10.32.0.11")}}}
	w.endpoints = append(w.endpoints, host)
	w.note(other, topicNames, "e1", `["web"]`)
	w.note(other, topicNames, "mine", `["web"]`) // of this host's container
	w.note(other, topicNames, "host", `["web"]`)
	w.note(other, topicNames, "e3", `["web"]`) // of nobody's
	w.note(down, topicNames, "e2", `["web"]`)
	w.note(down, topicMade, "printer ", `["192.0.2.7"]`)
	w.note(other, topicMade, "bad", `["192.0.2.7"]`)
	n := w.start()
	n.fill()
	w.await("web", "10.32.0.9", "fd00::9")
	w.await("printer", "192.0.2.7") // of a host that is down: it may be elsewhere
	list := n.List()
	if len(list) != 3 || !list[0].Made || list[0].Host != "h3" || list[1].Host != "h2" || list[1].Container != "e1" || list[1].Local {
		t.Errorf("list: %+v", list)
	}
	w.note(other, topicNames, "e1", `["web", "Web"]`)
	n.fill()
	w.await("web")
	if len(w.warnings) != 1 || !strings.Contains(w.warnings[0], "makes no sense") {
		t.Errorf("of the nonsense of one host was told %q", w.warnings)
	}
}

// TestMany holds that a host tells no more names than others take, and says so once.
func TestMany(t *testing.T) {
	w := newWorld(t)
	w.set(func() {
		for i := range mesh.MaxNotes + 2 {
			name := fmt.Sprint("c", i)
			w.containers[name] = engine.Container{ID: name, Name: name, Attachments: []engine.Attachment{{Network: "net", Endpoint: "e-" + name}}}
		}
	})
	told := func() int {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.disk[bucket])
	}
	w.run()
	eventually(t, "all that others take are told", func() bool { return told() == mesh.MaxNotes })
	w.starts("late", "10.32.0.1")
	w.set(func() { delete(w.containers, "c0"); delete(w.containers, "c1"); delete(w.containers, "c2") })
	w.events <- ""
	w.await("late", "10.32.0.1")
	if len(w.warnings) != 1 || !strings.Contains(w.warnings[0], "too many") {
		t.Errorf("told was %q", w.warnings)
	}
}

// TestMade holds that names are added and removed by hand, and stay over restarts.
func TestMade(t *testing.T) {
	w := newWorld(t)
	n, stop := w.run()
	a, b := netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("::ffff:192.0.2.8")
	if err := n.Add(Made{Name: "Printer.weave.local.", Addrs: []netip.Addr{b}}); err != nil {
		t.Fatal(err)
	}
	if err := n.Add(Made{Name: "printer", Addrs: []netip.Addr{a}}); err != nil {
		t.Fatal(err)
	}
	w.await("printer", "192.0.2.7", "192.0.2.8")
	for _, bad := range []Made{
		{Name: "two words", Addrs: []netip.Addr{a}}, {Name: "x"}, {Name: "x", Addrs: []netip.Addr{netip.IPv4Unspecified()}},
		{Name: "x", Segment: strings.Repeat("s", maxSegment+1), Addrs: []netip.Addr{a}}, {Name: "x", Addrs: slices.Repeat([]netip.Addr{a}, 2)},
	} {
		if err := n.Add(bad); err == nil {
			t.Errorf("%+v was added", bad)
		}
	}
	if err := n.Remove(Made{Name: "printer", Segment: segment}); !errors.Is(err, ErrNotHere) {
		t.Errorf("removed from another segment: %v", err)
	}
	if err := n.Remove(Made{Name: "printer", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.9")}}); !errors.Is(err, ErrNotHere) {
		t.Errorf("removed what it does not have: %v", err)
	}
	stop()
	n, _ = w.run()
	w.await("printer", "192.0.2.7", "192.0.2.8")
	if err := n.Remove(Made{Name: "printer", Addrs: []netip.Addr{a}}); err != nil {
		t.Fatal(err)
	}
	w.await("printer", "192.0.2.8")
	if err := n.Remove(Made{Name: "printer"}); err != nil {
		t.Fatal(err)
	}
	w.await("printer")
	if len(w.disk[bucketMade]) != 0 {
		t.Errorf("left on disk: %v", w.disk[bucketMade])
	}
	for i := range maxMade {
		if err := n.Add(Made{Name: fmt.Sprint("n", i), Addrs: []netip.Addr{a}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Add(Made{Name: "more", Addrs: []netip.Addr{a}}); err == nil || !strings.Contains(err.Error(), "remove others") {
		t.Errorf("one too many: %v", err)
	}
	if err := n.Add(Made{Name: "n0", Addrs: []netip.Addr{b}}); err != nil {
		t.Errorf("a further address: %v", err)
	}
}

// TestBounds holds that no container has more names than others take, and that a note
// holds them.
func TestBounds(t *testing.T) {
	var many []string
	for i := range 100 {
		many = append(many, fmt.Sprintf("%s%d.%s", strings.Repeat("a", 60), i, strings.Repeat("b", 63)))
	}
	value := encodeNames(canonicalAll(many, "weave.local"))
	if got, err := decodeNames("e", value); err != nil || len(value) > mesh.MaxNote || len(got) < 10 || got[0] != many[0] {
		t.Errorf("%d names in %d bytes, %v", len(got), len(value), err)
	}
	if encodeNames(nil) != nil {
		t.Error("a note without names")
	}
	longest := strings.Repeat("a.", maxName/2-1) + "bb"
	m := Made{Name: longest, Segment: strings.Repeat("s", maxSegment), Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.7")}}
	if err := m.check(); err != nil || len(m.key()) > 256 {
		t.Errorf("key of %d bytes, %v", len(m.key()), err)
	}
}

// FuzzNotes: what another host tells is refused, or is what this host would tell itself.
func FuzzNotes(f *testing.F) {
	f.Add("e1", []byte(`["web","shop"]`))
	f.Add("e1", []byte(`["Web"]`))
	f.Add("printer 10.32.0.0/16", []byte(`["192.0.2.7","fd00::1"]`))
	f.Add("printer ", []byte(`["::ffff:192.0.2.7"]`))
	f.Add("a..b ", []byte(`[]`))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		if all, err := decodeNames(key, value); err == nil {
			if again := canonicalAll(all, ""); !slices.Equal(again, all) || len(all) > maxNames {
				t.Errorf("names %q, which are %q", all, again)
			}
		} else if !errors.Is(err, errNoNote) {
			t.Errorf("error %v", err)
		}
		m, err := decodeMade(key, value)
		if err != nil {
			if !errors.Is(err, errNoNote) {
				t.Errorf("error %v", err)
			}
			return
		}
		if again, err := decodeMade(m.key(), marshal(m.Addrs)); err != nil || !slices.Equal(again.Addrs, m.Addrs) || again.Name != m.Name || again.Segment != m.Segment {
			t.Errorf("%+v became %+v, %v", m, again, err)
		}
	})
}
