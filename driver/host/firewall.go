package host

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// The firewall is two things. The table "bridge weave" is ours alone and keeps
// the bridges apart from each other and from the host: whatever a port of ours
// sends to the host's own side of its bridge ends there, and the host sends
// nothing out by them.
//
//	table bridge weave {
//	  chain input { type filter hook input priority filter - 1;
//	    iifname "wv*" drop
//	  }
//	  chain output { type filter hook output priority filter - 1;
//	    oifname "wv*" drop
//	  }
//	}
//
// Frames that stay within a bridge meet neither chain, so that they are not
// slowed down.
//
// And one rule at the head of Docker's chain for the user (see accept.go) lets
// pass what Docker's policy would drop, where bridged frames go through the
// host's firewall.
const tableName = "weave"

// ruleset is the content of our table.
type ruleset struct {
	table  *nftables.Table
	chains []*nftables.Chain
	rules  map[string][]*nftables.Rule // by chain, in order
}

// EnsureFirewall keeps the bridges apart, and lets frames pass within each of
// them. It changes nothing where all is as it should be, so it can be called
// often; and it must be, because Docker and others rebuild their chains. It
// returns what may still stop frames and is not ours to change.
func (k *Kernel) EnsureFirewall() ([]Blocked, error) {
	k.firewall.Lock()
	defer k.firewall.Unlock()
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("set up firewall: open nftables: %w", err)
	}
	defer func() { _ = conn.CloseLasting() }()
	if err := ensureIsolation(conn); err != nil {
		return nil, fmt.Errorf("set up firewall: table bridge %s: %w", tableName, err)
	}
	var blocked []Blocked
	for _, f := range families() {
		if err := f.ensureAccept(conn); err != nil {
			return nil, fmt.Errorf("set up firewall: %w", err)
		}
		if yes, err := f.legacyDrops(); err != nil {
			return nil, fmt.Errorf("set up firewall: %w", err)
		} else if yes {
			blocked = append(blocked, f.problem())
		}
	}
	return blocked, nil
}

// RemoveFirewall takes all rules of Weave away.
func (k *Kernel) RemoveFirewall() error {
	k.firewall.Lock()
	defer k.firewall.Unlock()
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return fmt.Errorf("remove firewall: open nftables: %w", err)
	}
	defer func() { _ = conn.CloseLasting() }()
	table := isolation().table
	conn.AddTable(table) // so that deleting it cannot fail
	conn.DelTable(table)
	removeOld(conn)
	errs := []error{conn.Flush()}
	for _, f := range families() {
		errs = append(errs, f.removeAccept(conn))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove firewall: %w", err)
	}
	return nil
}

func ensureIsolation(conn *nftables.Conn) error {
	want := isolation()
	same, err := want.installed(conn)
	if err != nil || same {
		return err
	}
	return want.install(conn)
}

func isolation() *ruleset {
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyBridge}
	accept := nftables.ChainPolicyAccept
	base := func(name string, hook *nftables.ChainHook) *nftables.Chain {
		return &nftables.Chain{
			Name: name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook,
			Priority: nftables.ChainPriorityRef(beforeFilter), Policy: &accept,
		}
	}
	input := base("input", nftables.ChainHookInput)
	output := base("output", nftables.ChainHookOutput)
	return &ruleset{
		table:  table,
		chains: []*nftables.Chain{input, output},
		rules: map[string][]*nftables.Rule{
			input.Name:  {rule(input, "weave: to the host", ifName(expr.MetaKeyIIFNAME), verdict(expr.VerdictDrop))},
			output.Name: {rule(output, "weave: from the host", ifName(expr.MetaKeyOIFNAME), verdict(expr.VerdictDrop))},
		},
	}
}

// beforeFilter comes before the priority that nft calls filter in the family
// bridge.
const beforeFilter = nftables.ChainPriority(-201)

// install replaces the table in one transaction: no frame meets half of it.
func (r *ruleset) install(conn *nftables.Conn) error {
	conn.AddTable(r.table) // so that deleting it cannot fail
	conn.DelTable(r.table)
	conn.AddTable(r.table)
	removeOld(conn)
	for _, c := range r.chains {
		conn.AddChain(c)
		for _, rl := range r.rules[c.Name] {
			conn.AddRule(rl)
		}
	}
	return conn.Flush()
}

// removeOld takes away what the first versions had in the place of our table.
func removeOld(conn *nftables.Conn) {
	old := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	conn.AddTable(old) // so that deleting it cannot fail
	conn.DelTable(old)
}

// installed tells whether the kernel holds exactly this table.
func (r *ruleset) installed(conn *nftables.Conn) (bool, error) {
	all, err := conn.ListChainsOfTableFamily(r.table.Family)
	if err != nil {
		return false, fmt.Errorf("list chains: %w", err)
	}
	found := slices.DeleteFunc(all, func(c *nftables.Chain) bool { return c.Table.Name != r.table.Name })
	if len(found) != len(r.chains) {
		return false, nil
	}
	for _, want := range r.chains {
		if !slices.ContainsFunc(found, func(c *nftables.Chain) bool { return sameChain(c, want) }) {
			return false, nil
		}
		rules, err := conn.GetRules(r.table, want)
		if err != nil {
			return false, fmt.Errorf("list rules of chain %s: %w", want.Name, err)
		}
		if !slices.EqualFunc(rules, r.rules[want.Name], sameRule) {
			return false, nil
		}
	}
	return true, nil
}

func sameChain(a, b *nftables.Chain) bool {
	return a.Name == b.Name && a.Type == b.Type &&
		reflect.DeepEqual(a.Hooknum, b.Hooknum) &&
		reflect.DeepEqual(a.Priority, b.Priority) &&
		reflect.DeepEqual(a.Policy, b.Policy)
}

func sameRule(a, b *nftables.Rule) bool {
	return bytes.Equal(a.UserData, b.UserData) && reflect.DeepEqual(a.Exprs, b.Exprs)
}

func rule(c *nftables.Chain, comment string, parts ...[]expr.Any) *nftables.Rule {
	return &nftables.Rule{
		Table: c.Table, Chain: c, Exprs: slices.Concat(parts...),
		UserData: userdata.AppendString(nil, userdata.TypeComment, comment),
	}
}

// ifName matches packets whose link has a name of Weave's.
func ifName(key expr.MetaKey) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(Prefix)},
	}
}

func verdict(kind expr.VerdictKind) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind}}
}
