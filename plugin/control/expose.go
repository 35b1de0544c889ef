package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
)

const (
	exposePath = "/v1/expose"
	hidePath   = "/v1/hide"

	maxForwards = 256
)

// Target is an address in a subnet; without Address any of its pool is meant.
type Target struct {
	Subnet  netip.Prefix `json:"subnet"`
	Address netip.Addr   `json:"address,omitzero"`
}

// String writes a target as its user does.
func (t Target) String() string {
	if t.Address.IsValid() {
		return netip.PrefixFrom(t.Address, t.Subnet.Bits()).String()
	}
	return "net:" + t.Subnet.String()
}

// Forward sends on what comes to a port.
type Forward struct {
	Protocol string         `json:"protocol"` // tcp or udp
	Port     uint16         `json:"port"`
	To       netip.AddrPort `json:"to"`
}

// ExposeRequest asks for addresses of this host. What they are for is added to
// what they are for already.
type ExposeRequest struct {
	Targets    []Target  `json:"targets"`
	Masquerade bool      `json:"masquerade,omitempty"` // let the segment's containers out through this host
	Exports    []Forward `json:"exports,omitempty"`    // from this host's addresses to containers
	Imports    []Forward `json:"imports,omitempty"`    // from the exposed address to what this host reaches
}

// Exposed is an address of this host on a segment.
type Exposed struct {
	Address    netip.Prefix `json:"address"` // with the length of its subnet
	Segment    string       `json:"segment"` // its key
	Network    string       `json:"network"` // name or ID
	Bridge     string       `json:"bridge"`
	MAC        string       `json:"mac"`
	Announced  bool         `json:"announced"` // told to the other hosts
	Masquerade bool         `json:"masquerade"`
	Exports    []Forward    `json:"exports"`
	Imports    []Forward    `json:"imports"`
}

// hideRequest is the body of a request to hide.
type hideRequest struct {
	Targets []Target `json:"targets"`
}

// Expose gives this host addresses on segments, all or, with an error, none.
func (c *Client) Expose(ctx context.Context, r ExposeRequest) ([]Exposed, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	var all []Exposed
	err = c.call(ctx, http.MethodPost, exposePath, body, &all)
	return all, err
}

// Hide takes such addresses back, all of them if no targets are named. It
// returns what they were for.
func (c *Client) Hide(ctx context.Context, targets []Target) ([]Exposed, error) {
	body, err := json.Marshal(hideRequest{targets})
	if err != nil {
		return nil, err
	}
	var all []Exposed
	err = c.call(ctx, http.MethodPost, hidePath, body, &all)
	return all, err
}

func expose(d Daemon, w http.ResponseWriter, r *http.Request) {
	var req ExposeRequest
	err := readStrictly(w, r, &req)
	if err == nil {
		err = checkTargets(req.Targets)
	}
	switch {
	case err != nil:
	case len(req.Targets) == 0:
		err = errors.New("no address is named")
	case len(req.Exports) > maxForwards || len(req.Imports) > maxForwards:
		err = fmt.Errorf("more than %d exports or imports", maxForwards)
	}
	if err != nil {
		refuse(w, err)
		return
	}
	all, err := d.Expose(r.Context(), req)
	answer(w, withLists(all), err)
}

func hide(d Daemon, w http.ResponseWriter, r *http.Request) {
	var req hideRequest
	err := readStrictly(w, r, &req)
	if err == nil {
		err = checkTargets(req.Targets)
	}
	if err != nil {
		refuse(w, err)
		return
	}
	all, err := d.Hide(r.Context(), req.Targets)
	answer(w, withLists(all), err)
}

// readStrictly reads a request's body, and refuses what it has beyond v: the
// command line may be newer than we.
func readStrictly(w http.ResponseWriter, r *http.Request, v any) error {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
	dec.DisallowUnknownFields()
	err := dec.Decode(v)
	if err == nil {
		if _, after := dec.Token(); !errors.Is(after, io.EOF) {
			err = errors.New("more than one value")
		}
	}
	if err == nil {
		return nil
	}
	if strings.Contains(err.Error(), "unknown field") {
		return fmt.Errorf("this plugin is older than the command, which asks for what it does not know (%w): `weave launch` upgrades it (a service: restart it)", err)
	}
	return fmt.Errorf("malformed request: %w", err)
}

func checkTargets(targets []Target) error {
	if len(targets) > maxAddresses {
		return fmt.Errorf("%d addresses, want at most %d", len(targets), maxAddresses)
	}
	for _, t := range targets {
		switch {
		case !t.Subnet.IsValid() || t.Subnet != t.Subnet.Masked() || t.Subnet.Addr().Is4In6():
			return fmt.Errorf("subnet %q", t.Subnet)
		case t.Address.IsValid() && (t.Address.Zone() != "" || !t.Subnet.Contains(t.Address)):
			return fmt.Errorf("address %s is outside subnet %s", t.Address, t.Subnet)
		}
	}
	return nil
}
