package netlab

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// table is a table of nftables while it is written, in the namespace of the
// calling thread.
type table struct {
	*nftables.Table
	conn *nftables.Conn
	sets uint32
	errs []error
}

// writeTable replaces a table in one transaction: no packet meets half of it.
// With no fill it deletes it.
func writeTable(family nftables.TableFamily, name string, fill func(*table)) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	t := &table{Table: &nftables.Table{Name: name, Family: family}, conn: conn}
	conn.AddTable(t.Table) // so that deleting it cannot fail
	conn.DelTable(t.Table)
	if fill != nil {
		conn.AddTable(t.Table)
		fill(t)
	}
	if len(t.errs) > 0 {
		return fmt.Errorf("write table %s: %w", name, t.errs[0])
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("write table %s: %w", name, err)
	}
	return nil
}

// chain adds a chain; the device is for the family netdev only.
func (t *table) chain(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority nftables.ChainPriority, device string) *nftables.Chain {
	return t.conn.AddChain(&nftables.Chain{
		Name: name, Table: t.Table, Type: kind, Hooknum: hook, Priority: &priority, Device: device,
	})
}

// add adds a rule to a chain.
func (t *table) add(c *nftables.Chain, parts ...[]expr.Any) {
	t.conn.AddRule(&nftables.Rule{Table: t.Table, Chain: c, Exprs: slices.Concat(parts...)})
}

// set adds a set or map, with what is in it. It numbers sets itself: the
// nftables package has one counter for all connections, and no lock on it.
func (t *table) set(s *nftables.Set, elements ...nftables.SetElement) {
	t.sets++
	s.Table, s.ID = t.Table, t.sets
	if err := t.conn.AddSet(s, nil); err != nil {
		t.errs = append(t.errs, err)
	}
	for len(elements) > 0 {
		n := min(len(elements), 500) // a message has 64 KiB
		if err := t.conn.SetAddElements(s, elements[:n]); err != nil {
			t.errs = append(t.errs, err)
		}
		elements = elements[n:]
	}
}

// word is a number of 32 bits as the kernel has it in a register.
func word(n uint32) []byte { return binaryutil.NativeEndian.PutUint32(n) }

// port is a number of 16 bits as packets have it.
func port16(n uint16) []byte { return binaryutil.BigEndian.PutUint16(n) }

// The parts of rules, each a name of its own for what nft calls by two words.
// All compare in register 1, that a lookup of several values begins in as well.

func drop() []expr.Any   { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }
func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }

func meta(key expr.MetaKey, value []byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value}}
}

func iifname(name string) []expr.Any { return meta(expr.MetaKeyIIFNAME, ifName(name)) }
func oifname(name string) []expr.Any { return meta(expr.MetaKeyOIFNAME, ifName(name)) }

// protocol matches by the number in the IP header, behind extension headers.
func protocol(number byte) []expr.Any { return meta(expr.MetaKeyL4PROTO, []byte{number}) }

// etherType matches what a frame carries.
func etherType(number uint16) []expr.Any { return meta(expr.MetaKeyPROTOCOL, port16(number)) }

// transport matches bytes of the transport header; not in fragments but the first.
func transport(offset uint32, value []byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: uint32(len(value))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value},
	}
}

// anyBit matches if one of the bits is set in what a part has loaded.
func anyBit(mask []byte) []expr.Any {
	zero := make([]byte, len(mask))
	return []expr.Any{
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(mask)), Mask: mask, Xor: zero},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: zero},
	}
}

// neighbours matches neighbour discovery and the like: what ARP is for IPv4.
func neighbours() []expr.Any {
	return append(protocol(unix.IPPROTO_ICMPV6),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Len: 1},
		&expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: []byte{133}, ToData: []byte{137}})
}

func ifName(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}
