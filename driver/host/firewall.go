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
// slowed down. Where the host has an address on a bridge, what is sent to and
// from its MAC address there passes, and meets the tables of exposed.go.
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
// them, and between them and the host what its exposed addresses are for. It
// changes nothing where all is as it should be, so it can be called often; and it
// must be, because Docker and others rebuild their chains. It returns what may
// still stop frames and is not ours to change.
func (k *Kernel) EnsureFirewall(exposed ...Exposed) ([]Blocked, error) {
	k.firewall.Lock()
	defer k.firewall.Unlock()
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("set up firewall: open nftables: %w", err)
	}
	defer func() { _ = conn.CloseLasting() }()
	if err := ensureTables(conn, exposed); err != nil {
		return nil, fmt.Errorf("set up firewall: %w", err)
	}
	var blocked []Blocked
	for _, f := range families() {
		if err := f.ensureAccept(conn, through(f.of(exposed))); err != nil {
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
	table := isolation(nil).table
	conn.AddTable(table) // so that deleting it cannot fail
	conn.DelTable(table)
	removeOld(conn)
	errs := []error{conn.Flush()}
	for _, f := range families() {
		errs = append(errs, removeTable(conn, f.table()), f.removeAccept(conn))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove firewall: %w", err)
	}
	return nil
}

// ensureTables puts our own tables in place: what lets something through comes
// last, and goes first.
func ensureTables(conn *nftables.Conn, exposed []Exposed) error {
	for _, f := range families() {
		if some := f.of(exposed); len(some) > 0 {
			if err := f.hostTable(some).ensure(conn); err != nil {
				return err
			}
		}
	}
	if err := isolation(exposed).ensure(conn); err != nil {
		return err
	}
	for _, f := range families() {
		if len(f.of(exposed)) == 0 {
			if err := removeTable(conn, f.table()); err != nil {
				return err
			}
		}
	}
	return nil
}

// ensure puts a table in place unless it is there.
func (r *ruleset) ensure(conn *nftables.Conn) error {
	same, err := r.installed(conn)
	if err == nil && !same {
		err = r.install(conn)
	}
	if err != nil {
		return fmt.Errorf("table %s: %w", r.table.Name, err)
	}
	return nil
}

// removeTable deletes a table if it is there.
func removeTable(conn *nftables.Conn, table *nftables.Table) error {
	all, err := conn.ListTablesOfFamily(table.Family)
	if err != nil {
		return fmt.Errorf("list tables: %w", err)
	}
	if !slices.ContainsFunc(all, func(t *nftables.Table) bool { return t.Name == table.Name }) {
		return nil
	}
	conn.DelTable(table)
	return conn.Flush()
}

// isolation is the table of the bridges.
func isolation(exposed []Exposed) *ruleset {
	r := newRuleset(nftables.TableFamilyBridge)
	input := r.chain("input", nftables.ChainTypeFilter, nftables.ChainHookInput, beforeFilter)
	output := r.chain("output", nftables.ChainTypeFilter, nftables.ChainHookOutput, beforeFilter)
	accept := verdict(expr.VerdictAccept)
	for _, b := range bridges(inOrder(exposed)) {
		what := "weave: host on " + b.name
		for _, frames := range b.forHost() {
			r.add(input, what, ifName(expr.MetaKeyIIFNAME), frames, accept)
		}
		r.add(output, what, ifName(expr.MetaKeyOIFNAME), fromMAC(b.mac), accept)
	}
	r.add(input, "weave: to the host", ifName(expr.MetaKeyIIFNAME), verdict(expr.VerdictDrop))
	r.add(output, "weave: from the host", ifName(expr.MetaKeyOIFNAME), verdict(expr.VerdictDrop))
	return r
}

func newRuleset(family nftables.TableFamily) *ruleset {
	return &ruleset{table: &nftables.Table{Name: tableName, Family: family}, rules: map[string][]*nftables.Rule{}}
}

// chain adds a chain that accepts what its rules do not drop.
func (r *ruleset) chain(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority nftables.ChainPriority) *nftables.Chain {
	accept := nftables.ChainPolicyAccept
	c := &nftables.Chain{
		Name: name, Table: r.table, Type: kind, Hooknum: hook, Priority: nftables.ChainPriorityRef(priority), Policy: &accept,
	}
	r.chains = append(r.chains, c)
	return c
}

func (r *ruleset) add(c *nftables.Chain, comment string, parts ...[]expr.Any) {
	r.rules[c.Name] = append(r.rules[c.Name], rule(c, comment, parts...))
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
