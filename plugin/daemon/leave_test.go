package daemon

import (
	"context"
	"errors"
	"slices"
	"sync"
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

	cluster sync.Mutex
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
		l.departures = newDepartures(l.living, func(_ context.Context, p id.PeerID) error {
			l.cluster.Lock()
			defer l.cluster.Unlock()
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

func (l *leavers) living() []id.PeerID {
	l.cluster.Lock()
	defer l.cluster.Unlock()
	return slices.Clone(l.alive)
}

// become changes the cluster, and lets time pass.
func (l *leavers) become(alive []id.PeerID, err error, after time.Duration) (tries int, removed []id.PeerID) {
	l.cluster.Lock()
	l.alive, l.err = alive, err
	l.cluster.Unlock()
	time.Sleep(after)
	l.cluster.Lock()
	defer l.cluster.Unlock()
	return l.tries, slices.Clone(l.removed)
}

func TestDeparture(t *testing.T) {
	a, b := id.PeerID{1}, id.PeerID{2}
	leaving(t, func(l *leavers) {
		l.become([]id.PeerID{a, b}, nil, time.Minute)
		must(t, l.add(a))
		if tries, _ := l.become([]id.PeerID{a, b}, nil, 10*departuresEvery); tries != 0 {
			t.Error("removed although it answers")
		}
		if tries, _ := l.become([]id.PeerID{b}, errors.New("no majority"), 10*departuresEvery); tries < 5 {
			t.Errorf("tried %d times", tries)
		}
		if _, removed := l.become([]id.PeerID{b}, nil, 2*departuresEvery); !slices.Equal(removed, []id.PeerID{a}) {
			t.Errorf("removed %v", removed)
		}
		if _, removed := l.become([]id.PeerID{b}, nil, time.Hour); len(removed) != 1 {
			t.Errorf("removed again: %v", removed)
		}
	})
}

// TestDepartureLapses: a host that has changed its mind is not removed when it
// is switched off another day.
func TestDepartureLapses(t *testing.T) {
	a := id.PeerID{1}
	leaving(t, func(l *leavers) {
		l.become([]id.PeerID{a}, nil, time.Minute)
		must(t, l.add(a))
		l.become([]id.PeerID{a}, nil, departureLimit+2*departuresEvery)
		if tries, _ := l.become(nil, nil, time.Hour); tries != 0 {
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
