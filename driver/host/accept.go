package host

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// Comments mark our rules among those of others; iptables shows them.
const (
	acceptComment  = "weave: within its bridges"
	throughComment = "weave: through the host, "
)

// family is what differs between the firewalls of IPv4 and IPv6.
type family struct {
	name         string
	nft          nftables.TableFamily
	iptables     string
	bridged      string // the sysctl that sends bridged frames to the firewall
	legacyTables string // lists the tables of legacy iptables
	layout       legacyLayout
}

func families() []family {
	return []family{
		{
			name: "IPv4", nft: nftables.TableFamilyIPv4, iptables: "iptables",
			bridged:      "/proc/sys/net/bridge/bridge-nf-call-iptables",
			legacyTables: "/proc/thread-self/net/ip_tables_names",
			layout: legacyLayout{
				family: unix.AF_INET, level: unix.IPPROTO_IP, inName: 16, targetOffset: 88, nextOffset: 90,
			},
		},
		{
			name: "IPv6", nft: nftables.TableFamilyIPv6, iptables: "ip6tables",
			bridged:      "/proc/sys/net/bridge/bridge-nf-call-ip6tables",
			legacyTables: "/proc/thread-self/net/ip6_tables_names",
			layout: legacyLayout{
				family: unix.AF_INET6, level: unix.IPPROTO_IPV6, inName: 64, targetOffset: 140, nextOffset: 142,
			},
		},
	}
}

// Blocked is a problem that only the host's owner can solve: a firewall of
// legacy iptables, where we cannot put the rule that lets frames pass within a
// bridge.
type Blocked struct {
	Family  string // IPv4 or IPv6
	Command string // allows the frames until the next boot
}

// String names the trouble and the ways out. To keep the firewall away from all
// bridged frames is none: Docker's own bridges need it to keep containers apart.
func (b Blocked) String() string {
	return fmt.Sprintf("this host's %s firewall is kept by legacy iptables, where Weave cannot add its rule, "+
		"and it drops the frames of containers. Switch the host to iptables-nft and restart Docker, "+
		"or run `%s` after each boot", b.Family, b.Command)
}

func (f family) problem() Blocked {
	return Blocked{
		Family:  f.name,
		Command: f.iptables + "-legacy -I FORWARD -i " + Prefix + "+ -o " + Prefix + "+ -j ACCEPT",
	}
}

// accept is a rule that lets packets pass.
type accept struct {
	comment string
	links   []expr.Any // that they come from and go to
}

func within() accept {
	return accept{acceptComment, slices.Concat(ifName(expr.MetaKeyIIFNAME), ifName(expr.MetaKeyOIFNAME))}
}

// ensureAccept puts the rule that lets frames pass within bridges, and others, at
// the head of the user's chain, if they are not in that chain.
func (f family) ensureAccept(conn *nftables.Conn, others []accept) error {
	chains, err := f.chains(conn)
	if err != nil {
		return err
	}
	want := append([]accept{within()}, others...)
	for i, c := range chains {
		own, err := ownRules(conn, c)
		if err != nil {
			return err
		}
		switch {
		case i > 0: // a better place has appeared since
			err = deleteRules(conn, own)
		case !slices.EqualFunc(own, want, func(r *nftables.Rule, a accept) bool { return comment(r) == a.comment }):
			err = replaceRules(conn, c, own, want)
		}
		if err != nil {
			return fmt.Errorf("%s chain %s: %w", f.name, c.Name, err)
		}
	}
	return nil
}

// replaceRules puts rules at the head of a chain, in their order, in place of the
// old ones.
func replaceRules(conn *nftables.Conn, c *nftables.Chain, old []*nftables.Rule, want []accept) error {
	if err := deleteRules(conn, old); err != nil {
		return err
	}
	for _, a := range slices.Backward(want) {
		conn.InsertRule(rule(c, a.comment, a.links, verdict(expr.VerdictAccept)))
	}
	return conn.Flush()
}

func (f family) removeAccept(conn *nftables.Conn) error {
	chains, err := f.chains(conn)
	if err != nil {
		return err
	}
	for _, c := range chains {
		own, err := ownRules(conn, c)
		if err == nil {
			err = deleteRules(conn, own)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// chains returns the chains that may hold the rule, the better place first.
// FORWARD serves hosts where Docker leaves the firewall of that family alone.
func (f family) chains(conn *nftables.Conn) ([]*nftables.Chain, error) {
	all, err := conn.ListChainsOfTableFamily(f.nft)
	if err != nil {
		return nil, fmt.Errorf("list %s firewall chains: %w", f.name, err)
	}
	var found []*nftables.Chain
	for _, name := range []string{"DOCKER-USER", "FORWARD"} {
		i := slices.IndexFunc(all, func(c *nftables.Chain) bool {
			return c.Table.Name == "filter" && c.Name == name
		})
		if i >= 0 {
			found = append(found, all[i])
		}
	}
	return found, nil
}

// ownRules returns our rules in a chain. They are known by their comment, so
// that one is recognised also after iptables-save and iptables-restore, which
// add a counter to it.
func ownRules(conn *nftables.Conn, c *nftables.Chain) ([]*nftables.Rule, error) {
	rules, err := conn.GetRules(c.Table, c)
	if err != nil {
		return nil, fmt.Errorf("list rules of %s: %w", c.Name, err)
	}
	return slices.DeleteFunc(rules, func(r *nftables.Rule) bool {
		text := comment(r)
		return text != acceptComment && !strings.HasPrefix(text, throughComment)
	}), nil
}

// comment returns a rule's comment: nft keeps it beside the rule, iptables as
// an expression.
func comment(r *nftables.Rule) string {
	if text, ok := userdata.GetString(r.UserData, userdata.TypeComment); ok {
		return text
	}
	for _, e := range r.Exprs {
		if m, ok := e.(*expr.Match); ok {
			if c, ok := m.Info.(*xt.Comment); ok {
				return strings.TrimRight(string(*c), "\x00")
			}
		}
	}
	return ""
}

func deleteRules(conn *nftables.Conn, rules []*nftables.Rule) error {
	for _, r := range rules {
		if err := conn.DelRule(r); err != nil {
			return err
		}
	}
	err := conn.Flush()
	if errors.Is(err, unix.ENOENT) { // someone was faster
		return nil
	}
	return err
}
