package daemon

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"

	"weave/mesh/id"
)

// leavers is a departures that runs under virtual time, and the cluster that it
// sees.
type leavers struct {
	*departures
	alive   []id.PeerID
	removed []id.PeerID
	err     error // of removing
	tries   int
}

// leaving runs f with a departures that ends with it.
func leaving(t *testing.T, f func(l *leavers)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		log, _ := test.NewNullLogger()
		l := &leavers{}
		l.departures = newDepartures(func() []id.PeerID { return slices.Clone(l.alive) }, func(_ context.Context, p id.PeerID) error {
			if l.tries++; l.err == nil {
				l.removed = append(l.removed, p)
			}
			return l.err
		}, logrus.NewEntry(log))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- l.run(ctx) }()
		f(l)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// after lets time pass.
func (l *leavers) after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestDeparture(t *testing.T) {
	a, b := id.PeerID{1}, id.PeerID{2}
	leaving(t, func(l *leavers) {
		l.alive = []id.PeerID{a, b}
		must(t, l.add(a))
		l.after(10 * departuresEvery)
		if l.tries != 0 {
			t.Error("removed although it answers")
		}
		l.alive, l.err = []id.PeerID{b}, errors.New("no majority")
		l.after(10 * departuresEvery)
		if l.tries < 5 {
			t.Errorf("tried %d times", l.tries)
		}
		l.err = nil
		l.after(2 * departuresEvery)
		if !slices.Equal(l.removed, []id.PeerID{a}) {
			t.Errorf("removed %v", l.removed)
		}
		l.after(time.Hour)
		if len(l.removed) != 1 {
			t.Errorf("removed again: %v", l.removed)
		}
	})
}

// TestDepartureLapses: a host that has changed its mind is not removed when it
// is switched off another day.
func TestDepartureLapses(t *testing.T) {
	a := id.PeerID{1}
	leaving(t, func(l *leavers) {
		l.alive = []id.PeerID{a}
		must(t, l.add(a))
		l.after(departureLimit + 2*departuresEvery)
		l.alive = nil
		l.after(time.Hour)
		if l.tries != 0 {
			t.Error("removed")
		}
	})
}

func TestDeparturesAreBounded(t *testing.T) {
	l := newDepartures(nil, nil, logrus.NewEntry(logrus.New()))
	l.log.Logger.SetLevel(logrus.PanicLevel)
	for i := range maxDepartures {
		must(t, l.add(id.PeerID{byte(i), byte(i >> 8), 1}))
	}
	if err := l.add(id.PeerID{0, 0, 1}); err != nil {
		t.Errorf("again: %v", err)
	}
	if err := l.add(id.PeerID{9, 9, 9}); err == nil {
		t.Error("one too many")
	}
}
