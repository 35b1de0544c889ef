package vxlan

import (
	"net/netip"

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
		if s.trouble != err.Error() {
			s.cfg.Log.WithError(err).Warn("no fast path: frames go by the tunnel")
		}
		s.trouble = err.Error()
		return
	}
	s.trouble = ""
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
	if s.bound && !made {
		return allowed, nil, false, nil
	}
	if _, _, err := s.cfg.Kernel.Plug(beatLink, ""); err != nil {
		return nil, nil, false, err
	}
	if err := s.cfg.Probes.Bind(beatLink); err != nil {
		return nil, nil, false, err
	}
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
