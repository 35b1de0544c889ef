package beat

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"weave/mesh/id"
)

var (
	start = time.Unix(1_700_000_000, 0)
	alice = id.PeerID{1, 2, 3, 4, 5, 6}
	bob   = id.PeerID{11, 12, 13, 14, 15, 16}
)

// lane is a path with a far end, under a clock of its own.
type lane struct {
	*Path
	now     time.Time
	heard   Report
	heardAt time.Time
	told    Report
	probes  int
	reports int
	delay   time.Duration
	cut     bool // no probe arrives
	narrow  bool // no full probe arrives
	dead    bool // the peer reports nothing
	falls   int
	flights []flight
}

type flight struct {
	Probe
	at time.Time
}

func newLane(up bool) *lane { return &lane{Path: New(1000, up, start), now: start} }

// step is one interval: a probe, and a report half an interval later.
func (l *lane) step() {
	p, due := l.Probe(l.now)
	if due {
		l.probes++
	}
	if due && !l.cut && (!l.narrow || !p.Full) {
		l.flights = append(l.flights, flight{p, l.now.Add(l.delay)})
	}
	l.now = l.now.Add(Interval / 2)
	for len(l.flights) > 0 && !l.flights[0].at.After(l.now) {
		p := l.flights[0]
		l.flights = l.flights[1:]
		l.heardAt = l.now
		if l.heard.Any = p.Seq; p.Full {
			l.heard.Full = p.Seq
		}
	}
	if !l.dead && (l.heard != l.told || l.now.Sub(l.heardAt) >= Overdue) {
		l.told = l.heard
		l.reports++
		was := l.Up()
		l.Report(l.now, l.heard)
		if was && !l.Up() {
			l.falls++
		}
	}
	l.now = l.now.Add(Interval / 2)
}

func (l *lane) run(d time.Duration) {
	for end := l.now.Add(d); l.now.Before(end); {
		l.step()
	}
}

// until steps until the path is up, or down, and tells how long that took.
func (l *lane) until(t *testing.T, up bool) time.Duration {
	t.Helper()
	began := l.now
	for l.Up() != up {
		if l.now.Sub(began) > time.Hour {
			t.Fatalf("not within an hour: up = %v", up)
		}
		l.step()
	}
	return l.now.Sub(began)
}

func TestPathIsProven(t *testing.T) {
	l := newLane(false)
	if l.State() != Unproven {
		t.Errorf("state %d at first", l.State())
	}
	if took := l.until(t, true); took > 2*time.Second {
		t.Errorf("took %s", took)
	}
	l.run(time.Minute)
	if !l.Up() {
		t.Error("did not stay up")
	}
}

func TestCutIsNoticed(t *testing.T) {
	l := newLane(false)
	l.until(t, true)
	l.cut = true
	if took := l.until(t, false); took > 3*time.Second {
		t.Errorf("took %s", took)
	}
	if l.State() != Silent {
		t.Errorf("state %d, want Silent", l.State())
	}
	l.run(time.Minute)
	if l.Up() {
		t.Fatal("up again over a path that is cut")
	}
	l.cut = false
	for range 4 {
		l.step()
	}
	if l.Up() || l.State() != Back {
		t.Errorf("a few reports and the path is %d", l.State())
	}
	if took := l.until(t, true); took < 3*time.Second || took > 7*time.Second {
		t.Errorf("back after %s", took)
	}
}

// TestSteadyPathIsCheap holds that a path that has been up for long costs a third,
// and that it is given up as fast as any, whenever it is cut.
func TestSteadyPathIsCheap(t *testing.T) {
	l := newLane(false)
	l.until(t, true)
	l.run(settled)
	l.probes, l.reports = 0, 0
	l.run(2 * time.Minute)
	const want = int(2 * time.Minute / Interval / steadyEvery)
	if l.probes > want+1 || l.reports > want+1 || l.falls > 0 {
		t.Errorf("%d probes and %d reports, want %d; %d falls", l.probes, l.reports, want, l.falls)
	}
	for phase := range time.Duration(2 * steadyEvery) {
		l := newLane(true)
		l.run(calm + phase*Interval)
		l.cut = true
		if took := l.until(t, false); took >= 3*time.Second {
			t.Errorf("cut in interval %d it takes %s", phase, took)
		}
		l = newLane(true)
		l.run(calm + phase*Interval)
		l.narrow = true
		if took := l.until(t, false); took > 10*time.Second {
			t.Errorf("for long frames it takes %s", took)
		}
	}
}

// TestUnsteadyPathIsLeftAlone holds that each fall makes the way back longer,
// up to a bound, and that a long good time forgives.
func TestUnsteadyPathIsLeftAlone(t *testing.T) {
	l := newLane(false)
	l.until(t, true)
	var took time.Duration
	for range 8 {
		l.cut = true
		l.until(t, false)
		l.cut = false
		next := l.until(t, true)
		if next < took {
			t.Errorf("back after %s, before after %s", next, took)
		}
		took = next
	}
	if took < 50*time.Second || took > 70*time.Second {
		t.Errorf("in the end it takes %s", took)
	}
	l.run(calm)
	l.cut = true
	l.until(t, false)
	l.cut = false
	if again := l.until(t, true); again > 7*time.Second {
		t.Errorf("not forgiven: back after %s", again)
	}
}

// TestPeerThatSaysNothing holds that a peer whose plugin is down, or which we
// cannot hear, does not lose the path that its kernel serves; and that its first
// words after that are no failures.
func TestPeerThatSaysNothing(t *testing.T) {
	l := newLane(false)
	l.until(t, true)
	l.dead = true
	l.run(time.Minute)
	l.dead = false
	l.now = l.now.Add(Interval / 2)
	first := map[string]Report{
		"nothing":       {},
		"a short probe": {Any: l.sent[(l.count-1)%remembered].Seq}, // and full ones not yet
	}
	for name, r := range first {
		l, path := *l, *l.Path
		l.Path = &path
		l.heard = r // a new run of it
		l.Report(l.now, r)
		fell := !l.Up()
		l.run(10 * time.Second)
		if fell || !l.Up() || l.falls > 0 {
			t.Errorf("after it heard %s the path fell %d times, state %d", name, l.falls, l.State())
		}
	}
}

func TestAdoptedPath(t *testing.T) {
	l := newLane(true)
	l.run(10 * time.Second)
	if l.falls > 0 {
		t.Error("a path that was up fell at our start")
	}
	l = newLane(true)
	l.cut = true
	if took := l.until(t, false); took > 3*time.Second {
		t.Errorf("took %s", took)
	}
}

func TestShortFramesAreNotEnough(t *testing.T) {
	l := newLane(false)
	l.narrow = true
	l.run(time.Minute)
	if l.Up() || l.State() != Cut {
		t.Errorf("state %d", l.State())
	}
	l = newLane(false)
	l.until(t, true)
	l.run(20 * time.Second)
	l.narrow = true
	if took := l.until(t, false); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
	if l.State() != Cut {
		t.Errorf("state %d, want Cut", l.State())
	}
}

func TestLongWay(t *testing.T) {
	l := newLane(false)
	l.delay = 300 * time.Millisecond
	l.until(t, true)
	l.run(time.Minute)
	if l.falls > 0 {
		t.Error("the path fell for a long way's sake")
	}
}

func TestLuckyGuessesAndOldNumbers(t *testing.T) {
	p := New(1<<60, false, start)
	now := start
	old, _ := p.Probe(now)
	for i := range 50 {
		now = now.Add(Interval)
		p.Probe(now)
		r := Report{Any: uint64(i), Full: uint64(i)}
		if i > 5 {
			r = Report{Any: old.Seq, Full: old.Seq}
		}
		p.Report(now, r)
	}
	if p.Up() {
		t.Error("up by numbers that prove nothing")
	}
}

// TestSomeLoss holds that one probe in ten may be lost for hours.
func TestSomeLoss(t *testing.T) {
	dice := rand.New(rand.NewPCG(1, 2))
	l := newLane(false)
	l.until(t, true)
	for range 20_000 {
		l.cut = dice.IntN(10) == 0
		l.step()
	}
	if l.falls > 0 {
		t.Fatalf("fell %d times", l.falls)
	}
}

func TestZeroIsNoNumber(t *testing.T) {
	p := New(^uint64(0), false, start)
	a, _ := p.Probe(start)
	if b, _ := p.Probe(start); a.Seq != ^uint64(0) || b.Seq != 1 {
		t.Errorf("probes %d and %d", a.Seq, b.Seq)
	}
}

func TestFrames(t *testing.T) {
	short := AppendProbe(nil, Probe{Seq: 0x0102030405060708}, alice, bob, 1400)
	const golden = "0a0b0c0d0e0f" + "0a0102030405" + "88b5" + "77766231" + "00" + "0102030405060708" + "01020304050600000000000000000000"
	if got := hex.EncodeToString(short); got != golden || len(short) != ProbeLen {
		t.Errorf("probe of %d bytes\n%s, want\n%s", len(short), got, golden)
	}
	full := AppendProbe(nil, Probe{Seq: 7, Full: true}, alice, bob, 1400)
	if len(full) != 1400 || len(AppendProbe(nil, Probe{Full: true}, alice, bob, 10)) != ProbeLen {
		t.Errorf("full probe of %d bytes", len(full))
	}
	from, p, err := ParseProbe(full, bob)
	if err != nil || from != alice || p != (Probe{Seq: 7, Full: true}) {
		t.Errorf("read back %v, %+v, %v", from, p, err)
	}
	for name, bad := range map[string]func(b []byte) []byte{
		"to another": func(b []byte) []byte { b[5]++; return b },
		"cut off":    func(b []byte) []byte { return b[:ProbeLen-1] },
		"other type": func(b []byte) []byte { b[12] = 8; return b },
		"no magic":   func(b []byte) []byte { b[14] = 0; return b },
		"from another than it says": func(b []byte) []byte {
			b[11]++
			return b
		},
		"empty": func([]byte) []byte { return nil },
	} {
		if _, _, err := ParseProbe(bad(append([]byte(nil), short...)), bob); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReports(t *testing.T) {
	b := AppendReport(nil, Report{Any: 5, Full: 4})
	for _, in := range [][]byte{b, append(b, 1, 2, 3)} {
		if r, err := ParseReport(in); err != nil || r != (Report{5, 4}) || len(b) != ReportLen {
			t.Errorf("read back %+v, %v", r, err)
		}
	}
	if _, err := ParseReport(b[:15]); !errors.Is(err, ErrMalformed) {
		t.Errorf("short report: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(AppendProbe(nil, Probe{Seq: 1, Full: true}, alice, bob, 100))
	f.Add(AppendReport(nil, Report{Any: 5, Full: 4}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if from, p, err := ParseProbe(b, bob); err == nil {
			again, q, err := ParseProbe(AppendProbe(nil, p, from, bob, len(b)), bob)
			if err != nil || again != from || q != p || MAC(from) != [6]byte(b[6:12]) {
				t.Errorf("%+v from %v became %+v from %v, %v", p, from, q, again, err)
			}
		}
		if r, err := ParseReport(b); err == nil && !bytes.HasPrefix(b, AppendReport(nil, r)) {
			t.Errorf("%x was read as %+v", b, r)
		}
	})
}
