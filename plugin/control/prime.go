package control

import (
	"context"
	"net/http"
	"net/netip"
)

const primePath = "/v1/prime"

// Primed tells how far the default subnet is.
type Primed struct {
	Subnet  netip.Prefix `json:"subnet"`
	Free    uint64       `json:"free"`              // addresses that this host can give out by itself
	Waiting string       `json:"waiting,omitempty"` // what it waits for; empty: for nothing
}

// Prime has the plugin get addresses of the default subnet, which takes some
// seconds at most: who wants to wait longer asks again.
func (c *Client) Prime(ctx context.Context) (Primed, error) {
	var p Primed
	err := c.call(ctx, http.MethodPost, primePath, nothing, &p)
	return p, err
}
