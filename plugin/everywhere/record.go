package everywhere

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"

	"weave/mesh/id"
	"weave/plugin/engine"
)

// record is a network as hosts tell it each other, under its name.
type record struct {
	Internal    bool              `json:"internal,omitempty"`
	IPv6        bool              `json:"ipv6,omitempty"`
	Options     map[string]string `json:"options,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	IPAMOptions map[string]string `json:"ipamOptions,omitempty"`
	Pools       []engine.Pool     `json:"pools"`
	// Made says that its host made the network because others had it: it counts
	// only while containers there use it.
	Made bool `json:"made,omitempty"`
}

// shared is a record, whose it is, and the network's name.
type shared struct {
	name  string
	owner id.PeerID
	record
}

// weaveDriver is what networks are made with, as network and as IPAM driver: the
// managed plugin may have another name on each host.
const weaveDriver = "weave"

// nameForm is what Docker takes as a name, and short enough for a key.
var nameForm = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,199}$`)

// maxPools is how many subnets a network may have: one of each family.
const maxPools = 2

// recordOf tells of a network.
func recordOf(n engine.Network, made bool) record {
	return record{
		Internal: n.Internal, IPv6: n.IPv6, Options: n.Options, Labels: n.Labels,
		IPAMOptions: n.IPAM.Options, Pools: n.IPAM.Pools, Made: made,
	}
}

// network is what to have the engine make.
func (s shared) network() engine.Network {
	return engine.Network{
		Name: s.name, Driver: weaveDriver, Internal: s.Internal, IPv6: s.IPv6, Options: s.Options, Labels: s.Labels,
		IPAM: engine.IPAM{Driver: weaveDriver, Options: s.IPAMOptions, Pools: s.Pools},
	}
}

// decode reads what another host tells.
func decode(name string, value []byte) (record, error) {
	var r record
	if err := json.Unmarshal(value, &r); err != nil {
		return record{}, fmt.Errorf("record of a network: %w", err)
	}
	if !nameForm.MatchString(name) {
		return record{}, errors.New("record of a network: no name that Docker takes")
	}
	if len(r.Pools) == 0 || len(r.Pools) > maxPools {
		return record{}, fmt.Errorf("record of a network: %d subnets", len(r.Pools))
	}
	for _, p := range r.Pools {
		if err := check(p); err != nil {
			return record{}, err
		}
	}
	return r, nil
}

func check(p engine.Pool) error {
	s := p.Subnet
	switch {
	case !s.IsValid() || s != s.Masked() || s.Bits() == 0 || s.Addr().Is4In6():
		return fmt.Errorf("record of a network: subnet %s", s)
	case p.Range.IsValid() && (p.Range.Bits() < s.Bits() || !s.Contains(p.Range.Addr())):
		return fmt.Errorf("record of a network: range %s of %s", p.Range, s)
	case p.Gateway.IsValid() && !s.Contains(p.Gateway):
		return fmt.Errorf("record of a network: gateway %s of %s", p.Gateway, s)
	}
	for _, a := range p.Auxiliary {
		if !s.Contains(a) {
			return fmt.Errorf("record of a network: auxiliary address %s of %s", a, s)
		}
	}
	return nil
}

// differs tells what another network of the same name has that this one has not;
// empty if it is the same network. Labels may differ: the switch is the same.
func (r record) differs(o record) string {
	switch {
	case !slices.EqualFunc(r.Pools, o.Pools, func(a, b engine.Pool) bool { return a.Subnet == b.Subnet }):
		return "another subnet, " + subnets(o.Pools)
	case r.Internal != o.Internal:
		return "another setting of --internal"
	case !maps.Equal(r.Options, o.Options):
		return "other options"
	case !slices.EqualFunc(r.Pools, o.Pools, samePool):
		return "another range, gateway or auxiliary address"
	}
	return ""
}

func samePool(a, b engine.Pool) bool {
	return a.Range == b.Range && a.Gateway == b.Gateway && maps.Equal(a.Auxiliary, b.Auxiliary)
}

func subnets(pools []engine.Pool) string {
	text := ""
	for _, p := range pools {
		if text != "" {
			text += ", "
		}
		text += p.Subnet.String()
	}
	return text
}
