package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"weave/driver/host"
	"weave/mesh"
	"weave/mesh/id"
	"weave/mesh/transport"
	"weave/plugin/control"
)

// seenFrom is what a host that gets through to this one by its first address says.
func seenFrom(name string) surveyed {
	return surveyed{host: name, view: view{Version: "1.2", Tried: []tried{{Address: netip.MustParseAddrPort("192.0.2.1:6783")}}}}
}

// fit is a host of which the doctor says that it is well.
func fit() checkup {
	f := healthy()
	f.status.Version = "1.2"
	f.status.Peers[0].PathMTU = 1500
	f.status.IPAM[0].Free = 5
	f.status.Segments = []control.Segment{{Key: "10.1.0.0/16", Subnet: netip.MustParsePrefix("10.1.0.0/16"), MTU: 1390}}
	right := seenFrom("right")
	right.ahead, right.margin = 7*time.Second, 3*time.Second // which may be nothing
	return checkup{
		findings: f, allocRange: netip.MustParsePrefix("10.32.0.0/12"), survey: []surveyed{right},
		routes: []host.Route{
			{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Link: "eth0"}, {Prefix: netip.MustParsePrefix("192.0.2.0/24"), Link: "eth0"},
			{Prefix: netip.MustParsePrefix("10.1.0.0/16"), Link: "wv0001"},
		},
	}
}

func TestDoctorFindsAllWell(t *testing.T) {
	names := map[string]bool{}
	c := fit()
	for _, x := range c.all() {
		if names[x.Name] = true; x.Verdict != control.OK || x.Found == "" || x.Do != "" {
			t.Errorf("%+v", x)
		}
	}
	for _, want := range []string{
		"settings", "work", "firewall", "segments", "port", "addresses", "pools", "removals", "password", "discovery", "peers",
		"reachable", "path MTU", "clock", "versions", "routes", "leases",
	} {
		if !names[want] {
			t.Errorf("nothing is said of %s", want)
		}
	}
}

// TestDoctor holds for each thing that may be wrong that it is named, with the way
// out, and that nothing else is.
func TestDoctor(t *testing.T) {
	blocked := []tried{{Address: netip.MustParseAddrPort("192.0.2.1:6783"), UDP: "no answer"}, {Address: netip.MustParseAddrPort("[2001:db8::1]:6783"), UDP: "late", TCP: "refused"}}
	for name, test := range map[string]struct {
		change  func(*checkup)
		check   string
		verdict control.Verdict
		words   []string // of what was found and the way out
	}{
		"firewall": {func(c *checkup) { c.blocked = []host.Blocked{{Family: "IPv4", Command: "iptables-legacy -I"}} },
			"firewall", control.Failed, []string{"IPv4 firewall", "-> run `iptables-legacy -I`"}},
		"UDP blocked": {func(c *checkup) { c.survey[0].view.Tried = blocked }, "reachable", control.Warned,
			[]string{"host right gets through to this one by TCP only, not by UDP (192.0.2.1:6783: no answer; [2001:db8::1]:6783: late)", "-> let in UDP to port 6783; where it is blocked on purpose"}},
		"TCP blocked": {func(c *checkup) { c.survey[0].view.Tried[0].TCP = "refused" }, "reachable", control.Failed, []string{"by TCP", "-> let in TCP"}},
		"NAT": {func(c *checkup) { c.survey[0].view.Tried, c.status.NAT = blocked, "cone" }, "reachable", control.Warned,
			[]string{"by UDP", "-> if hosts are to reach this one by themselves, forward port 6783"}},
		"old peer": {func(c *checkup) {
			c.survey = append(c.survey, surveyed{host: "old", err: fmt.Errorf("ask: %w: no", mesh.ErrRefused)})
		}, "reachable", control.Undecided, []string{"host old", "cannot be asked", "-> run the same version"}},
		"silent peer": {func(c *checkup) { c.survey = append(c.survey, surveyed{host: "old", err: errors.New("late")}) },
			"reachable", control.Undecided, []string{"host old does not say", "late"}},
		"no discovery": {func(c *checkup) { c.survey = append(c.survey, seenFrom("shy")); c.survey[1].view.Tried = nil },
			"reachable", control.Undecided, []string{"host shy tries no address", "WEAVE_DISCOVER"}},
		"many": {func(c *checkup) { c.left = 7 }, "reachable", control.Undecided, []string{"7 more hosts"}},
		"narrow path": {func(c *checkup) { c.status.Peers[0].PathMTU = 1499 }, "path MTU", control.Warned,
			[]string{"to host right takes 1499 bytes", "may send 1390, 1500 with", "-> set WEAVE_MTU=1389"}},
		"no path": {func(c *checkup) { c.status.Peers[0].PathMTU = 0 }, "path MTU", control.Undecided, []string{"no host"}},
		"clock ahead": {func(c *checkup) { c.survey[0].ahead, c.survey[0].margin = 2*time.Minute, time.Second },
			"clock", control.Warned, []string{"host right is 2m0s ahead of this one's", "-> have both hosts"}},
		"clock behind": {func(c *checkup) { c.survey[0].ahead = -9 * time.Second }, "clock", control.Warned, []string{"9s behind"}},
		"version":      {func(c *checkup) { c.survey[0].view.Version = "1.3" }, "versions", control.Warned, []string{"host right runs 1.3, this one 1.2"}},
		"refusal": {func(c *checkup) {
			c.status.Refusals = []control.Refusal{{Address: addr("192.0.2.9"), Why: "password differs", Do: "do it"}}
		}, "password", control.Warned, []string{"192.0.2.9: password differs", "-> do it"}},
		"other refusal": {func(c *checkup) {
			c.status.Refusals = []control.Refusal{{Address: addr("192.0.2.9"), Why: "other protocol version", Do: "do it"}}
		}, "refusals", control.Warned, []string{"192.0.2.9: other"}},
		"no password": {func(c *checkup) { c.status.Password = false }, "password", control.Warned, []string{"no password is set"}},
		"route to a network": {func(c *checkup) {
			c.routes = append(c.routes, host.Route{Prefix: netip.MustParsePrefix("10.1.2.0/24"), Link: "tun0"})
		}, "routes", control.Warned, []string{"10.1.2.0/24 by tun0 overlaps 10.1.0.0/16", "--subnet"}},
		"route to the range": {func(c *checkup) {
			c.routes = append(c.routes, host.Route{Prefix: netip.MustParsePrefix("10.40.0.0/16")})
		}, "routes", control.Warned, []string{"10.40.0.0/16 overlaps 10.32.0.0/12", "WEAVE_IPALLOC_RANGE"}},
		"no routes": {func(c *checkup) { c.routesErr = errors.New("no netlink") }, "routes", control.Undecided, []string{"no netlink"}},
		"leak":      {func(c *checkup) { c.leaked = 3 }, "leases", control.Warned, []string{"3 addresses", "log"}},
		"no Docker": {func(c *checkup) { c.leakedErr = errors.New("no answer") }, "leases", control.Undecided, []string{"no answer"}},
		"twice": {func(c *checkup) { c.status.Endpoints[1].Segment = "a" }, "addresses", control.Failed,
			[]string{"10.1.0.1", "used by web on left"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := fit()
			test.change(&c)
			var bad []control.Check
			for _, x := range c.all() {
				if x.Verdict != control.OK {
					bad = append(bad, x)
				} else if x.Name == test.check && test.verdict != control.Undecided {
					t.Errorf("it is well, too: %+v", x)
				}
			}
			if len(bad) != 1 || bad[0].Name != test.check || bad[0].Verdict != test.verdict {
				t.Fatalf("found %+v", bad)
			}
			text := bad[0].Found + " -> " + bad[0].Do
			for _, w := range test.words {
				if !strings.Contains(text, w) {
					t.Errorf("%q lacks %q", text, w)
				}
			}
		})
	}
}

// TestDoctorAlone: who has no others hears that they were not asked.
func TestDoctorAlone(t *testing.T) {
	c := fit()
	c.survey, c.status.Peers = nil, nil
	got := map[string]control.Verdict{}
	for _, x := range c.all() {
		got[x.Name] = x.Verdict
	}
	if got["reachable"] != control.Undecided || got["clock"] != control.Undecided || got["path MTU"] != control.Undecided || got["peers"] != control.OK {
		t.Errorf("%v", got)
	}
}

// TestDoctorEarly: while no work is done there is what keeps it from it.
func TestDoctorEarly(t *testing.T) {
	c := checkup{findings: findings{status: &control.Status{}, trouble: map[string]error{"start": errors.New("no disk")}}}
	if got := c.early(); len(got) != 1 || got[0].Verdict != control.Failed || !strings.Contains(got[0].Found, "cannot start: no disk") {
		t.Errorf("%+v", got)
	}
	c = checkup{findings: findings{status: &control.Status{}}}
	if got := c.early(); len(got) != 1 || got[0].Verdict != control.Undecided {
		t.Errorf("%+v", got)
	}
}

func peerID(n byte) id.PeerID { return id.PeerID{n} }

// TestExaminer: who asks is tried, once a second, and few at a time.
func TestExaminer(t *testing.T) {
	var tries, under, most atomic.Int32
	entered, release := make(chan struct{}, 100), make(chan struct{})
	e := newExaminer("1.2", func(_ context.Context, p id.PeerID) []transport.Tried {
		tries.Add(1)
		most.Store(max(most.Load(), under.Add(1)))
		entered <- struct{}{}
		<-release
		under.Add(-1)
		return []transport.Tried{{Addr: netip.AddrPortFrom(addr("192.0.2.1"), uint16(p[0])), UDP: errors.New(strings.Repeat("x", 1000))}}
	})
	type result struct {
		b   []byte
		err error
	}
	results := make(chan result, 100)
	ask := func(ctx context.Context, n byte) { b, err := e.answer(ctx, peerID(n)); results <- result{b, err} }
	for n := range byte(maxTrying) {
		go ask(t.Context(), n+1)
		<-entered
	}
	hurried, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := e.answer(hurried, peerID(99)); err == nil {
		t.Error("one more was tried at once")
	}
	close(release)
	for range maxTrying {
		r := <-results
		v, err := parseView(r.b)
		if r.err != nil || err != nil || v.Version != "1.2" || len(v.Tried) != 1 || len(v.Tried[0].UDP) != maxFailureLen || v.Tried[0].TCP != "" {
			t.Errorf("%s, %v, %v", r.b, r.err, err)
		}
	}
	if _, err := e.answer(t.Context(), peerID(1)); err != nil || tries.Load() != maxTrying || most.Load() != maxTrying {
		t.Errorf("tried %d times, %d at once, %v", tries.Load(), most.Load(), err)
	}
	e.last[peerID(1)] = lastTries{at: time.Now().Add(-2 * trustTries)}
	if _, err := e.answer(t.Context(), peerID(1)); err != nil || tries.Load() != maxTrying+1 {
		t.Errorf("tried %d times, %v", tries.Load(), err)
	}
	for p := range e.last {
		e.last[p] = lastTries{at: time.Now().Add(-2 * trustTries)}
	}
	if _, err := e.answer(t.Context(), peerID(50)); err != nil || len(e.last) != 1 {
		t.Errorf("%d results are kept, %v", len(e.last), err)
	}
}

func TestParseView(t *testing.T) {
	good := view{Version: "1", Came: time.Now(), Left: time.Now(), Tried: []tried{{}}}
	for name, change := range map[string]func(*view){
		"many":    func(v *view) { v.Tried = make([]tried, maxViewTried+1) },
		"version": func(v *view) { v.Version = strings.Repeat("x", maxVersionLen+1) },
		"no time": func(v *view) { v.Came = time.Time{} },
		"order":   func(v *view) { v.Left = v.Came.Add(-1) },
		"long":    func(v *view) { v.Tried = []tried{{TCP: strings.Repeat("x", maxFailureLen+1)}} },
		"longer":  func(v *view) { v.Version = strings.Repeat("x", maxViewLen) },
	} {
		v := good
		change(&v)
		b, err := json.Marshal(v)
		must(t, err)
		if _, err := parseView(b); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	b, err := json.Marshal(good)
	must(t, err)
	later := strings.Replace(string(b), "{", `{"ofTomorrow":1,`, 1)
	if _, err := parseView([]byte(later)); err != nil {
		t.Errorf("of a later version: %v", err)
	}
	if _, err := parseView([]byte(`"no view"`)); err == nil {
		t.Error("a string was taken")
	}
}

// fakeMesh has peers that answer with what is theirs, and no others.
type fakeMesh struct {
	answers map[id.PeerID][]byte
	alive   []id.PeerID
}

func (f fakeMesh) Alive() []id.PeerID { return f.alive }

func (f fakeMesh) Ask(_ context.Context, p id.PeerID, request []byte) ([]byte, error) {
	b, ok := f.answers[p]
	if !ok || string(request) != string(examineRequest) {
		return nil, mesh.ErrRefused
	}
	return b, nil
}

func (f fakeMesh) Nickname(p id.PeerID) string { return fmt.Sprintf("h%d", p[0]) }

func TestSurvey(t *testing.T) {
	late := time.Now().Add(-time.Hour)
	b, err := json.Marshal(view{Version: "1", Came: late, Left: late})
	must(t, err)
	f := fakeMesh{map[id.PeerID][]byte{peerID(2): b, peerID(3): []byte("rubbish")}, []id.PeerID{peerID(3), peerID(1), peerID(2)}}
	all, left := survey(t.Context(), f)
	if left != 0 || len(all) != 3 || all[0].host != "h1" || !errors.Is(all[0].err, mesh.ErrRefused) || all[1].err != nil || all[2].err == nil {
		t.Fatalf("%+v", all)
	}
	if ahead := all[1].ahead; ahead > -59*time.Minute || ahead < -61*time.Minute {
		t.Errorf("an hour behind, it says %s", ahead)
	}
	f.alive = make([]id.PeerID, maxSurveyed+3)
	if all, left := survey(t.Context(), f); left != 3 || len(all) != maxSurveyed {
		t.Errorf("asked %d, left %d", len(all), left)
	}
}

func TestSkew(t *testing.T) {
	at := func(s float64) time.Time { return time.Unix(1000, 0).Add(time.Duration(s * float64(time.Second))) }
	ahead, margin := skew(at(0), at(10.5), at(12.5), at(3)) // 10 s ahead, half a second each way
	if ahead != 10*time.Second || margin != time.Second/2 {
		t.Errorf("%s, give or take %s", ahead, margin)
	}
}

// TestDoctorAllBlocked: without TCP, a closed UDP port is no choice of the site's.
func TestDoctorAllBlocked(t *testing.T) {
	c := &checkup{findings: findings{status: &control.Status{Port: 6783}}, survey: []surveyed{{host: "right", view: view{Tried: []tried{
		{Address: netip.MustParseAddrPort("192.0.2.1:6783"), UDP: "no answer", TCP: "refused"},
	}}}}}
	c.ports()
	if len(c.checks) != 2 || c.checks[0].Verdict != control.Failed || c.checks[1].Verdict != control.Failed {
		t.Errorf("found %+v", c.checks)
	}
}
