package vxlan

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"time"

	"weave/mesh/beat"
	"weave/mesh/vni"
)

// raiseHost sees to what all segments share: the guard first, then the
// heart-beats' device. op is held.
func (s *Switch) raiseHost() {
	s.mu.Lock()
	mtu := 0
	for _, g := range s.segments {
		mtu = max(mtu, g.MTU)
	}
	s.mu.Unlock()
	allowed, entries, fresh, err := s.makeHost(mtu)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.suffer(err)
		return
	}
	s.trouble, s.since, s.exposed = "", time.Time{}, false
	first := !s.bound
	s.bound = true
	if fresh {
		s.host.reload(Remote, entries, first)
	}
	s.host.reload(Allow, allowed, first)
	if first {
		s.beginGrace()
	}
	for _, p := range s.peers {
		s.markHost(p)
	}
}

// suffer takes an error of makeHost. What cannot be looked at for a while is most
// likely as it was: it carries on. mu is held.
func (s *Switch) suffer(err error) {
	now := s.cfg.Clock()
	if s.since.IsZero() {
		s.since = now
	}
	s.exposed = errors.Is(err, ErrUnguarded) || now.Sub(s.since) >= patience
	if s.bound && !s.exposed {
		s.cfg.Log.WithError(err).Warn("fast path not looked after: it is left as it is")
		return
	}
	if s.trouble != err.Error() {
		s.cfg.Log.WithError(err).Warn("no fast path: frames go by the tunnel")
	}
	s.trouble = err.Error()
}

// makeHost does the kernel's part. entries are those of the device, if they are
// to be looked at.
func (s *Switch) makeHost(mtu int) (allowed, entries []Entry, fresh bool, err error) {
	addrs, err := s.cfg.Guard.Ensure(s.cfg.Port)
	if err != nil {
		return nil, nil, false, err
	}
	for _, a := range addrs {
		allowed = append(allowed, Entry{Kind: Allow, Addr: a})
	}
	d := Device{Name: beatLink, VNI: vni.Beat, MTU: mtu, Local: s.cfg.Local, Port: s.cfg.Port}
	made, err := s.cfg.Kernel.Make(d)
	if err != nil {
		return nil, nil, false, err
	}
	if s.bound && !made && !s.deaf.Load() {
		return allowed, nil, false, nil
	}
	if _, _, err := s.cfg.Kernel.Plug(beatLink, ""); err != nil {
		return nil, nil, false, err
	}
	if err := s.cfg.Probes.Bind(beatLink); err != nil {
		return nil, nil, false, err
	}
	s.deaf.Store(false)
	entries, err = s.cfg.Kernel.Entries(beatLink, "")
	return allowed, entries, true, err
}

// removeHost takes away what all segments shared. op is held.
func (s *Switch) removeHost() error {
	s.mu.Lock()
	s.host = newTable()
	s.bound = false
	s.mu.Unlock()
	if err := s.cfg.Kernel.Remove(beatLink); err != nil {
		return err
	}
	return s.cfg.Guard.Remove()
}

// markHost marks what the host has of a peer.
func (s *Switch) markHost(p *peer) {
	s.host.mark(slot{Kind: Remote, MAC: p.mac})
	if p.addr.IsValid() {
		s.host.mark(slot{Kind: Allow, Addr: p.addr})
	}
}

// wantHost is what ought to be in a slot of the host's table. mu is held.
func (s *Switch) wantHost(x slot) opinion {
	if x.Kind == Remote {
		if p := s.byMAC[x.MAC]; p != nil && p.addr.IsValid() {
			return wanted(Entry{Kind: Remote, MAC: x.MAC, Addr: p.addr})
		}
		return opinion{unsure: s.early(s.host.set[x].Addr)}
	}
	for _, p := range s.peers {
		if p.addr == x.Addr {
			return wanted(Entry{Kind: Allow, Addr: x.Addr})
		}
	}
	return opinion{unsure: s.early(x.Addr)}
}

// adopt takes over the paths that an earlier run had up, for peers that were
// known before its tables were. mu is held.
func (s *Switch) adopt() {
	for _, x := range s.peers {
		if x.path != nil && x.path.State() == beat.Unproven && s.inherit(x.addr) {
			x.path = beat.New(rand.Uint64(), true, s.cfg.Clock())
		}
	}
}

// inherit reports whether an earlier run had a host on the fast path. mu is
// held.
func (s *Switch) inherit(a netip.Addr) bool {
	for _, g := range s.segments {
		if _, ok := g.table.inherited[slot{Kind: Flood, Addr: a}]; ok {
			return true
		}
	}
	return false
}
