package transport

import (
	"net/netip"
	"slices"
	"time"

	"weave/mesh/id"
)

// States of a peer.
const (
	StateUp         = "up"         // a session, and the peer answers
	StateConnecting = "connecting" // no session that works; nothing failed yet
	StateDown       = "down"       // the last attempt failed, or there is no candidate
)

// PeerStatus is what there is to tell about one peer.
type PeerStatus struct {
	ID          id.PeerID        `json:"id"`
	Nickname    string           `json:"nickname,omitempty"` // empty before the first session
	State       string           `json:"state"`
	Addr        netip.AddrPort   `json:"addr,omitzero"`     // in use; none where it is reached through others
	Relayed     bool             `json:"relayed,omitempty"` // it is
	TCP         bool             `json:"tcp,omitempty"`     // it is reached by TCP, because not by UDP
	Candidates  []netip.AddrPort `json:"candidates"`
	SeenAt      netip.AddrPort   `json:"seen_at,omitzero"` // where the peer sees us
	Cipher      string           `json:"cipher,omitempty"`
	Established time.Time        `json:"established,omitzero"` // the session in use
	LastHeard   time.Time        `json:"last_heard,omitzero"`
	PathSince   time.Time        `json:"path_since,omitzero"` // since when the path is this one, or the relay
	RTT         time.Duration    `json:"rtt_ns,omitempty"`
	MTU         int              `json:"mtu,omitempty"` // of the path, if it is direct and by UDP
	Pings       int              `json:"pings"`         // of late, by the path in use, whose answer is due
	LostPings   int              `json:"lost_pings"`    // those of them that have none
	Lossy       bool             `json:"lossy"`         // that are many, before as of late
	TxBytes     uint64           `json:"tx_bytes"`      // UDP payload
	RxBytes     uint64           `json:"rx_bytes"`
	TxDatagrams uint64           `json:"tx_datagrams"`
	RxDatagrams uint64           `json:"rx_datagrams"`
	LastError   string           `json:"last_error,omitempty"` // of the last attempt
}

// Peers returns the status of all known peers, in the order of their IDs.
func (t *Transport) Peers() []PeerStatus {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	out := make([]PeerStatus, 0, len(t.peers))
	for _, p := range t.peers {
		out = append(out, p.status(now))
	}
	slices.SortFunc(out, func(a, b PeerStatus) int { return a.ID.Compare(b.ID) })
	return out
}

func (p *peer) status(now time.Time) PeerStatus {
	s := PeerStatus{
		ID:          p.id,
		Nickname:    p.nickname,
		State:       p.state(now),
		Candidates:  slices.Clone(p.candidates),
		RTT:         time.Duration(p.rtt.Load()),
		TxBytes:     p.txBytes.Load(),
		RxBytes:     p.rxBytes.Load(),
		TxDatagrams: p.txDatagrams.Load(),
		RxDatagrams: p.rxDatagrams.Load(),
	}
	if seen := p.seen.Load(); seen != nil {
		s.SeenAt = *seen
	}
	if path := p.path.Load(); path != nil {
		s.Addr, s.Relayed, s.TCP = path.addr, !path.direct(), path.pipe != nil
		if s.TCP {
			s.Addr = path.pipe.remote
		}
		if path.udp() {
			s.MTU = int(p.mtu.limit.Load()) + headerOf(path.addr.Addr())
		}
		s.LastHeard = p.t.epoch.Add(time.Duration(p.heard.Load()))
		s.PathSince = p.t.epoch.Add(time.Duration(p.moved.Load()))
		l := p.pings.loss(p.t.since(now), s.RTT)
		s.LostPings, s.Pings, s.Lossy = l.lost, l.of, l.lasting
	}
	if e := p.current.Load(); e != nil {
		s.Established = e.session.Established()
		s.Cipher = "ChaCha20-Poly1305"
		if e.aes {
			s.Cipher = "AES-256-GCM"
		}
	}
	if p.lastErr != nil {
		s.LastError = p.lastErr.Error()
	}
	return s
}

func (p *peer) state(now time.Time) string {
	switch {
	case p.current.Load() != nil && !p.silent(now):
		return StateUp
	case p.lastErr == nil && (p.attempt != nil || len(p.candidates) > 0):
		return StateConnecting
	}
	return StateDown
}
