// Package engine reads from the API of the local Docker Engine what the plugin
// protocol does not tell: names, labels, and which endpoints still exist. It also
// makes and removes networks, for those that are to be on all hosts.
//
// It is for background work and for commands: while dockerd starts, or waits for an
// answer of the plugin, its API may not answer. Who asks while dockerd waits, bounds
// the question and does without the answer.
//
// It reads with a client of its own, because moby's refuses what engine 20.10 says of
// networks with an IPv6 pool ("Gateway": "::/0" is no address).
package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

// ErrNotFound says that the engine answered and has no such network.
var ErrNotFound = errors.New("no such network")

const (
	callTimeout = 10 * time.Second
	maxAnswer   = 16 << 20 // bytes; a container takes some 300
	maxMessage  = 500      // bytes of an error that are passed on
)

// Client talks to one engine. Its methods may be called concurrently.
type Client struct {
	path string
	http http.Client
}

// New returns a client of the engine that listens on the unix socket at path.
// It connects when it is used.
func New(path string) *Client {
	dialer := &net.Dialer{}
	return &Client{path: path, http: http.Client{
		Timeout: callTimeout,
		Transport: &http.Transport{
			DisableKeepAlives: true, // dockerd may have been replaced since the last call
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, "unix", path)
			},
		},
	}}
}

// Network is what the engine knows of one of its networks.
type Network struct {
	ID        string
	Name      string
	Driver    string
	Internal  bool
	IPv6      bool
	Options   map[string]string // of the driver
	Labels    map[string]string
	IPAM      IPAM
	Endpoints []Endpoint // those of running containers, ordered by ID; Networks leaves them out
}

// IPAM says where a network has its addresses from.
type IPAM struct {
	Driver  string // as its user named it: plugins may go by several names
	Options map[string]string
	Pools   []Pool
}

// Pool is a subnet of a network, the part of it that addresses are leased from
// if not from all of it, and what of it is kept free by --aux-address.
type Pool struct {
	Subnet    netip.Prefix          `json:"subnet"`
	Range     netip.Prefix          `json:"range,omitzero"`
	Gateway   netip.Addr            `json:"gateway,omitzero"` // as its user gave it
	Auxiliary map[string]netip.Addr `json:"aux,omitempty"`    // by names that their user made up
}

// Reserves tells whether --aux-address keeps an address free.
func (p Pool) Reserves(a netip.Addr) bool {
	for _, aux := range p.Auxiliary {
		if aux == a {
			return true
		}
	}
	return false
}

// IsWeave tells whether a driver, of networks or of addresses, is weave, by any of
// the names that users have for it.
func IsWeave(driver string) bool {
	return driver == "weave" || driver == "weavenet" || driver == "weavenet:latest"
}

// Endpoint is a container's attachment to a network.
type Endpoint struct {
	ID            string
	ContainerID   string // empty if no container holds it
	ContainerName string
	MAC           string
	Addresses     []netip.Prefix // IPv4, IPv6; those it has
}

// inspected is the part of the engine's answer that is used. Addresses are
// strings, since an endpoint that lacks one has an empty string.
type inspected struct {
	ID         string `json:"Id"`
	Name       string
	Driver     string
	Internal   bool
	EnableIPv6 bool
	Options    map[string]string
	Labels     map[string]string
	ConfigOnly bool
	IPAM       struct {
		Driver  string
		Options map[string]string
		Config  []struct {
			Subnet, IPRange, Gateway string
			AuxiliaryAddresses       map[string]string
		}
	}
	Containers map[string]struct {
		Name        string
		EndpointID  string
		MacAddress  string
		IPv4Address string
		IPv6Address string
	}
}

// NetworkByID returns the network with exactly that ID, or ErrNotFound.
func (c *Client) NetworkByID(ctx context.Context, id string) (Network, error) {
	var raw inspected
	if err := c.get(ctx, "/networks/"+url.PathEscape(id), &raw); err != nil {
		return Network{}, fmt.Errorf("ask the engine for network %s: %w", id, err)
	}
	if raw.ID != id { // the engine also looks for a name, and for the start of an ID
		return Network{}, fmt.Errorf("ask the engine for network %s: %w", id, ErrNotFound)
	}
	return raw.network(), nil
}

// Networks returns all networks of the engine, without their endpoints. Those
// that only keep settings for others are left out: they have no addresses.
func (c *Client) Networks(ctx context.Context) ([]Network, error) {
	var raw []inspected
	if err := c.get(ctx, "/networks", &raw); err != nil {
		return nil, fmt.Errorf("ask the engine for its networks: %w", err)
	}
	if len(raw) == 0 { // "host" and "none" are always there
		return nil, errors.New("ask the engine for its networks: it named none")
	}
	var all []Network
	for _, n := range raw {
		if !n.ConfigOnly {
			all = append(all, n.network())
		}
	}
	return all, nil
}

func (raw inspected) network() Network {
	n := Network{
		ID: raw.ID, Name: raw.Name, Driver: raw.Driver, Internal: raw.Internal, IPv6: raw.EnableIPv6,
		Options: raw.Options, Labels: raw.Labels, IPAM: IPAM{Driver: raw.IPAM.Driver, Options: raw.IPAM.Options},
	}
	for _, c := range raw.IPAM.Config {
		if subnet, err := netip.ParsePrefix(c.Subnet); err == nil {
			within, _ := netip.ParsePrefix(c.IPRange) // mostly empty
			pool := Pool{Subnet: subnet.Masked(), Range: within.Masked(), Gateway: gateway(c.Gateway)}
			for name, aux := range c.AuxiliaryAddresses {
				if addr, err := netip.ParseAddr(aux); err == nil {
					if pool.Auxiliary == nil {
						pool.Auxiliary = map[string]netip.Addr{}
					}
					pool.Auxiliary[name] = addr.Unmap()
				}
			}
			n.IPAM.Pools = append(n.IPAM.Pools, pool)
		}
	}
	for container, c := range raw.Containers {
		e := Endpoint{ID: c.EndpointID, ContainerID: container, ContainerName: c.Name, MAC: c.MacAddress}
		if strings.HasPrefix(container, "ep-") { // the engine's key for an endpoint without one
			e.ContainerID = ""
		}
		for _, s := range []string{c.IPv4Address, c.IPv6Address} {
			if p, err := netip.ParsePrefix(s); err == nil {
				e.Addresses = append(e.Addresses, p)
			}
		}
		n.Endpoints = append(n.Endpoints, e)
	}
	slices.SortFunc(n.Endpoints, func(a, b Endpoint) int { return strings.Compare(a.ID, b.ID) })
	return n
}

// gateway reads an address, or one with the length of its subnet. The engine says
// 0.0.0.0 and ::/0 where weave gave none.
func gateway(s string) netip.Addr {
	a, _ := netip.ParseAddr(s)
	if p, err := netip.ParsePrefix(s); err == nil {
		a = p.Addr()
	}
	if a.IsUnspecified() {
		return netip.Addr{}
	}
	return a.Unmap()
}

// get decodes the answer to a GET request. It speaks the engine's own version
// of the API: what is read here has been the same in all of them.
func (c *Client) get(ctx context.Context, path string, answer any) error {
	version, err := c.version(ctx)
	if err != nil {
		return err
	}
	resp, err := c.do(ctx, "/v"+version+path)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // read only: nothing is lost
	body := io.LimitReader(resp.Body, maxAnswer)
	if resp.StatusCode != http.StatusOK {
		return refusal(resp.StatusCode, body)
	}
	if err := json.NewDecoder(body).Decode(answer); err != nil {
		return fmt.Errorf("malformed answer: %w", err)
	}
	return nil
}

var versionForm = regexp.MustCompile(`^[0-9]{1,3}\.[0-9]{1,4}$`)

// version asks the engine for the latest version of the API that it speaks.
func (c *Client) version(ctx context.Context) (string, error) {
	resp, err := c.do(ctx, "/_ping")
	if err != nil {
		return "", err
	}
	if err := resp.Body.Close(); err != nil {
		return "", err
	}
	v := resp.Header.Get("Api-Version")
	if resp.StatusCode != http.StatusOK || !versionForm.MatchString(v) {
		return "", fmt.Errorf("ping answered %s, API version %q", resp.Status, v)
	}
	return v, nil
}

func (c *Client) do(ctx context.Context, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+path, nil)
	if err != nil {
		return nil, err
	}
	return c.http.Do(req)
}

// refusal makes an error of the engine's {"message": …}.
func refusal(status int, body io.Reader) error {
	if status == http.StatusNotFound {
		return ErrNotFound
	}
	text, err := io.ReadAll(io.LimitReader(body, maxMessage))
	if err != nil {
		return err
	}
	var m struct{ Message string }
	if json.Unmarshal(text, &m) != nil || m.Message == "" {
		m.Message = string(text)
	}
	return fmt.Errorf("engine answered %d: %s", status, m.Message)
}
