package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
)

const (
	addNamePath    = "/v1/dns/add"
	removeNamePath = "/v1/dns/remove"
)

// DNS tells how containers find others by name.
type DNS struct {
	Domain    string         `json:"domain"`          // that names may have behind them
	TTL       int            `json:"ttl"`             // of answers, in seconds
	Listen    netip.AddrPort `json:"listen,omitzero"` // where others are answered; none if they are not
	Sandboxes int            `json:"sandboxes"`       // of this host's containers in which names are answered
	Questions Questions      `json:"questions"`
	Names     []Name         `json:"names"` // on all segments, by name
}

// Questions tells what became of the questions for names since the start.
type Questions struct {
	Answered uint64 `json:"answered"` // here
	Passed   uint64 `json:"passed"`   // on to others, such as Docker's resolver, and answered by them
	Failed   uint64 `json:"failed"`   // others did not answer, or cannot be asked
	Dropped  uint64 `json:"dropped"`  // no question, or one too many at a time
}

// Name is one address of a name.
type Name struct {
	Name      string     `json:"name"`
	Address   netip.Addr `json:"address"`
	Segment   string     `json:"segment"`             // that it is seen on; empty: on all
	Container string     `json:"container,omitempty"` // whose it is
	Host      string     `json:"host"`                // nickname of the peer that tells it
	Peer      string     `json:"peer"`
	Local     bool       `json:"local"` // of a container of this host
	Made      bool       `json:"made"`  // by weave dns-add
}

// NameRequest names what is to be added or removed.
type NameRequest struct {
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses"`         // to remove: none means all
	Network   string       `json:"network,omitempty"` // name, ID or subnet; empty: the name is for all
}

// AddName adds addresses to a name, until RemoveName.
func (c *Client) AddName(ctx context.Context, r NameRequest) error {
	return c.callName(ctx, addNamePath, r)
}

// RemoveName takes addresses of a name back that AddName gave it on this host.
func (c *Client) RemoveName(ctx context.Context, r NameRequest) error {
	return c.callName(ctx, removeNamePath, r)
}

func (c *Client) callName(ctx context.Context, path string, r NameRequest) error {
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return c.call(ctx, http.MethodPost, path, body, &struct{}{})
}

// changeName serves a request to add or to remove; least is how many addresses it must
// name.
func changeName(do func(context.Context, NameRequest) error, least int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var req NameRequest
		err := readStrictly(w, r, &req)
		switch n := len(req.Addresses); {
		case err != nil:
		case req.Name == "":
			err = errors.New("no name is given")
		case n < least || n > maxAddresses:
			err = fmt.Errorf("%d addresses, want %d to %d", n, least, maxAddresses)
		}
		if err != nil {
			refuse(w, err)
			return
		}
		answer(w, struct{}{}, do(r.Context(), req))
	}
}
