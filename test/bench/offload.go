package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/safchain/ethtool"
)

// underlay lists the links between the hosts of a pair: both ends of the cable
// of each.
func (p *pair) underlay() []port {
	var out []port
	for i := range p.ends {
		h := p.ends[i].host
		out = append(out, port{h.Namespace(), "eth0"}, port{p.lab.Name() + "-wires", h.Name()})
	}
	return out
}

// port is a link in a named network namespace.
type port struct{ space, link string }

// setOffloads switches off all that spares the CPU work on runs and checksums,
// on all links of the underlay, or puts back what was on at first: a veth pair
// has all of it but GRO, which it does not need, since runs pass it whole. What
// came of it is read back.
func (p *pair) setOffloads(on bool) error {
	if p.offloads == nil {
		p.offloads = map[port][]string{}
	}
	for _, l := range p.underlay() {
		err := inSpace(l.space, func() (err error) {
			if _, ok := p.offloads[l]; !ok {
				if p.offloads[l], err = activeOffloads(l.link); err != nil {
					return err
				}
			}
			return setFeatures(l.link, p.offloads[l], on)
		})
		if err != nil {
			return fmt.Errorf("offloads of %s in %s: %w", l.link, l.space, err)
		}
	}
	return nil
}

// isOffload judges by the kernel's name of a feature, such as
// tx-tcp6-segmentation, tx-checksum-ip-generic or rx-gro.
func isOffload(feature string) bool {
	switch feature {
	case "rx-gro", "rx-lro", "rx-checksum":
		return true
	}
	for _, prefix := range []string{"tx-checksum-", "tx-scatter-gather", "tx-gso-", "rx-gro-", "rx-udp-gro-"} {
		if strings.HasPrefix(feature, prefix) {
			return true
		}
	}
	return strings.HasPrefix(feature, "tx-") && strings.HasSuffix(feature, "-segmentation")
}

// activeOffloads lists what is on and can be switched off.
func activeOffloads(link string) ([]string, error) {
	tool, err := ethtool.NewEthtool()
	if err != nil {
		return nil, err
	}
	defer tool.Close()
	features, err := tool.FeaturesWithState(link)
	if err != nil {
		return nil, err
	}
	var names []string
	for name, state := range features {
		if isOffload(name) && state.Active && state.Available {
			names = append(names, name)
		}
	}
	if slices.Sort(names); len(names) == 0 {
		return nil, errors.New("none is on")
	}
	return names, nil
}

func setFeatures(link string, names []string, on bool) error {
	tool, err := ethtool.NewEthtool()
	if err != nil {
		return err
	}
	defer tool.Close()
	want := map[string]bool{}
	for _, name := range names {
		want[name] = on
	}
	if err := tool.Change(link, want); err != nil {
		return err
	}
	after, err := tool.Features(link)
	if err != nil {
		return err
	}
	for _, name := range names {
		if after[name] != on {
			return fmt.Errorf("%s is %v after the change", name, after[name])
		}
	}
	return nil
}
