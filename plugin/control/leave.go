package control

import (
	"context"
	"net/http"
)

const leavePath = "/v1/leave"

// Departure tells who removes this host from the cluster once it is gone.
type Departure struct {
	Peer    string   `json:"peer"`    // this host's peer ID, for who has to do it by hand
	Others  int      `json:"others"`  // hosts of the cluster, without this one and those that were removed
	Helpers []string `json:"helpers"` // nicknames of those that will
}

// Leave has the plugin ask others to remove this host from the cluster as soon
// as it is gone. It is for hosts that are wiped next: whoever does not go within
// some minutes stays.
func (c *Client) Leave(ctx context.Context) (Departure, error) {
	var d Departure
	err := c.call(ctx, http.MethodPost, leavePath, nothing, &d)
	return d, err
}
