package everywhere

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"weave/driver"
	"weave/mesh"
	"weave/mesh/id"
	"weave/plugin/engine"
)

// world is hosts that hear of each other at once, and a clock.
type world struct {
	t     *testing.T
	now   time.Time
	hosts []*host
	notes map[string]map[id.PeerID][]byte // of topic, by key
}

// host is the mesh, the driver, the engine and the disk of one Keeper.
type host struct {
	*Keeper
	w        *world
	self     id.PeerID
	networks map[string]engine.Network // by ID
	foreign  []engine.Network          // of other drivers
	used     map[string]bool           // IDs of networks that a container is on
	disk     map[string][]byte
	troubles map[string]string
	refuse   error // of Create
	asked    int   // Create
	serial   int
}

func newWorld(t *testing.T, n int) *world {
	w := &world{t: t, now: time.Now(), notes: map[string]map[id.PeerID][]byte{}}
	for i := range n {
		h := &host{w: w, self: id.PeerID{byte(i + 1)}, networks: map[string]engine.Network{}, used: map[string]bool{}, disk: map[string][]byte{}}
		w.hosts = append(w.hosts, h)
		h.start()
	}
	return w
}

// start makes a Keeper out of what is on disk. The notes of the run before are gone.
func (h *host) start() {
	for _, owners := range h.w.notes {
		delete(owners, h.self)
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	var err error
	h.Keeper, err = New(Config{
		Self: h.self, Mesh: h, Driver: docker{h}, Engine: h, Store: h,
		Trouble: func(m map[string]string) { h.troubles = m }, Log: logrus.NewEntry(log),
	})
	if err != nil {
		h.w.t.Fatal(err)
	}
}

// pass has all hosts look once a second, for d.
func (w *world) pass(d time.Duration) {
	for end := w.now.Add(d); w.now.Before(end); w.now = w.now.Add(time.Second) {
		for _, h := range w.hosts {
			h.look(context.Background(), w.now)
		}
	}
}

// user makes a network as `docker network create` does, and returns its ID.
func (h *host) user(name, subnet string) string {
	id, err := h.add(engine.Network{
		Name: name, Driver: weaveDriver, Labels: map[string]string{"a": "b"}, Options: map[string]string{"weave.mtu": "1300"},
		IPAM: engine.IPAM{Driver: weaveDriver, Pools: []engine.Pool{{Subnet: netip.MustParsePrefix(subnet)}}},
	})
	if err != nil {
		h.w.t.Fatal(err)
	}
	return id
}

func (h *host) add(n engine.Network) (string, error) {
	for _, other := range slices.Concat(slices.Collect(maps.Values(h.networks)), h.foreign) {
		if other.Name == n.Name {
			return "", errors.New("that name is taken")
		}
	}
	h.serial++
	n.ID = fmt.Sprintf("%x-%d", h.self[0], h.serial)
	h.networks[n.ID] = n
	return n.ID, nil
}

// named returns the network of a name, or one without an ID.
func (h *host) named(name string) engine.Network {
	for _, n := range h.networks {
		if n.Name == name {
			return n
		}
	}
	return engine.Network{}
}

func (h *host) Publish(topic, key string, value []byte) error {
	if len(value) > mesh.MaxNote {
		return errors.New("too long")
	}
	key = topic + "/" + key
	if h.w.notes[key] == nil {
		h.w.notes[key] = map[id.PeerID][]byte{}
	}
	if delete(h.w.notes[key], h.self); value != nil {
		h.w.notes[key][h.self] = value
	}
	return nil
}

func (h *host) Notes(topic string) (out []mesh.Note) {
	for _, key := range slices.Sorted(maps.Keys(h.w.notes)) {
		for _, owner := range slices.SortedFunc(maps.Keys(h.w.notes[key]), id.PeerID.Compare) {
			out = append(out, mesh.Note{Owner: owner, Key: key[len(topic)+1:], Value: h.w.notes[key][owner]})
		}
	}
	return out
}

func (h *host) Nickname(p id.PeerID) string { return fmt.Sprintf("h%d", p[0]) }

func (h *host) NetworkByID(_ context.Context, id string) (engine.Network, error) {
	if n, ok := h.networks[id]; ok {
		return n, nil
	}
	return engine.Network{}, engine.ErrNotFound
}

func (h *host) Networks(context.Context) ([]engine.Network, error) {
	return slices.Concat(slices.Collect(maps.Values(h.networks)), h.foreign), nil
}

func (h *host) Create(_ context.Context, n engine.Network) (string, error) {
	h.asked++
	if h.refuse != nil {
		return "", h.refuse
	}
	return h.add(n)
}

func (h *host) Remove(_ context.Context, id string) error {
	if h.used[id] {
		return errors.New("a container is on it")
	}
	if _, ok := h.networks[id]; !ok {
		return engine.ErrNotFound
	}
	delete(h.networks, id)
	return nil
}

func (h *host) Load(string) (map[string][]byte, error) { return maps.Clone(h.disk), nil }

func (h *host) Apply(_ string, changes map[string][]byte) error {
	for k, v := range changes {
		if delete(h.disk, k); v != nil {
			h.disk[k] = v
		}
	}
	return nil
}

// docker is what the driver knows of a host.
type docker struct{ h *host }

func (d docker) Networks() (out []driver.NetworkStatus) {
	for id := range d.h.networks {
		out = append(out, driver.NetworkStatus{ID: id})
	}
	return out
}

func (d docker) Endpoints() (out []driver.EndpointStatus) {
	for id := range d.h.used {
		if d.h.used[id] {
			out = append(out, driver.EndpointStatus{ID: "e", Network: id})
		}
	}
	return out
}
