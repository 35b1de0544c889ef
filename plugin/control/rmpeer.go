package control

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
)

const rmpeerPath = "/v1/rmpeer"

// Removal tells what became of the addresses of a peer that was removed.
type Removal struct {
	Peer     string        `json:"peer"`
	Nickname string        `json:"nickname"`
	Heir     string        `json:"heir"`    // nickname of the host that has its addresses now
	Pending  bool          `json:"pending"` // the heir does not answer now: it will hear of it
	Missing  []string      `json:"missing"` // nicknames of hosts that must tell what the peer gave them, before the heir has anything
	Pools    []RemovedPool `json:"pools"`
}

// RemovedPool is what the heir took over of one pool.
type RemovedPool struct {
	Subnet    netip.Prefix `json:"subnet"`
	Addresses uint64       `json:"addresses"`
	Held      []netip.Addr `json:"held"` // not given out: containers of the removed peer may still have them
}

// removal is the body of a request to remove a peer.
type removal struct {
	Peer string `json:"peer"`
	Gone bool   `json:"gone"`
}

// RemovePeer has the cluster remove a peer, by ID, by the beginning of one, or
// by nickname. Gone says that its containers are gone as well.
func (c *Client) RemovePeer(ctx context.Context, peer string, gone bool) (Removal, error) {
	body, err := json.Marshal(removal{peer, gone})
	if err != nil {
		return Removal{}, err
	}
	var r Removal
	err = c.call(ctx, http.MethodPost, rmpeerPath, body, &r)
	return r, err
}

// removePeer serves a request to remove a peer.
func removePeer(d Daemon, w http.ResponseWriter, r *http.Request) {
	var req removal
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(&req); err != nil {
		refuse(w, fmt.Errorf("malformed request: %w", err))
		return
	}
	if req.Peer == "" {
		refuse(w, fmt.Errorf("no peer is named"))
		return
	}
	done, err := d.RemovePeer(r.Context(), req.Peer, req.Gone)
	answer(w, done, err)
}
