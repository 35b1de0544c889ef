package sandbox

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

// How a Keeper waits.
const (
	// A namespace appears soon after Join, most often: at first it is looked for so
	// often that the container's first question is ours.
	lookEvery = 20 * time.Millisecond
	lookLong  = 30 * time.Second // so long
	lookLater = time.Second      // and then so often

	shortestPause = 100 * time.Millisecond // after other errors, doubled with each
	longestPause  = 30 * time.Second

	// checkEvery is how soon it is seen that a namespace has ended, that another is
	// at its path, or that its rules were taken away, though nobody said so.
	checkEvery = time.Second

	// maxAtOnce bounds the threads for namespaces, where many are opened or closed
	// at once.
	maxAtOnce = 16
)

var (
	errMoved   = errors.New("the namespace is no longer there")
	errFlushed = errors.New("somebody in the container took the rules away that lead questions here")
	errEnded   = errors.New("nobody answers there any more")
)

// Serve answers what comes to a sandbox, until ctx is done; it must then return
// soon. The sandbox's sockets are closed for it.
type Serve func(ctx context.Context, path string, s *Sandbox) error

// Keeper keeps the sandboxes open that are wanted, and no others. Each path is
// opened once, whatever shares the sandbox. While a namespace is not there, or
// cannot be entered, the Keeper goes on trying, less and less often. Its methods
// may be called concurrently.
type Keeper struct {
	serve Serve
	log   *logrus.Entry
	slots chan struct{} // of those that open or close

	changed chan struct{} // has one element if wanted is another

	mu       sync.Mutex
	wanted   map[string]bool
	failures map[string]error
}

// NewKeeper returns a Keeper that wants nothing yet.
func NewKeeper(serve Serve, log *logrus.Entry) *Keeper {
	return &Keeper{
		serve: serve, log: log,
		slots: make(chan struct{}, maxAtOnce), changed: make(chan struct{}, 1),
		wanted: map[string]bool{}, failures: map[string]error{},
	}
}

// Want says which sandboxes are to be open, by the paths of their namespaces, in
// place of what was said before. It does not wait for that.
func (k *Keeper) Want(paths []string) {
	wanted := make(map[string]bool, len(paths))
	for _, p := range paths {
		wanted[p] = true
	}
	k.mu.Lock()
	same := maps.Equal(k.wanted, wanted)
	k.wanted = wanted
	k.mu.Unlock()
	if same {
		return
	}
	select {
	case k.changed <- struct{}{}:
	default: // Run has not looked yet
	}
}

// Failures returns why wanted sandboxes are not open, by their paths: those whose
// namespace is there, and those that have been waited for longer than Docker
// takes. It is for people to see.
func (k *Keeper) Failures() map[string]error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(k.failures)
}

// Run opens and closes sandboxes until ctx is done; then it closes all.
func (k *Keeper) Run(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	tasks := map[string]*task{}
	for {
		k.adjust(ctx, tasks, &all)
		select {
		case <-ctx.Done():
			return nil
		case <-k.changed:
		}
	}
}

// task keeps one sandbox open.
type task struct {
	cancel context.CancelFunc
	ctx    context.Context
	done   chan struct{}
}

// adjust ends the tasks that nobody wants and starts those that are missing. One
// that ends goes before another with its path begins.
func (k *Keeper) adjust(ctx context.Context, tasks map[string]*task, all *sync.WaitGroup) {
	k.mu.Lock()
	wanted := k.wanted // replaced, never changed
	k.mu.Unlock()
	for path, t := range tasks {
		if !wanted[path] {
			t.cancel()
			select {
			case <-t.done:
				delete(tasks, path)
			default:
			}
		}
	}
	for path := range wanted {
		before := tasks[path]
		if before != nil && before.ctx.Err() == nil {
			continue
		}
		t := &task{done: make(chan struct{})}
		t.ctx, t.cancel = context.WithCancel(ctx)
		tasks[path] = t
		all.Go(func() {
			defer close(t.done)
			defer t.cancel()
			if before != nil {
				<-before.done
			}
			k.keep(t.ctx, path)
		})
	}
}

// keep has a sandbox open until ctx is done.
func (k *Keeper) keep(ctx context.Context, path string) {
	defer k.note(path, nil)
	var p patience
	for ctx.Err() == nil {
		err := k.hold(ctx, path, &p)
		if ctx.Err() != nil {
			return
		}
		pause, tell := p.after(err, time.Now())
		if tell {
			k.note(path, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// note keeps an error for people, and tells it once.
func (k *Keeper) note(path string, err error) {
	k.mu.Lock()
	before := k.failures[path]
	if delete(k.failures, path); err != nil {
		k.failures[path] = err
	}
	k.mu.Unlock()
	if err != nil && (before == nil || before.Error() != err.Error()) {
		k.log.WithError(err).WithField("sandbox", path).Warn("names of other hosts are not answered in a sandbox")
	}
}

// hold opens a sandbox and has it served until ctx is done, or it has ended.
func (k *Keeper) hold(ctx context.Context, path string, p *patience) error {
	s, err := k.open(ctx, path)
	if err != nil {
		return err
	}
	k.note(path, nil)
	begin := time.Now()
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- k.serve(serving, path, s) }()
	served, err := watch(ctx, s, path, ended)
	if p.since = (time.Time{}); time.Since(begin) > longestPause {
		p.pause = 0
	}
	k.closeSandbox(s, path, stop)
	if !served {
		<-ended
	}
	return err
}

// open opens a sandbox when there is a slot.
func (k *Keeper) open(ctx context.Context, path string) (*Sandbox, error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case k.slots <- struct{}{}:
	}
	defer func() { <-k.slots }()
	return Open(path)
}

// watch waits until ctx is done, or until the sandbox or its service has ended.
func watch(ctx context.Context, s *Sandbox, path string, ended <-chan error) (served bool, err error) {
	check := time.NewTicker(checkEvery)
	defer check.Stop()
	for {
		select {
		case <-ctx.Done():
			return false, nil
		case err := <-ended:
			return true, errors.Join(errEnded, err)
		case <-check.C:
			if !s.id.at(path) {
				return false, errMoved
			}
			if s.flushed() {
				return false, errFlushed
			}
		}
	}
}

// closeSandbox takes the rules away first, so that no question comes to a service
// that ends.
func (k *Keeper) closeSandbox(s *Sandbox, path string, stop func()) {
	k.slots <- struct{}{}
	defer func() { <-k.slots }()
	err := s.unhook()
	stop()
	if err = errors.Join(err, s.Close()); err != nil {
		k.log.WithError(err).WithField("sandbox", path).Warn("sandbox not left as it was")
	}
}

// patience is how long a task waits between its tries.
type patience struct {
	since time.Time     // of the first look for a namespace that is not there
	pause time.Duration // after the latest other error
}

// after returns how long to wait after an error, and whether it is one for people.
func (p *patience) after(err error, now time.Time) (pause time.Duration, tell bool) {
	switch {
	case errors.Is(err, errMoved):
		return lookEvery, false
	case !errors.Is(err, ErrNotThere):
		p.pause = min(max(2*p.pause, shortestPause), longestPause)
		return p.pause, true
	case p.since.IsZero():
		p.since = now
	}
	if now.Sub(p.since) < lookLong {
		return lookEvery, false
	}
	return lookLater, true
}
