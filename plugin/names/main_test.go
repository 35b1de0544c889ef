package names

import (
	"cmp"
	"context"
	"errors"
	"io"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"

	"weave/driver"
	"weave/mesh"
	"weave/mesh/id"
	"weave/plugin/dns"
	"weave/plugin/engine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The hosts of a world: this one, another, and one that is down.
var (
	self  = id.PeerID{1}
	other = id.PeerID{2}
	down  = id.PeerID{3}
)

const segment = "10.32.0.0/16"

// world is the mesh, driver, engine and disk of a Names.
type world struct {
	t     *testing.T
	table *dns.Table
	bell  chan struct{}

	mu         sync.Mutex
	notes      map[string]map[string]map[id.PeerID][]byte // by topic, key and owner
	endpoints  []mesh.OwnedEndpoint
	networks   []driver.NetworkStatus
	containers map[string]engine.Container
	disk       map[string]map[string][]byte
	refuse     error  // of the engine
	noList     error  // of the engine, when it is to list containers
	broken     string // the container of which the engine does not tell
	asked      int    // how often it was to tell of it
	events     chan string
	troubles   []error
	warnings   []string

	listed chan struct{} // if not nil: has one when the engine has looked at its containers
	answer chan struct{} // closed when it may tell
}

func newWorld(t *testing.T) *world {
	return &world{
		t: t, table: &dns.Table{}, bell: make(chan struct{}, 1),
		notes: map[string]map[string]map[id.PeerID][]byte{}, containers: map[string]engine.Container{},
		networks: []driver.NetworkStatus{{ID: "net", Segment: segment}, {ID: "off", DNS: driver.DNSOff}},
		disk:     map[string]map[string][]byte{}, events: make(chan string, 1000),
	}
}

// start makes a Names out of what is on disk. The notes of the run before are gone.
func (w *world) start() *Names {
	w.t.Helper()
	for _, keys := range w.notes {
		for _, owners := range keys {
			delete(owners, self)
		}
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	log.AddHook(w)
	n, err := New(Config{
		Self: self, Mesh: w, Driver: w, Engine: w, Store: w, Table: w.table, Domain: "weave.local", Changed: w.bell,
		Trouble: func(err error) {
			w.mu.Lock()
			w.troubles = append(w.troubles, err)
			w.mu.Unlock()
		}, Log: logrus.NewEntry(log),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

// run runs it until the test ends, or stop is called.
func (w *world) run() (n *Names, stop func()) {
	n = w.start()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = n.Run(ctx)
	}()
	stop = sync.OnceFunc(func() { cancel(); <-ended })
	w.t.Cleanup(stop)
	return n, stop
}

// set changes the world, and says so.
func (w *world) set(change func()) {
	w.mu.Lock()
	change()
	w.mu.Unlock()
	w.ring()
}

func (w *world) ring() {
	select {
	case w.bell <- struct{}{}:
	default:
	}
}

// starts has a container begin, with one endpoint of its name on "net".
func (w *world) starts(name, addr string, aliases ...string) {
	w.set(func() {
		w.containers[name+"-0123456789"] = engine.Container{
			ID: name + "-0123456789", Name: name, Hostname: "host-of-" + name,
			Attachments: []engine.Attachment{{Network: "net", Endpoint: "e-" + name, Aliases: aliases}},
		}
		w.announce(self, "e-"+name, addr)
	})
	w.events <- name + "-0123456789"
}

func (w *world) announce(owner id.PeerID, endpoint string, addrs ...string) {
	e := mesh.OwnedEndpoint{Owner: owner, Endpoint: mesh.Endpoint{ID: endpoint, Segment: segment, Container: endpoint}}
	for _, a := range addrs {
		e.Addrs = append(e.Addrs, netip.MustParseAddr(a))
	}
	w.endpoints = append(w.endpoints, e)
}

// found are the addresses of a name in the table.
func (w *world) found(name string) (out []string) {
	for _, f := range w.table.Lookup([]dns.Scope{{}, {Segment: segment}}, name) {
		out = append(out, f.Addr.String())
	}
	return out
}

// await waits until a name has some addresses.
func (w *world) await(name string, want ...string) {
	w.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		got := w.found(name)
		if slices.Equal(got, want) {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("%s is %v, want %v", name, got, want)
		}
	}
}

// Levels and Fire have what is logged for people be kept.
func (w *world) Levels() []logrus.Level { return []logrus.Level{logrus.WarnLevel, logrus.ErrorLevel} }

func (w *world) Fire(e *logrus.Entry) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.warnings = append(w.warnings, e.Message)
	return nil
}

// refusals is how often the engine did not tell of a container.
func (w *world) refusals() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func (w *world) note(owner id.PeerID, topic, key, value string) {
	if w.notes[topic] == nil {
		w.notes[topic] = map[string]map[id.PeerID][]byte{}
	}
	if w.notes[topic][key] == nil {
		w.notes[topic][key] = map[id.PeerID][]byte{}
	}
	w.notes[topic][key][owner] = []byte(value)
}

func (w *world) Publish(topic, key string, value []byte) error {
	w.set(func() {
		if w.note(self, topic, key, string(value)); value == nil {
			delete(w.notes[topic][key], self)
		}
	})
	return nil
}

func (w *world) Notes(topic string) (out []mesh.Note) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(w.notes[topic])) {
		for owner, value := range w.notes[topic][key] {
			out = append(out, mesh.Note{Owner: owner, Key: key, Value: value})
		}
	}
	return out
}

func (w *world) Endpoints() []mesh.OwnedEndpoint {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.endpoints)
}

func (w *world) Alive() []id.PeerID { return []id.PeerID{other} }

func (w *world) Nickname(p id.PeerID) string { return "h" + string('0'+p[0]) }

func (w *world) Networks() []driver.NetworkStatus { return w.networks }

func (w *world) Events(ctx context.Context, ready func(), changed func(string)) error {
	w.mu.Lock()
	refuse := w.refuse
	w.mu.Unlock()
	if refuse != nil {
		return refuse
	}
	ready()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case id := <-w.events:
			if id == "" {
				return errors.New("the engine is gone")
			}
			changed(id)
		}
	}
}

func (w *world) Containers(context.Context) (out []engine.Container, err error) {
	w.mu.Lock()
	all, err := slices.Collect(maps.Values(w.containers)), cmp.Or(w.refuse, w.noList)
	w.mu.Unlock()
	if w.listed != nil {
		select {
		case w.listed <- struct{}{}:
		default:
		}
		<-w.answer
	}
	return all, err
}

func (w *world) Container(_ context.Context, id string) (engine.Container, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if id == w.broken {
		w.asked++
		return engine.Container{}, errors.New("internal server error")
	}
	c, ok := w.containers[id]
	if !ok {
		return c, engine.ErrNoContainer
	}
	return c, nil
}

func (w *world) Load(bucket string) (map[string][]byte, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.disk[bucket]), nil
}

func (w *world) Apply(bucket string, changes map[string][]byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.disk[bucket] == nil {
		w.disk[bucket] = map[string][]byte{}
	}
	for k, v := range changes {
		if w.disk[bucket][k] = v; v == nil {
			delete(w.disk[bucket], k)
		}
	}
	return nil
}
