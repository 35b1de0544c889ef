package tunnel

import (
	"weave/mesh/fdb"
	"weave/mesh/id"
)

// SetCarried replaces the set of peers that get the multicast frames of a
// segment by another way than the tunnel's: it sends them none, but for
// broadcasts. They need not be members. Like SetMembers it does nothing for a
// segment that is not here.
func (t *Tunnel) SetCarried(key string, peers []id.PeerID) {
	if s := t.segment(key); s != nil {
		s.setCarried(peers)
	}
}

// Learn takes in where a MAC address was seen by another way, as if a frame
// from it had come through the tunnel. It does nothing for an address that an
// endpoint announced, and for a segment that is not here.
func (t *Tunnel) Learn(key string, mac fdb.MAC, at id.PeerID) {
	if s := t.segment(key); s != nil {
		s.admit(mac, fdb.At(at), s.clock())
	}
}
