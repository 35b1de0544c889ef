package host

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Link is a link of Weave's, for a report.
type Link struct {
	Name   string `json:"name"`
	Kind   string `json:"kind"`
	MTU    int    `json:"mtu"`
	Up     bool   `json:"up"`
	Bridge string `json:"bridge,omitempty"` // that it is a port of
}

// Rule is a rule of Weave's in nftables, by the comment that tells what it is for.
type Rule struct {
	Family  string `json:"family"`
	Table   string `json:"table"`
	Chain   string `json:"chain"`
	Comment string `json:"comment"`
}

// Own lists all links and rules of Weave's.
func (k *Kernel) Own() (links []Link, rules []Rule, err error) {
	links, rules = []Link{}, []Rule{}
	err = withNetlink(func(h *netlink.Handle) error {
		all, err := h.LinkList()
		if err != nil {
			return err
		}
		links = ownLinks(all)
		return nil
	})
	if err != nil {
		return links, rules, fmt.Errorf("list links: %w", err)
	}
	if rules, err = listRules(); err != nil {
		return links, rules, fmt.Errorf("list rules: %w", err)
	}
	return links, rules, nil
}

func ownLinks(all []netlink.Link) []Link {
	names := map[int]string{}
	for _, l := range all {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	links := []Link{}
	for _, l := range all {
		a := l.Attrs()
		if strings.HasPrefix(a.Name, Prefix) {
			links = append(links, Link{a.Name, l.Type(), a.MTU, a.RawFlags&unix.IFF_UP != 0, names[a.MasterIndex]})
		}
	}
	slices.SortFunc(links, func(a, b Link) int { return strings.Compare(a.Name, b.Name) })
	return links
}

// listRules finds the rules in tables of ours, and those of ours in tables of
// others.
func listRules() ([]Rule, error) {
	rules := []Rule{}
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return rules, err
	}
	defer func() { _ = conn.CloseLasting() }()
	chains, err := conn.ListChains()
	if err != nil {
		return rules, err
	}
	for _, c := range chains {
		if !strings.HasPrefix(c.Table.Name, tableName) {
			continue
		}
		found, err := conn.GetRules(c.Table, c)
		if err != nil {
			return rules, err
		}
		for _, r := range found {
			text, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			rules = append(rules, Rule{familyName(c.Table.Family), c.Table.Name, c.Name, text})
		}
	}
	for _, f := range families() {
		chains, err := f.chains(conn)
		if err != nil {
			return rules, err
		}
		for _, c := range chains {
			own, err := ownRules(conn, c)
			if err != nil {
				return rules, err
			}
			for range own {
				rules = append(rules, Rule{familyName(f.nft), c.Table.Name, c.Name, acceptComment})
			}
		}
	}
	return rules, nil
}

// familyName is what nft calls a family.
func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyBridge:
		return "bridge"
	case nftables.TableFamilyINet:
		return "inet"
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	case nftables.TableFamilyNetdev:
		return "netdev"
	}
	return fmt.Sprint(byte(f))
}
