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
	"golang.org/x/sys/unix"
)

// The firewall is two things. The table "inet weave" is ours alone and keeps
// the bridges apart from each other and from the host:
//
//	table inet weave {
//	  set bridges { type ifname . ifname; elements = { "wv1" . "wv1", … } }
//	  chain forward { type filter hook forward priority filter - 1;
//	    iifname . oifname @bridges return     # bridged, when br_netfilter is on
//	    iifname "wv*" drop                    # routed, out of a bridge
//	    oifname "wv*" drop                    # routed, into a bridge
//	  }
//	  chain input { type filter hook input priority filter - 1;
//	    iifname "wv*" drop                    # sent to the bridge's own MAC address
//	  }
//	}
//
// And one rule at the head of Docker's chain for the user (see accept.go) lets
// pass what Docker's policy would drop. A frame must pass both.
const (
	tableName = "weave"
	setName   = "bridges"
	// elementsPerMessage keeps a message within the 64 KiB of an attribute.
	elementsPerMessage = 1000
)

// ruleset is the content of our table.
type ruleset struct {
	table    *nftables.Table
	chains   []*nftables.Chain
	rules    map[string][]*nftables.Rule // by chain, in order
	set      *nftables.Set
	elements []nftables.SetElement
}

// EnsureFirewall keeps the bridges apart, and lets frames pass within each of
// them. It changes nothing where all is as it should be, so it can be called
// often; and it must be, because Docker and others rebuild their chains. It
// returns what may still stop frames and is not ours to change.
func (k *Kernel) EnsureFirewall(bridges []string) ([]Blocked, error) {
	k.firewall.Lock()
	defer k.firewall.Unlock()
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("set up firewall: open nftables: %w", err)
	}
	defer func() { _ = conn.CloseLasting() }()
	if err := ensureIsolation(conn, bridges); err != nil {
		return nil, fmt.Errorf("set up firewall: table inet %s: %w", tableName, err)
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
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	conn.AddTable(table) // so that deleting it cannot fail
	conn.DelTable(table)
	errs := []error{conn.Flush()}
	for _, f := range families() {
		errs = append(errs, f.removeAccept(conn))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove firewall: %w", err)
	}
	return nil
}

func ensureIsolation(conn *nftables.Conn, bridges []string) error {
	want := isolation(bridges)
	same, err := want.installed(conn)
	if err != nil || same {
		return err
	}
	return want.install(conn)
}

func isolation(bridges []string) *ruleset {
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	accept := nftables.ChainPolicyAccept
	priority := nftables.ChainPriorityRef(*nftables.ChainPriorityFilter - 1)
	base := func(name string, hook *nftables.ChainHook) *nftables.Chain {
		return &nftables.Chain{
			Name: name, Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: hook, Priority: priority, Policy: &accept,
		}
	}
	forward := base("forward", nftables.ChainHookForward)
	input := base("input", nftables.ChainHookInput)
	r := &ruleset{
		table:  table,
		chains: []*nftables.Chain{forward, input},
		set: &nftables.Set{
			Table: table, Name: setName, Concatenation: true,
			KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIFName),
		},
	}
	r.rules = map[string][]*nftables.Rule{
		forward.Name: {
			rule(forward, "weave: within one bridge", sameBridge(), verdict(expr.VerdictReturn)),
			rule(forward, "weave: out of a bridge", ifName(expr.MetaKeyIIFNAME), verdict(expr.VerdictDrop)),
			rule(forward, "weave: into a bridge", ifName(expr.MetaKeyOIFNAME), verdict(expr.VerdictDrop)),
		},
		input.Name: {
			rule(input, "weave: to the host", ifName(expr.MetaKeyIIFNAME), verdict(expr.VerdictDrop)),
		},
	}
	for _, b := range bridges {
		name := make([]byte, unix.IFNAMSIZ)
		copy(name, b)
		r.elements = append(r.elements, nftables.SetElement{Key: slices.Concat(name, name)})
	}
	return r
}

// install replaces the table in one transaction: no frame meets half of it.
func (r *ruleset) install(conn *nftables.Conn) error {
	conn.AddTable(r.table) // so that deleting it cannot fail
	conn.DelTable(r.table)
	conn.AddTable(r.table)
	if err := conn.AddSet(r.set, nil); err != nil {
		return err
	}
	for part := range slices.Chunk(r.elements, elementsPerMessage) {
		if err := conn.SetAddElements(r.set, part); err != nil {
			return err
		}
	}
	for _, c := range r.chains {
		conn.AddChain(c)
		for _, rl := range r.rules[c.Name] {
			conn.AddRule(rl)
		}
	}
	return conn.Flush()
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
	elements, err := conn.GetSetElements(r.set)
	if err != nil {
		return false, fmt.Errorf("list set %s: %w", setName, err)
	}
	return sameKeys(elements, r.elements), nil
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

func sameKeys(a, b []nftables.SetElement) bool {
	keys := func(elements []nftables.SetElement) map[string]bool {
		m := make(map[string]bool, len(elements))
		for _, e := range elements {
			m[string(e.Key)] = true
		}
		return m
	}
	return reflect.DeepEqual(keys(a), keys(b))
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

// sameBridge matches packets that enter and leave by the same bridge. Two
// names fill two registers, which the lookup reads as one key.
func sameBridge() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 2},
		&expr.Lookup{SourceRegister: 1, SetName: setName},
	}
}

func verdict(kind expr.VerdictKind) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind}}
}
