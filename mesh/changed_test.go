package mesh

import (
	"testing"
	"time"
)

// TestChanged: who wants to know hears of notes and endpoints of any host, and of hosts
// that come and go; not of the rest.
func TestChanged(t *testing.T) {
	t.Parallel()
	rung := make(chan struct{}, 1)
	cfg := configure(t, "127.0.49.101")
	cfg.Changed = func() {
		select {
		case rung <- struct{}{}:
		default:
		}
	}
	a := start(t, cfg)
	hears := func(of string) {
		t.Helper()
		select {
		case <-rung:
		case <-time.After(wait):
			t.Fatalf("not told of %s", of)
		}
	}
	b := start(t, configure(t, "127.0.49.102", a.addr))
	hears("a host that comes")
	awaitMembers(t, a, b)
	quietly := func(what string, change func()) {
		t.Helper()
		for len(rung) > 0 {
			<-rung
		}
		change()
		if len(rung) > 0 {
			t.Errorf("told of %s", what)
		}
	}
	quietly("free space", func() { must(t, a.SetFree("10.32.0.0/16", 7)) })
	must(t, a.Publish("names", "e", []byte("x")))
	hears("a note")
	must(t, a.Publish("names", "e", nil))
	hears("a note that is taken back")
	must(t, b.Publish("names", "e", []byte("y")))
	hears("another's note")
	a.Withdraw("none")
	b.stop()
	hears("a host that goes")
}
