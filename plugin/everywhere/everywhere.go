// Package everywhere has the weave networks of one host appear on all: under the
// same name, with the same settings and labels, made by each host through its own
// Docker Engine. A network that a host made so is removed again when no host has it
// of its own any more, and no container is on it anywhere.
//
// What each host has is told by notes of the mesh. A host tells of the networks
// that its user made, and, while containers there use them, of those that it made
// itself. There is nothing that decides: each host looks at all notes and does its
// part.
//
// It does not choose addresses, and does not touch networks that it has not made.
package everywhere

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/sirupsen/logrus"

	"weave/driver"
	"weave/mesh"
	"weave/mesh/id"
	"weave/plugin/engine"
)

const (
	// lookEvery is how often notes and networks are compared.
	lookEvery = time.Second
	// grace is how long a network is kept, and told of, that seems to be of no more
	// use: containers restart, and so do plugins.
	grace = 10 * time.Second
	// What the engine refuses is tried again after retryFirst, later twice as long
	// each time, up to retryLast.
	retryFirst = 2 * time.Second
	retryLast  = time.Minute
	// maxMade is how many networks others can make us make.
	maxMade = 256
)

// topic is that of our notes in the mesh.
const topic = "networks"

// bucket keeps which networks were made here, and what was told, by the network's
// ID; under making and a name, that one is being made.
const (
	bucket = "everywhere"
	making = "making:"
)

// What the package needs of others.
type (
	// Mesh is how hosts tell each other.
	Mesh interface {
		Publish(topic, key string, value []byte) error
		Notes(topic string) []mesh.Note
		Nickname(p id.PeerID) string
	}
	// Driver knows the networks and endpoints of this host.
	Driver interface {
		Networks() []driver.NetworkStatus
		Endpoints() []driver.EndpointStatus
	}
	// Engine is the host's Docker Engine.
	Engine interface {
		NetworkByID(ctx context.Context, id string) (engine.Network, error)
		Networks(ctx context.Context) ([]engine.Network, error)
		Create(ctx context.Context, n engine.Network) (id string, err error)
		Remove(ctx context.Context, id string) error
	}
	// Store keeps what must outlive the process.
	Store interface {
		Load(bucket string) (map[string][]byte, error)
		Apply(bucket string, changes map[string][]byte) error
	}
)

// Config is what a Keeper is made of.
type Config struct {
	Self   id.PeerID
	Mesh   Mesh
	Driver Driver
	Engine Engine
	Store  Store
	// Trouble is told what keeps a network from being the same everywhere, by its
	// name; all of it each time.
	Trouble func(map[string]string)
	Log     *logrus.Entry
}

// Keeper keeps the networks of this host and of the others the same. Its fields
// belong to Run.
type Keeper struct {
	cfg     Config
	known   map[string]*local // by ID
	making  map[string]bool   // names
	retry   map[string]backoff
	trouble map[string]string // by name, of this look
}

// local is a weave network of this host.
type local struct {
	name string
	record
	told   bool      // it is published
	asked  bool      // the engine told of it in this run
	used   time.Time // when a container was last on it
	needed time.Time // when this or another host last had a use for it
}

// kept is a local as it is on disk.
type kept struct {
	Name   string `json:"name"`
	Record record `json:"record"`
	Told   bool   `json:"told"`
}

type backoff struct {
	next time.Time
	wait time.Duration
	why  string
}

// New loads what the run before kept, and publishes what that told: others would
// take a network for gone otherwise.
func New(cfg Config) (*Keeper, error) {
	k := &Keeper{cfg: cfg, known: map[string]*local{}, making: map[string]bool{}, retry: map[string]backoff{}}
	raw, err := cfg.Store.Load(bucket)
	if err != nil {
		return nil, fmt.Errorf("load networks: %w", err)
	}
	for key, value := range raw {
		if name, ok := cutMaking(key); ok {
			k.making[name] = true
			continue
		}
		var s kept
		if err := json.Unmarshal(value, &s); err != nil {
			return nil, fmt.Errorf("state bucket %q, key %q: %w", bucket, key, err)
		}
		now := time.Now()
		l := &local{name: s.Name, record: s.Record, used: now, needed: now}
		k.known[key] = l
		if s.Told {
			if err := k.tell(l); err != nil {
				return nil, err
			}
		}
	}
	return k, nil
}

func cutMaking(key string) (name string, ok bool) {
	if len(key) > len(making) && key[:len(making)] == making {
		return key[len(making):], true
	}
	return "", false
}

// Run compares until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		k.look(ctx, time.Now())
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// look does once what is to be done.
func (k *Keeper) look(ctx context.Context, now time.Time) {
	k.trouble = map[string]string{}
	k.learn(ctx, now)
	others := k.others()
	k.announce(now)
	k.make(ctx, others, now)
	k.drop(ctx, others, now)
	k.cfg.Trouble(k.trouble)
}

// learn asks the engine for the networks that are new here, and forgets those that
// are gone.
func (k *Keeper) learn(ctx context.Context, now time.Time) {
	here := map[string]bool{}
	for _, n := range k.cfg.Driver.Networks() {
		here[n.ID] = true
		l := k.known[n.ID]
		if l != nil && l.asked {
			continue
		}
		found, err := k.cfg.Engine.NetworkByID(ctx, n.ID)
		if err != nil {
			continue // being made, or the engine starts
		}
		if l == nil {
			l = &local{record: record{Made: k.making[found.Name]}, needed: now}
			k.known[n.ID] = l
		}
		l.name, l.record, l.asked = found.Name, recordOf(found, l.Made), true
		k.save(n.ID, l)
		k.madeIt(found.Name)
	}
	for id, l := range k.known {
		if !here[id] {
			k.untell(l)
			delete(k.known, id)
			k.save(id, nil)
		}
	}
}

// others reads the notes of the other hosts: one of each name, that of a network
// that a user made rather than others, and the first among equals.
func (k *Keeper) others() map[string]shared {
	out := map[string]shared{}
	for _, note := range k.cfg.Mesh.Notes(topic) {
		if note.Owner == k.cfg.Self {
			continue
		}
		r, err := decode(note.Key, note.Value)
		if err != nil {
			k.cfg.Log.WithField("peer", note.Owner.Short()).WithError(err).Debug("a peer tells of a network that makes no sense")
			continue
		}
		if first, ok := out[note.Key]; !ok || first.Made && !r.Made {
			out[note.Key] = shared{note.Key, note.Owner, r}
		}
	}
	return out
}

// announce tells of what users made, and of what is in use.
func (k *Keeper) announce(now time.Time) {
	used := map[string]bool{}
	for _, e := range k.cfg.Driver.Endpoints() {
		used[e.Network] = true
	}
	for id, l := range k.known {
		if used[id] {
			l.used = now
		}
		want := !l.Made || now.Sub(l.used) < grace
		var err error
		switch {
		case want && !l.told:
			err = k.tell(l)
		case !want && l.told:
			k.untell(l)
		default:
			continue
		}
		if err != nil {
			k.trouble[l.name] = fmt.Sprintf("network %s does not appear on other hosts: %v", l.name, err)
			continue
		}
		k.save(id, l)
	}
}

func (k *Keeper) tell(l *local) error {
	if !nameForm.MatchString(l.name) {
		return errors.New("its name is too long")
	}
	value, err := json.Marshal(l.record)
	if err != nil {
		return err
	}
	if len(value) > mesh.MaxNote {
		return fmt.Errorf("its options and labels take %d bytes, and %d is the most", len(value), mesh.MaxNote)
	}
	if err := k.cfg.Mesh.Publish(topic, l.name, value); err != nil {
		return err
	}
	l.told = true
	return nil
}

// untell takes back what was told, unless another network of that name is told of.
func (k *Keeper) untell(l *local) {
	if !l.told {
		return
	}
	l.told = false
	for _, o := range k.known {
		if o.name == l.name && o.told {
			return
		}
	}
	if err := k.cfg.Mesh.Publish(topic, l.name, nil); err != nil {
		k.cfg.Log.WithField("network", l.name).WithError(err).Warn("other hosts are not told that a network is gone")
	}
}

// make has the engine make what others have, and tells where that cannot be.
func (k *Keeper) make(ctx context.Context, others map[string]shared, now time.Time) {
	byName := map[string]*local{}
	made := 0
	for _, l := range k.known {
		byName[l.name] = l
		if l.Made {
			made++
		}
	}
	var missing []shared
	for _, name := range slices.Sorted(maps.Keys(others)) {
		o, l := others[name], byName[name]
		switch {
		case l == nil:
			missing = append(missing, o)
		case l.differs(o.record) != "":
			k.trouble[name] = fmt.Sprintf("network %s of host %s is another one than that here: it has %s", name, k.cfg.Mesh.Nickname(o.owner), l.differs(o.record))
		}
	}
	for name := range k.making {
		if _, ok := others[name]; !ok {
			k.madeIt(name) // it was not made, in the run before
		}
	}
	for name := range k.retry {
		if _, ok := others[name]; !ok || byName[name] != nil {
			delete(k.retry, name)
		}
	}
	for _, o := range missing {
		b := k.retry[o.name]
		if !now.Before(b.next) && made < maxMade {
			if err := k.makeOne(ctx, o, now); err != nil {
				b.why = err.Error()
			} else {
				b.why = ""
				made++
			}
			b.wait = min(max(2*b.wait, retryFirst), retryLast)
			b.next = now.Add(b.wait)
			k.retry[o.name] = b
		}
		if b.why != "" {
			k.trouble[o.name] = fmt.Sprintf("network %s of host %s is not on this host: %s", o.name, k.cfg.Mesh.Nickname(o.owner), b.why)
		}
	}
}

// makeOne makes one network. That it is ours is on disk before Docker has it.
func (k *Keeper) makeOne(ctx context.Context, o shared, now time.Time) error {
	all, err := k.cfg.Engine.Networks(ctx)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(all, func(n engine.Network) bool { return n.Name == o.name }); i >= 0 {
		if slices.ContainsFunc(k.cfg.Driver.Networks(), func(n driver.NetworkStatus) bool { return n.ID == all[i].ID }) {
			return nil // it is just being made
		}
		return fmt.Errorf("one of that name is here, of driver %s", all[i].Driver)
	}
	if err := k.cfg.Store.Apply(bucket, map[string][]byte{making + o.name: {}}); err != nil {
		return err
	}
	k.making[o.name] = true
	made, err := k.cfg.Engine.Create(ctx, o.network())
	if err != nil {
		k.madeIt(o.name)
		return err
	}
	l := &local{name: o.name, record: o.record, needed: now}
	l.Made = true
	k.known[made] = l
	k.save(made, l)
	k.madeIt(o.name)
	k.cfg.Log.WithFields(logrus.Fields{"network": o.name, "peer": o.owner.Short()}).Info("network of another host made here as well")
	return nil
}

// madeIt forgets that a network is being made.
func (k *Keeper) madeIt(name string) {
	if !k.making[name] {
		return
	}
	delete(k.making, name)
	if err := k.cfg.Store.Apply(bucket, map[string][]byte{making + name: nil}); err != nil {
		k.cfg.Log.WithField("network", name).WithError(err).Warn("state of a network not kept")
	}
}

// drop removes what was made here and nobody needs any more.
func (k *Keeper) drop(ctx context.Context, others map[string]shared, now time.Time) {
	for id, l := range k.known {
		if _, needed := others[l.name]; needed || l.told {
			l.needed = now
		}
		if !l.Made || now.Sub(l.needed) < grace {
			continue
		}
		if err := k.cfg.Engine.Remove(ctx, id); err != nil && !errors.Is(err, engine.ErrNotFound) {
			l.needed = now // a container may be about to start; later
			k.cfg.Log.WithField("network", l.name).WithError(err).Warn("network that no host needs is not removed")
			continue
		}
		k.cfg.Log.WithField("network", l.name).Info("network that no host needs is removed")
	}
}

// save puts a network on disk; nil takes it off.
func (k *Keeper) save(id string, l *local) {
	var value []byte
	if l != nil {
		var err error
		if value, err = json.Marshal(kept{l.name, l.record, l.told}); err != nil {
			value = nil
		}
	}
	if err := k.cfg.Store.Apply(bucket, map[string][]byte{id: value}); err != nil {
		k.cfg.Log.WithField("network", id).WithError(err).Warn("state of a network not kept")
	}
}
