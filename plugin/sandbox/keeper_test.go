package sandbox

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"
)

// service answers in the sandboxes that a Keeper keeps, and counts.
type service struct {
	mu     sync.Mutex
	now    map[string]int // by paths
	begun  map[string]int
	failed chan struct{} // a value ends one call
	ending chan struct{} // if not nil, a call that is to end waits for a value
}

func newService() *service {
	return &service{now: map[string]int{}, begun: map[string]int{}, failed: make(chan struct{})}
}

var errFailed = errors.New("failed")

func (v *service) serve(ctx context.Context, path string, s *Sandbox) error {
	v.count(path, 1)
	defer v.count(path, -1)
	go func() {
		buf := make([]byte, 512)
		for {
			n, from, err := s.UDP().ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = s.UDP().WriteTo(append([]byte("weave: "), buf[:n]...), from)
		}
	}()
	select {
	case <-ctx.Done():
		if v.ending != nil {
			<-v.ending
		}
		return nil
	case <-v.failed:
		return errFailed
	}
}

func (v *service) count(path string, n int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.now[path] += n; v.now[path] == 0 {
		delete(v.now, path)
	}
	if n > 0 {
		v.begun[path]++
	}
}

func (v *service) beginnings(path string) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.begun[path]
}

// serves waits until all those paths are served, once each, and no others.
func (v *service) serves(t *testing.T, paths ...string) {
	t.Helper()
	want := map[string]int{}
	for _, p := range paths {
		want[p] = 1
	}
	eventually(t, "served: "+strings.Join(paths, ", "), func() bool {
		v.mu.Lock()
		defer v.mu.Unlock()
		return maps.Equal(v.now, want)
	})
}

// startKeeper runs a Keeper until the test, or stop, ends it.
func startKeeper(t *testing.T, v *service) (k *Keeper, logged *test.Hook, stop func()) {
	t.Helper()
	log, logged := test.NewNullLogger()
	log.SetOutput(io.Discard)
	k = NewKeeper(v.serve, logrus.NewEntry(log))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		must(t, <-done)
	})
	t.Cleanup(stop)
	return k, logged, stop
}

// at makes a path lead to the room, in place of what it led to.
func (r *room) at(path string) {
	r.t.Helper()
	must(r.t, os.Symlink(r.path(), path+".new"))
	must(r.t, os.Rename(path+".new", path))
}

// answeredBy asks until the right one answers. A question that is under way while
// rules change may get no answer.
func (r *room) answeredBy(who string) {
	r.t.Helper()
	eventually(r.t, "answered by "+who, func() bool {
		var c net.Conn
		if r.do(func() (err error) { c, err = net.Dial("udp", Resolver.String()); return err }) != nil {
			return false // lo is down
		}
		defer func() { _ = c.Close() }()
		got, err := askFor(time.Second, c, "web")
		return err == nil && got == who+": web"
	})
}

// TestKeeper: what is wanted is open, once, and what is not wanted any more has
// Docker's answers again.
func TestKeeper(t *testing.T) {
	t.Parallel()
	a, b := newRoom(t), newRoom(t)
	a.docker("iptables-nft")
	b.docker("iptables-nft")
	v := newService()
	k, logged, stop := startKeeper(t, v)

	k.Want([]string{a.path(), a.path()})
	v.serves(t, a.path())
	a.answeredBy("weave")
	k.Want([]string{a.path(), b.path()})
	v.serves(t, a.path(), b.path())
	if n := v.beginnings(a.path()); n != 1 {
		t.Errorf("opened %d times", n)
	}
	k.Want([]string{b.path()})
	v.serves(t, b.path())
	a.answeredBy("docker")
	for range 10 {
		k.Want(nil)
		k.Want([]string{a.path(), b.path()})
	}
	v.serves(t, a.path(), b.path())
	a.answeredBy("weave")
	stop()
	v.serves(t)
	for _, r := range []*room{a, b} {
		r.expect("web", "docker: web")
		if tables, _ := r.tables(); tables != 0 {
			t.Errorf("%d tables are left", tables)
		}
	}
	if f := k.Failures(); len(f) > 0 || len(logged.AllEntries()) > 0 {
		t.Errorf("failures: %v, logged: %v", f, logged.AllEntries())
	}
}

// TestNothingIsLeft: however often sandboxes begin and end, also before they are open,
// no file stays open, and no thread in them.
func TestNothingIsLeft(t *testing.T) {
	var rooms []*room
	var paths []string
	for range 10 {
		r := newRoom(t)
		rooms, paths = append(rooms, r), append(paths, r.path())
	}
	files := func() int {
		all, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(all)
	}
	v := newService()
	k, _, stop := startKeeper(t, v)
	k.Want(paths) // so that what the runtime opens for itself is open
	v.serves(t, paths...)
	stop()
	before := files()
	k, _, stop = startKeeper(t, v)
	for round := range 20 { // of 10 each
		k.Want(paths)
		if round%2 == 0 {
			v.serves(t, paths...)
		}
		k.Want(nil)
		if round%4 == 0 {
			v.serves(t)
		}
	}
	stop()
	v.serves(t)
	eventually(t, "no file more is open", func() bool { return files() <= before })
	for _, r := range rooms {
		r.isEmpty()
		if tables, _ := r.tables(); tables != 0 {
			t.Errorf("%d tables are left", tables)
		}
	}
}

// TestOneAfterTheOther: what is wanted again waits for its own end.
func TestOneAfterTheOther(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	v := newService()
	v.ending = make(chan struct{})
	k, _, _ := startKeeper(t, v)
	t.Cleanup(func() { close(v.ending) })
	k.Want([]string{r.path()})
	v.serves(t, r.path())
	k.Want(nil)
	eventually(t, "the rules are gone", func() bool { tables, _ := r.tables(); return tables == 0 })
	k.Want([]string{r.path()})
	time.Sleep(100 * time.Millisecond) // for what must not come
	if n := v.beginnings(r.path()); n != 1 {
		t.Errorf("begun %d times before the first has ended", n)
	}
	v.ending <- struct{}{}
	eventually(t, "it is open again", func() bool { return v.beginnings(r.path()) == 2 })
}

// TestAppears: the namespace is waited for; first there is a file only. One that
// takes another's place is noticed.
func TestAppears(t *testing.T) {
	t.Parallel()
	a, b := newRoom(t), newRoom(t)
	a.docker("iptables-nft")
	v := newService()
	k, logged, _ := startKeeper(t, v)
	path := filepath.Join(t.TempDir(), "sandbox")
	k.Want([]string{path})
	must(t, os.WriteFile(path, nil, 0o600))
	a.at(path)
	a.answeredBy("weave")
	b.at(path)
	a.answeredBy("docker")
	b.answeredBy("weave")
	must(t, os.Remove(path))
	v.serves(t)
	if tables, _ := b.tables(); tables != 0 {
		t.Errorf("%d tables are left", tables)
	}
	if len(k.Failures()) > 0 || len(logged.AllEntries()) > 0 {
		t.Errorf("it is no failure to wait: %v, %v", k.Failures(), logged.AllEntries())
	}
}

// TestServiceEnds: a service that has ended is begun again, on new sockets.
func TestServiceEnds(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	v := newService()
	k, _, _ := startKeeper(t, v)
	k.Want([]string{r.path()})
	v.failed <- struct{}{}
	eventually(t, "a failure to see", func() bool { return errors.Is(k.Failures()[r.path()], errFailed) || v.beginnings(r.path()) > 1 })
	eventually(t, "it is served again", func() bool { return v.beginnings(r.path()) == 2 && len(k.Failures()) == 0 })
	r.answeredBy("weave")
}

// TestFailures: what goes wrong is there to see, and logged once, until it is not
// wanted any more.
func TestFailures(t *testing.T) {
	t.Parallel()
	needRoot(t)
	const own = "/proc/thread-self/ns/net"
	v := newService()
	k, logged, _ := startKeeper(t, v)
	k.Want([]string{own})
	eventually(t, "a failure", func() bool { return errors.Is(k.Failures()[own], ErrOwn) })
	k.note(own, k.Failures()[own]) // as with the next try
	if all := logged.AllEntries(); len(all) != 1 || all[0].Data["sandbox"] != own {
		t.Errorf("logged: %v", all)
	}
	k.Want(nil)
	eventually(t, "no failure", func() bool { return len(k.Failures()) == 0 })
}

func TestPatience(t *testing.T) {
	t.Parallel()
	now := time.Unix(0, 0)
	var p patience
	after := func(err error) time.Duration {
		pause, tell := p.after(err, now)
		if waits := errors.Is(err, ErrNotThere) && now.Sub(time.Unix(0, 0)) < lookLong || errors.Is(err, errMoved); tell == waits {
			t.Errorf("%v after %v: tell %v", err, now, tell)
		}
		now = now.Add(pause)
		return pause
	}
	looks := 0
	for after(ErrNotThere) == lookEvery {
		looks++
	}
	if want := int(lookLong / lookEvery); looks != want {
		t.Errorf("looked for %d times at first, want %d", looks, want)
	}
	if pause := after(errMoved); pause != lookEvery {
		t.Errorf("after another came in its place: %s", pause)
	}
	var pauses []time.Duration
	for range 12 {
		pauses = append(pauses, after(errFailed))
	}
	if pauses[0] != shortestPause || pauses[1] != 2*shortestPause || slices.Max(pauses) != longestPause || pauses[11] != longestPause {
		t.Errorf("pauses %v", pauses)
	}
}
