// Package names knows who is called what on all hosts: it collects the names of
// this host's containers from the Docker Engine, tells them to the other hosts by
// notes of the mesh, and fills the table that questions are answered from with what
// all hosts tell.
//
// A host tells names of an endpoint by its ID, and nothing else. Where the endpoint
// is, and which addresses it has, is what that same host announces of it to the
// mesh: so nobody can name an address that is not theirs, and a name is gone with
// its container, or with its host. Names that somebody made by hand are told apart
// from these.
//
// It answers no questions: that is package dns. It enters no sandbox.
package names

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/sirupsen/logrus"

	"weave/driver"
	"weave/mesh"
	"weave/mesh/id"
	"weave/plugin/dns"
	"weave/plugin/engine"
)

// Topics of our notes in the mesh, and the buckets that keep those of this host.
const (
	topicNames = "names" // key: endpoint ID; value: its names
	topicMade  = "dns"   // key: see Made.key; value: addresses
	bucket     = "names"
	bucketMade = "dns"
)

// What the package needs of others.
type (
	// Mesh is how hosts tell each other.
	Mesh interface {
		Publish(topic, key string, value []byte) error
		Notes(topic string) []mesh.Note
		Endpoints() []mesh.OwnedEndpoint
		Alive() []id.PeerID
		Nickname(p id.PeerID) string
	}
	// Driver knows the networks of this host.
	Driver interface{ Networks() []driver.NetworkStatus }
	// Engine is the host's Docker Engine.
	Engine interface {
		Events(ctx context.Context, ready func(), changed func(container string)) error
		Containers(ctx context.Context) ([]engine.Container, error)
		Container(ctx context.Context, id string) (engine.Container, error)
	}
	// Store keeps what must outlive the process.
	Store interface {
		Load(bucket string) (map[string][]byte, error)
		Apply(bucket string, changes map[string][]byte) error
	}
)

// Config is what Names is made of.
type Config struct {
	Self   id.PeerID
	Mesh   Mesh
	Driver Driver
	Engine Engine
	Store  Store
	Table  *dns.Table
	Domain string // that names may have behind them, without dots around it
	// Changed says that notes or endpoints of the mesh may have changed, or who is
	// alive.
	Changed <-chan struct{}
	// Trouble is told why the Engine does not tell of containers; nil once it does.
	Trouble func(error)
	Log     *logrus.Entry
}

// Names knows who is called what. Its methods are safe for concurrent use.
type Names struct {
	cfg Config

	mu   sync.Mutex
	made map[string][]byte // the notes of this host under topicMade, by key

	losing sync.Mutex
	lost   map[string]error // notes of made that could not be read from the disk, until they are made anew

	told map[string][]byte       // the notes of this host under topicNames, by key; collect's
	full map[string][]dns.Record // what the table has, by source; fill's
	odd  map[id.PeerID]bool      // peers whose notes made no sense; fill's
}

// New loads what the run before told, and tells it again: others would take the
// names for gone otherwise. What makes no sense of it is no reason to do without the
// rest: names of containers are collected anew, those made by hand are in Lost.
func New(cfg Config) (*Names, error) {
	n := &Names{cfg: cfg, full: map[string][]dns.Record{}, odd: map[id.PeerID]bool{}}
	var err error
	var lost map[string]error
	if n.told, lost, err = n.load(bucket, topicNames, func(key string, value []byte) error {
		_, err := decodeNames(key, value)
		return err
	}); err != nil {
		return nil, err
	}
	if len(lost) > 0 {
		cfg.Log.WithField("endpoints", len(lost)).Warn("kept names of containers make no sense: they are collected anew")
	}
	n.made, n.lost, err = n.load(bucketMade, topicMade, func(key string, value []byte) error {
		_, err := decodeMade(key, value)
		return err
	})
	for key, err := range n.lost {
		cfg.Log.WithField("name", strings.TrimSpace(key)).WithError(err).Error("a name that was made by hand is lost")
	}
	return n, err
}

// load reads notes of this host from the disk, and publishes them. Those that make no
// sense are lost: it takes them off the disk.
func (n *Names) load(bucket, topic string, check func(key string, value []byte) error) (all map[string][]byte, lost map[string]error, err error) {
	if all, err = n.cfg.Store.Load(bucket); err != nil {
		return nil, nil, fmt.Errorf("load names: %w", err)
	}
	if all == nil {
		all = map[string][]byte{}
	}
	lost, gone := map[string]error{}, map[string][]byte{}
	for key, value := range all {
		if err := check(key, value); err != nil {
			lost[key], gone[key] = err, nil
			delete(all, key)
		} else if err := n.cfg.Mesh.Publish(topic, key, value); err != nil {
			n.cfg.Log.WithField("name", key).WithError(err).Warn("other hosts are not told of a name")
		}
	}
	if len(gone) > 0 {
		err = n.cfg.Store.Apply(bucket, gone)
	}
	if err != nil { // they are found, and lost, again
		n.cfg.Log.WithError(err).Warn("names that make no sense stay on disk")
	}
	return all, lost, nil
}

// Lost returns which names that were made by hand could not be read from the disk, as
// "NAME SEGMENT", and have not been made anew since.
func (n *Names) Lost() []string {
	n.losing.Lock()
	defer n.losing.Unlock()
	return slices.Sorted(maps.Keys(n.lost))
}

// Run collects and fills until ctx ends.
func (n *Names) Run(ctx context.Context) error {
	var both sync.WaitGroup
	both.Go(func() { n.collect(ctx) })
	both.Go(func() { n.keepFull(ctx) })
	both.Wait()
	return nil
}

// Name is a name that somebody has, for people.
type Name struct {
	dns.Record
	Container string // of whose endpoint it is; empty if it was made by hand
	Host      string // nickname of who tells it
	Peer      id.PeerID
	Made      bool // by hand
}

// List lists all names that count, in the order of names and addresses.
func (n *Names) List() []Name {
	ignore := func(mesh.Note, error) {}
	all := slices.Concat(n.ofContainers(ignore), n.ofHands(ignore))
	slices.SortFunc(all, compareNames)
	return all
}

// errNoNote says of a note that it makes no sense.
var errNoNote = errors.New("malformed note")
