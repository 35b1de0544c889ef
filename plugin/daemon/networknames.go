package daemon

import (
	"fmt"
	"sync"

	"github.com/sirupsen/logrus"
)

// bucketNames keeps the names of networks by their IDs: after a start Docker may
// not tell them for some time, and it never changes one.
const bucketNames = "network-names"

// networkNames are Docker's names of the networks.
type networkNames struct {
	disk nameKeeper
	log  *logrus.Entry

	mu       sync.Mutex
	networks map[string]string
}

// nameKeeper is what networkNames needs of the store.
type nameKeeper interface {
	Load(bucket string) (map[string][]byte, error)
	Apply(bucket string, changes map[string][]byte) error
}

// loadNetworkNames returns the names that were heard up to now.
func loadNetworkNames(disk nameKeeper, log *logrus.Entry) (*networkNames, error) {
	kept, err := disk.Load(bucketNames)
	if err != nil {
		return nil, fmt.Errorf("load names of networks: %w", err)
	}
	n := &networkNames{disk: disk, log: log, networks: map[string]string{}}
	for id, name := range kept {
		n.networks[id] = string(name)
	}
	return n, nil
}

// network returns the name of a network, or "".
func (n *networkNames) network(id string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.networks[id]
}

func (n *networkNames) set(id, name string) {
	if n.network(id) == name {
		return
	}
	n.mu.Lock()
	n.networks[id] = name
	n.mu.Unlock()
	n.save(map[string][]byte{id: []byte(name)})
}

// keep forgets all networks but some.
func (n *networkNames) keep(ids map[string]bool) {
	gone := map[string][]byte{}
	n.mu.Lock()
	for id := range n.networks {
		if !ids[id] {
			delete(n.networks, id)
			gone[id] = nil
		}
	}
	n.mu.Unlock()
	if len(gone) > 0 {
		n.save(gone)
	}
}

// save keeps a change. Without it a name is only asked for again.
func (n *networkNames) save(changes map[string][]byte) {
	if err := n.disk.Apply(bucketNames, changes); err != nil {
		n.log.WithError(err).Warn("names of networks not kept")
	}
}
