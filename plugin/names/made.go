package names

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// maxMade is how many names can be made by hand on one host.
const maxMade = 512

// ErrNotHere says that this host has no such name that was made by hand.
var ErrNotHere = errors.New("no such name was added on this host")

// Add adds addresses to a name that is made by hand. It is on disk before it returns,
// and holds until Remove.
func (n *Names) Add(m Made) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	old, err := n.addresses(&m)
	if err != nil {
		return err
	}
	if old == nil && len(n.made) >= maxMade {
		return fmt.Errorf("%d names were added on this host, which is the most: remove others first", maxMade)
	}
	for _, a := range old {
		if !slices.Contains(m.Addrs, a) {
			m.Addrs = append(m.Addrs, a)
		}
	}
	slices.SortFunc(m.Addrs, netip.Addr.Compare)
	if err := m.check(); err != nil {
		return err
	}
	return n.putMade(m)
}

// Remove takes addresses of such a name back, or all of them if none is given.
func (n *Names) Remove(m Made) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	old, err := n.addresses(&m)
	if err != nil {
		return err
	}
	if old == nil {
		return fmt.Errorf("name %s: %w", m.Name, ErrNotHere)
	}
	for _, a := range m.Addrs {
		if !slices.Contains(old, a) {
			return fmt.Errorf("name %s with address %s: %w", m.Name, a, ErrNotHere)
		}
	}
	rest := slices.DeleteFunc(old, func(a netip.Addr) bool { return len(m.Addrs) == 0 || slices.Contains(m.Addrs, a) })
	m.Addrs = rest
	return n.putMade(m)
}

// addresses makes the name canonical and returns the addresses that it has. n.mu is
// held.
func (n *Names) addresses(m *Made) (old []netip.Addr, err error) {
	if m.Name, err = Canonical(m.Name, n.cfg.Domain); err != nil {
		return nil, err
	}
	for i, a := range m.Addrs {
		m.Addrs[i] = a.Unmap()
	}
	value, ok := n.made[m.key()]
	if !ok {
		return nil, nil
	}
	was, err := decodeMade(m.key(), value)
	return was.Addrs, err
}

// putMade stores and publishes a name, or takes it back if it has no address. n.mu is
// held.
func (n *Names) putMade(m Made) error {
	var value []byte
	if len(m.Addrs) > 0 {
		value = marshal(m.Addrs)
	}
	if err := n.cfg.Store.Apply(bucketMade, map[string][]byte{m.key(): value}); err != nil {
		return fmt.Errorf("name %s: %w", m.Name, err)
	}
	n.losing.Lock()
	delete(n.lost, m.key())
	n.losing.Unlock()
	if n.made[m.key()] = value; value == nil {
		delete(n.made, m.key())
	}
	return n.cfg.Mesh.Publish(topicMade, m.key(), value)
}
