package everywhere

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weave/mesh/id"
	"weave/plugin/engine"
)

// on tells on how many hosts a network is.
func (w *world) on(name string) (n int) {
	for _, h := range w.hosts {
		if h.named(name).ID != "" {
			n++
		}
	}
	return n
}

func (w *world) wantOn(name string, n int) {
	w.t.Helper()
	if got := w.on(name); got != n {
		w.t.Errorf("network %s is on %d hosts, want %d", name, got, n)
	}
}

// TestAppears holds that a network appears on the other hosts with all that it was
// made with, and is gone there soon after its user removed it.
func TestAppears(t *testing.T) {
	w := newWorld(t, 3)
	made := w.hosts[0].user("app", "10.32.0.0/16")
	w.pass(2 * time.Second)
	w.wantOn("app", 3)
	want := w.hosts[0].named("app")
	for _, h := range w.hosts[1:] {
		got := h.named("app")
		if got.ID = want.ID; !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	w.pass(time.Minute)
	w.wantOn("app", 3)
	delete(w.hosts[0].networks, made)
	w.pass(grace + 3*time.Second)
	w.wantOn("app", 0)
	for _, h := range w.hosts {
		if len(h.disk) > 0 || len(h.troubles) > 0 {
			t.Errorf("left on disk: %d keys; trouble: %v", len(h.disk), h.troubles)
		}
	}
}

// TestInUse holds that a network that its user removed stays, on all hosts, while a
// container is on it somewhere.
func TestInUse(t *testing.T) {
	w := newWorld(t, 3)
	made := w.hosts[0].user("app", "10.32.0.0/16")
	w.pass(2 * time.Second)
	copied := w.hosts[1].named("app").ID
	w.hosts[1].used[copied] = true
	w.pass(2 * time.Second)
	delete(w.hosts[0].networks, made)
	w.pass(time.Minute)
	w.wantOn("app", 3)
	if w.hosts[1].named("app").ID != copied {
		t.Error("the network in use was made anew")
	}
	w.hosts[1].used[copied] = false
	w.pass(grace / 2)
	w.wantOn("app", 3) // the container may only restart
	w.pass(2*grace + 3*time.Second)
	w.wantOn("app", 0)
}

// TestLeftAlone holds that a network of the same name but with other settings is not
// touched, and told of.
func TestLeftAlone(t *testing.T) {
	w := newWorld(t, 3)
	w.hosts[2].foreign = []engine.Network{{ID: "f", Name: "app", Driver: "bridge"}}
	one, two := w.hosts[0].user("app", "10.32.0.0/16"), w.hosts[1].user("app", "10.33.0.0/16")
	w.pass(time.Minute)
	if w.hosts[0].named("app").ID != one || w.hosts[1].named("app").ID != two || len(w.hosts[2].networks) > 0 {
		t.Error("a network was touched")
	}
	for i, want := range []string{
		"network app of host h2 is another one than that here: it has another subnet, 10.33.0.0/16",
		"network app of host h1 is another one than that here: it has another subnet, 10.32.0.0/16",
		"network app of host h1 is not on this host: one of that name is here, of driver bridge",
	} {
		if got := w.hosts[i].troubles["app"]; got != want {
			t.Errorf("host %d says %q, want %q", i+1, got, want)
		}
	}
	if w.hosts[2].asked > 0 {
		t.Error("the engine was asked to make a second one")
	}
	delete(w.hosts[0].networks, one)
	delete(w.hosts[1].networks, two)
	w.pass(2 * time.Second)
	for _, h := range w.hosts {
		if len(h.troubles) > 0 {
			t.Errorf("trouble is told of still: %v", h.troubles)
		}
	}
}

// TestRestart holds that nothing changes while hosts restart, also one that died
// when Docker had just made a network.
func TestRestart(t *testing.T) {
	w := newWorld(t, 3)
	w.hosts[0].user("app", "10.32.0.0/16")
	w.pass(2 * time.Second)
	copied := w.hosts[1].named("app").ID
	for range 3 {
		for _, h := range w.hosts {
			h.start()
			w.pass(time.Second)
		}
	}
	w.wantOn("app", 3)
	if w.hosts[1].named("app").ID != copied {
		t.Error("the network was made anew")
	}
	// Docker has made it, and nothing else was written down.
	h := w.hosts[2]
	h.disk = map[string][]byte{making + "app": {}}
	h.start()
	w.pass(time.Second)
	delete(w.hosts[0].networks, w.hosts[0].named("app").ID)
	w.pass(grace + 3*time.Second)
	w.wantOn("app", 0)
	// It has not, and the user makes one of that name later.
	h.disk = map[string][]byte{making + "other": {}}
	h.start()
	w.pass(time.Second)
	h.user("other", "10.34.0.0/16")
	w.pass(2 * grace)
	w.wantOn("other", 3)
}

// TestRefused holds that what the engine refuses is tried again, not too often, and
// told of until it works.
func TestRefused(t *testing.T) {
	w := newWorld(t, 2)
	w.hosts[1].refuse = errors.New("subnet overlaps")
	w.hosts[0].user("app", "10.32.0.0/16")
	w.pass(10 * time.Minute)
	if n := w.hosts[1].asked; n < 5 || n > 20 {
		t.Errorf("tried %d times in 10 minutes", n)
	}
	if got := w.hosts[1].troubles["app"]; got != "network app of host h1 is not on this host: subnet overlaps" {
		t.Errorf("trouble %q", got)
	}
	w.hosts[1].refuse = nil
	w.pass(retryLast + 2*time.Second)
	w.wantOn("app", 2)
	if len(w.hosts[1].troubles) > 0 {
		t.Errorf("trouble %v", w.hosts[1].troubles)
	}
}

// TestHostile holds that a host cannot have another make what it likes, nor without
// bound.
func TestHostile(t *testing.T) {
	w := newWorld(t, 2)
	evil := id.PeerID{0xee}
	tell := func(name, value string) { w.notes[topic+"/"+name] = map[id.PeerID][]byte{evil: []byte(value)} }
	for i, bad := range []string{
		``, `null`, `{`, `{"pools":[]}`, `{"pools":[{"subnet":""}]}`, `{"pools":[{"subnet":"0.0.0.0/0"}]}`, `{"pools":[{"subnet":"10.1.2.3/16"}]}`,
		`{"pools":[{"subnet":"10.1.0.0/16","range":"10.2.0.0/24"}]}`, `{"pools":[{"subnet":"10.1.0.0/16","gateway":"10.2.0.1"}]}`,
		`{"pools":[{"subnet":"10.1.0.0/16","aux":{"x":"10.2.0.1"}}]}`, `{"pools":[{"subnet":"10.1.0.0/16"},{"subnet":"10.2.0.0/16"},{"subnet":"10.3.0.0/16"}]}`,
	} {
		tell(fmt.Sprintf("bad%d", i), bad)
	}
	for _, name := range []string{"", "-x", "a/b", "a b", strings.Repeat("x", 201)} {
		tell(name, `{"pools":[{"subnet":"10.1.0.0/16"}]}`)
	}
	w.pass(3 * time.Second)
	if n := w.hosts[0].asked; n > 0 {
		t.Errorf("%d networks were made of what makes no sense", n)
	}
	for i := range 2 * maxMade {
		tell(fmt.Sprintf("n%d", i), fmt.Sprintf(`{"pools":[{"subnet":"10.%d.%d.0/24"}]}`, i/256, i%256))
	}
	w.pass(3 * time.Second)
	if n := len(w.hosts[0].networks); n != maxMade {
		t.Errorf("%d networks were made, want %d", n, maxMade)
	}
}

// TestTooMuch holds that a network whose labels do not fit a note is told of.
func TestTooMuch(t *testing.T) {
	w := newWorld(t, 2)
	id := w.hosts[0].user("app", "10.32.0.0/16")
	w.hosts[0].networks[id].Labels["long"] = strings.Repeat("x", 5000)
	w.pass(3 * grace)
	w.wantOn("app", 1)
	if got := w.hosts[0].troubles["app"]; !strings.HasPrefix(got, "network app does not appear on other hosts: its options and labels take 5") {
		t.Errorf("trouble %q", got)
	}
}

// TestSettles draws what users do on some hosts at random. Once they do no more,
// exactly the networks that a user has or a container is on are on all hosts, but
// where users made them different.
func TestSettles(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		w := newWorld(t, rapid.IntRange(2, 4).Draw(r, "hosts"))
		names := []string{"a", "b", "c"}
		for range rapid.IntRange(1, 30).Draw(r, "steps") {
			h := w.hosts[rapid.IntRange(0, len(w.hosts)-1).Draw(r, "host")]
			i := rapid.IntRange(0, len(names)-1).Draw(r, "name")
			there := h.named(names[i])
			switch rapid.IntRange(0, 4).Draw(r, "what") {
			case 0:
				if there.ID == "" {
					h.user(names[i], fmt.Sprintf("10.%d.0.0/16", i))
				}
			case 1:
				_ = h.Remove(context.Background(), there.ID)
			case 2:
				h.used[there.ID] = there.ID != ""
			case 3:
				h.used[there.ID] = false
			case 4:
				h.start()
			}
			w.pass(time.Duration(rapid.IntRange(0, 15).Draw(r, "seconds")) * time.Second)
		}
		w.pass(4 * grace)
		for _, name := range names {
			wanted := false
			for _, h := range w.hosts {
				n := h.named(name)
				wanted = wanted || n.ID != "" && (h.used[n.ID] || !h.known[n.ID].Made)
			}
			want := 0
			if wanted {
				want = len(w.hosts)
			}
			if got := w.on(name); got != want {
				r.Fatalf("network %s is on %d hosts, want %d", name, got, want)
			}
		}
		for _, h := range w.hosts {
			if len(h.disk) != len(h.networks) || len(h.making) > 0 {
				r.Fatalf("%d networks, and on disk %d", len(h.networks), len(h.disk))
			}
		}
	})
}

// FuzzDecode holds that what is taken says the same when it is passed on.
func FuzzDecode(f *testing.F) {
	f.Add("app", []byte(`{"internal":true,"ipv6":true,"options":{"a":"b"},"labels":{"c":"d"},"pools":[{"subnet":"10.1.0.0/16","range":"10.1.2.0/24","gateway":"10.1.0.1","aux":{"x":"10.1.0.2"}},{"subnet":"fd00::/64"}],"made":true}`))
	f.Fuzz(func(t *testing.T, name string, value []byte) {
		r, err := decode(name, value)
		if err != nil {
			return
		}
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		back, err := decode(name, again)
		if err != nil || r.differs(back) != "" || back.Made != r.Made || !maps.Equal(r.Labels, back.Labels) {
			t.Errorf("%+v became %+v: %v", r, back, err)
		}
	})
}
