package mesh

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"weave/mesh/id"
)

// bucketSeeds keeps the addresses that Connect was given, and who was met at
// those of the configuration.
const bucketSeeds = "seeds"

// Bounds on what an operator may have us connect to.
const (
	maxSeeds     = 256
	maxSeedAddrs = 32 // behind one name
)

// Seed is one address that the operator named, by WEAVE_PEERS or weave connect.
type Seed struct {
	Addr       string    // host:port as given
	Configured bool      // it is in Config.Peers
	Added      bool      // Connect was given it, in this run or before
	Peer       id.PeerID // who was met there last, in this run or before; zero if nobody ever
	Self       bool      // it is our own address
	Error      string    // why the last try failed; empty if it did not
	Tried      time.Time // zero before the first try of this run
}

// Met tells whether a peer of the cluster was ever met there.
func (s Seed) Met() bool { return !s.Peer.IsZero() }

// named tells whether others may be behind it another time.
func (s Seed) named() bool {
	host, _, err := splitSeed(s.Addr)
	if err != nil {
		return false
	}
	_, err = netip.ParseAddr(host)
	return err != nil
}

// seedRecord is what is on disk of a Seed.
type seedRecord struct {
	Added bool      `json:"added,omitempty"`
	Peer  id.PeerID `json:"peer,omitzero"`
}

// seeds is the list of the operator's addresses and what came of each. Its
// methods are safe for concurrent use; tries are made by Node.
type seeds struct {
	store Store

	mu     sync.Mutex
	list   []*Seed
	behind map[string][]netip.AddrPort // what each resolved to last, in this run
}

// loadSeeds takes the configured addresses, adds those that Connect was given
// in earlier runs, and forgets what is left of other configurations.
func loadSeeds(store Store, configured []string) (*seeds, error) {
	s := &seeds{store: store, behind: map[string][]netip.AddrPort{}}
	for _, addr := range configured {
		if _, _, err := splitSeed(addr); err != nil {
			return nil, err
		}
		s.get(addr).Configured = true
	}
	raw, err := store.Load(bucketSeeds)
	if err != nil {
		return nil, fmt.Errorf("load seeds: %w", err)
	}
	stale := map[string][]byte{}
	for _, addr := range slices.Sorted(maps.Keys(raw)) {
		var rec seedRecord
		if err := json.Unmarshal(raw[addr], &rec); err != nil {
			return nil, fmt.Errorf("state bucket %q, key %q: %w", bucketSeeds, addr, err)
		}
		if !rec.Added && s.find(addr) == nil {
			stale[addr] = nil
			continue
		}
		if _, _, err := splitSeed(addr); err != nil {
			return nil, fmt.Errorf("state bucket %q: %w", bucketSeeds, err)
		}
		seed := s.get(addr)
		seed.Added, seed.Peer = rec.Added, rec.Peer
	}
	if err := store.Apply(bucketSeeds, stale); err != nil {
		return nil, fmt.Errorf("store seeds: %w", err)
	}
	return s, nil
}

// find returns the seed of an address, or nil. The caller holds mu.
func (s *seeds) find(addr string) *Seed {
	if i := slices.IndexFunc(s.list, func(x *Seed) bool { return x.Addr == addr }); i >= 0 {
		return s.list[i]
	}
	return nil
}

// get returns the seed of an address, and makes it if need be. The caller holds
// mu.
func (s *seeds) get(addr string) *Seed {
	seed := s.find(addr)
	if seed == nil {
		seed = &Seed{Addr: addr}
		s.list = append(s.list, seed)
	}
	return seed
}

// save puts what must outlive the process on disk. The caller holds mu.
func (s *seeds) save(seed Seed) error {
	value := recordValue(seedRecord{seed.Added, seed.Peer})
	if err := s.store.Apply(bucketSeeds, map[string][]byte{seed.Addr: value}); err != nil {
		return fmt.Errorf("store peer address %s: %w", seed.Addr, err)
	}
	return nil
}

// add takes an address in, on disk before it returns.
func (s *seeds) add(addr string) error {
	if _, _, err := splitSeed(addr); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	seed := Seed{Addr: addr}
	switch known := s.find(addr); {
	case known != nil && known.Added:
		return nil
	case known != nil:
		seed = *known
	case len(s.list) >= maxSeeds:
		return fmt.Errorf("connect to %s: more than %d peer addresses", addr, maxSeeds)
	}
	seed.Added = true
	if err := s.save(seed); err != nil {
		return err
	}
	s.get(addr).Added = true
	return nil
}

// forget undoes add, on disk before it returns. A configured address stays. What
// it returns are addresses that no seed stands for any more.
func (s *seeds) forget(addr string) (gone []netip.AddrPort, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	seed := s.find(addr)
	if seed == nil {
		return nil, fmt.Errorf("forget peer address %s: %w", addr, ErrNoSeed)
	}
	if seed.Configured {
		left := *seed
		left.Added = false
		if err := s.save(left); err != nil {
			return nil, err
		}
		*seed = left
		return nil, fmt.Errorf("forget peer address %s: %w", addr, ErrConfigured)
	}
	if err := s.store.Apply(bucketSeeds, map[string][]byte{addr: nil}); err != nil {
		return nil, fmt.Errorf("forget peer address %s: %w", addr, err)
	}
	s.list = slices.DeleteFunc(s.list, func(x *Seed) bool { return x == seed })
	return s.replace(addr, nil), nil
}

// resolved notes what an address resolved to. What it returns are addresses that
// no seed stands for any more.
func (s *seeds) resolved(addr string, to []netip.AddrPort) (gone []netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.find(addr) == nil {
		return nil // forgotten meanwhile
	}
	return s.replace(addr, to)
}

// replace is resolved, or with nothing the end of it. The caller holds mu.
func (s *seeds) replace(addr string, to []netip.AddrPort) (gone []netip.AddrPort) {
	old := s.behind[addr]
	if delete(s.behind, addr); len(to) > 0 {
		s.behind[addr] = to
	}
	return s.unnamed(old)
}

// strays lists those of some addresses that no seed stands for.
func (s *seeds) strays(of []netip.AddrPort) []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unnamed(of)
}

// unnamed is strays. The caller holds mu.
func (s *seeds) unnamed(of []netip.AddrPort) (out []netip.AddrPort) {
	for _, a := range of {
		named := false
		for _, others := range s.behind {
			named = named || slices.Contains(others, a)
		}
		if !named {
			out = append(out, a)
		}
	}
	return out
}

func (s *seeds) snapshot() []Seed {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Seed, len(s.list))
	for i, x := range s.list {
		out[i] = *x
	}
	return out
}

// unmet lists the addresses where no peer was ever met.
func (s *seeds) unmet() []Seed {
	return slices.DeleteFunc(s.snapshot(), func(x Seed) bool { return x.Met() || x.Self })
}

// failed notes a try that met nobody; self says that we met ourselves.
func (s *seeds) failed(addr string, now time.Time, reason error, self bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	seed := s.find(addr)
	if seed == nil {
		return // forgotten meanwhile
	}
	seed.Tried, seed.Self, seed.Error = now, self, ""
	if !self {
		seed.Error = reason.Error()
	}
}

// met notes whom a try met. Its error is that of the disk: the note holds until
// the next start all the same.
func (s *seeds) met(addr string, now time.Time, p id.PeerID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	seed := s.find(addr)
	if seed == nil {
		return nil
	}
	seed.Tried, seed.Self, seed.Error = now, false, ""
	if seed.Peer == p {
		return nil
	}
	seed.Peer = p
	return s.save(*seed)
}

// splitSeed takes host:port apart.
func splitSeed(addr string) (host string, port uint16, err error) {
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, fmt.Errorf("peer address %.300q: %w", addr, err)
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 || host == "" {
		return "", 0, fmt.Errorf("peer address %.300q: want host:port", addr)
	}
	return host, uint16(n), nil
}

// numberZone writes an address's zone, which may be the name of a link, as a number,
// as it is with what comes from there.
func numberZone(a netip.Addr) (netip.Addr, error) {
	zone := a.Zone()
	if _, err := strconv.ParseUint(zone, 10, 32); zone == "" || err == nil {
		return a, nil
	}
	link, err := net.InterfaceByName(zone)
	if err != nil {
		return a, fmt.Errorf("%s: this host has no link %q", a, zone)
	}
	return a.WithZone(strconv.Itoa(link.Index)), nil
}

// errNoAddress is for names that resolve to nothing.
var errNoAddress = errors.New("the name has no address")

// lookup asks for the addresses of a host.
type lookup func(ctx context.Context, host string) ([]netip.Addr, error)

func systemLookup(ctx context.Context, host string) ([]netip.Addr, error) {
	return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
}

// resolve returns the addresses behind host:port, in the resolver's order.
func resolve(ctx context.Context, ask lookup, hostport string) ([]netip.AddrPort, error) {
	host, port, err := splitSeed(hostport)
	if err != nil {
		return nil, err
	}
	if literal, err := netip.ParseAddr(host); err == nil { // which the resolver would take the zone from
		addr, err := numberZone(literal.Unmap())
		if err != nil {
			return nil, err
		}
		return []netip.AddrPort{netip.AddrPortFrom(addr, port)}, nil
	}
	ips, err := ask(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("resolve %q: %w", host, err)
	}
	var out []netip.AddrPort
	for _, ip := range ips[:min(len(ips), maxSeedAddrs)] {
		out = append(out, netip.AddrPortFrom(ip.Unmap(), port))
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("resolve %q: %w", host, errNoAddress)
	}
	return out, nil
}
