package mesh

import (
	"testing"
	"time"
)

// TestLabLoss holds that the loss that is told of a link is about what its cable
// loses, of pings and of pongs, and that a link beside it has none.
func TestLabLoss(t *testing.T) {
	t.Parallel()
	const (
		each            = 0.1                      // of frames on the cable, either way
		want            = 1 - (1-each)*(1-each)    // of pings
		enough          = 20                       // pings of each side of two paths: the deviation of their sum is 4 %
		lowest, highest = want - 0.16, want + 0.22 // four, and five of that
	)
	l := newHardLab(t)
	hosts := l.addHosts(3)
	must(t, hosts[1].SetLoss(each)) // so that no ping is of before
	for i, h := range hosts {
		if i == 0 {
			l.start(h)
		} else {
			l.start(h, hosts[0].IP4())
		}
	}
	for i, c := range l.boxes { // pings are frequent where frames go
		defer c.talk(l.boxes[(i+1)%len(l.boxes)]).end(t)
	}
	a, b, c := l.hosts[0], l.hosts[1], l.hosts[2]
	for deadline := time.Now().Add(4 * time.Minute); ; time.Sleep(time.Second) {
		lost, of, least := 0, 0, enough
		for _, p := range []peerReport{a.peer(b), b.peer(a), b.peer(c), c.peer(b)} {
			lost, of, least = lost+p.LostPings, of+p.Pings, min(least, p.Pings)
		}
		loss := float64(lost) / float64(max(of, 1))
		if least == enough {
			t.Logf("%d of %d pings are lost: %.2f, want %.2f", lost, of, loss, want)
			if loss < lowest || loss > highest {
				t.Errorf("loss %.2f, want %.2f", loss, want)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no path has lasted for %d pings: %d of %d are lost", enough, lost, of)
		}
	}
	if p := a.peer(c); p.Pings < enough/2 || p.LostPings > 0 {
		t.Errorf("beside it %d of %d are lost", p.LostPings, p.Pings)
	}
}
