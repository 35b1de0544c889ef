package sandbox

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The table, for port 40053, as `nft list table ip weave-names` shows it:
//
//	table ip weave-names { # progname weave
//	  flags owner
//	  chain output {
//	    type nat hook output priority -101; policy accept;
//	    ip daddr 127.0.0.11 meta mark != 0x7776646e udp dport 53 dnat to 127.0.0.11:40053
//	    ip daddr 127.0.0.11 meta mark != 0x7776646e tcp dport 53 dnat to 127.0.0.11:40053
//	  }
//	}
//
// Docker translates at priority -100, by iptables or nftables. The kernel asks
// both, in the order of priorities, and the first that translates a connection has
// translated it. It asks for the first packet of a connection only, so nothing
// else that the sandbox sends pays more than that.

const (
	tableName = "weave-names"
	chainName = "output"

	// beforeDocker comes before the priority that nft calls dstnat.
	beforeDocker = nftables.ChainPriority(-101)

	// tableOwned is NFT_TABLE_F_OWNER of linux/netfilter/nf_tables.h, since Linux
	// 5.12: only the netlink socket that made the table can change it, and the
	// table ends with it.
	tableOwned = 0x2
)

// rules are ours in one namespace.
type rules struct {
	conn  *nftables.Conn // its socket owns the table, if the kernel can do that
	owned bool
}

// install makes the table in the namespace of the calling thread.
func install(port uint16) (*rules, error) {
	r, err := installAs(tableOwned, port)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		r, err = installAs(0, port)
	}
	switch {
	case errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("%w: %w", ErrHeld, err)
	case err != nil:
		return nil, fmt.Errorf("install rules: %w", err)
	}
	return r, nil
}

func installAs(flags uint32, port uint16) (*rules, error) {
	var socket *netlink.Conn
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		socket = c
		return nil
	}))
	if err != nil {
		return nil, err
	}
	if err = replaceTable(conn, socket, flags); err == nil {
		err = fillTable(conn, port)
	}
	if err != nil {
		_ = conn.CloseLasting()
		return nil, err
	}
	return &rules{conn, flags&tableOwned != 0}, nil
}

func table() *nftables.Table {
	return &nftables.Table{Name: tableName, Family: nftables.TableFamilyIPv4}
}

// replaceTable makes an empty table. Most often there is none to delete, which
// takes the kernel some 10 ms.
func replaceTable(conn *nftables.Conn, socket *netlink.Conn, flags uint32) error {
	err := createTable(socket, flags)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	conn.DelTable(table())
	if err := conn.Flush(); err != nil {
		return err
	}
	return createTable(socket, flags)
}

// createTable makes the table if there is none. The nftables package would make it
// without flags.
func createTable(socket *netlink.Conn, flags uint32) error {
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: append([]byte(tableName), 0)},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binaryutil.BigEndian.PutUint32(flags)},
	})
	if err != nil {
		return err
	}
	message := func(kind uint16, flags netlink.HeaderFlags, family byte, resource uint16, attrs []byte) netlink.Message {
		header := append([]byte{family, unix.NFNETLINK_V0}, binaryutil.BigEndian.PutUint16(resource)...)
		return netlink.Message{
			Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request | flags},
			Data:   append(header, attrs...),
		}
	}
	_, err = socket.SendMessages([]netlink.Message{
		message(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil),
		message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE, netlink.Create|netlink.Excl|netlink.Acknowledge, unix.NFPROTO_IPV4, 0, attrs),
		message(unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil),
	})
	if err == nil {
		_, err = socket.Receive()
	}
	return err
}

func fillTable(conn *nftables.Conn, port uint16) error {
	accept := nftables.ChainPolicyAccept
	output := conn.AddChain(&nftables.Chain{
		Name: chainName, Table: table(), Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput,
		Priority: nftables.ChainPriorityRef(beforeDocker), Policy: &accept,
	})
	for _, protocol := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		conn.AddRule(&nftables.Rule{
			Table: output.Table, Chain: output, Exprs: slices.Concat(toResolver(), notMarked(), toPort(protocol), redirect(port)),
			UserData: userdata.AppendString(nil, userdata.TypeComment, "weave: names of all hosts"),
		})
	}
	return conn.Flush()
}

func equal(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }

func toResolver() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
		equal(Resolver.Addr().AsSlice()),
	}
}

func notMarked() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(Mark)},
	}
}

func toPort(protocol byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{protocol}),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		equal(binaryutil.BigEndian.PutUint16(Resolver.Port())),
	}
}

// redirect is no "redirect" of nft, which in this chain leads to 127.0.0.1.
func redirect(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: Resolver.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2},
	}
}

// gone tells whether somebody else took rules away, as a container can that may
// change its own network. Where the table is owned nobody can.
func (r *rules) gone() bool {
	if r.owned {
		return false
	}
	left, err := r.conn.GetRules(table(), &nftables.Chain{Name: chainName})
	return err == nil && len(left) == 0 || errors.Is(err, unix.ENOENT)
}

// remove removes the table. One that is not there any more is removed.
func (r *rules) remove() error {
	r.conn.DelTable(table())
	err := r.conn.Flush()
	if errors.Is(err, unix.ENOENT) {
		err = nil
	}
	if err = errors.Join(err, r.conn.CloseLasting()); err != nil {
		return fmt.Errorf("remove rules: %w", err)
	}
	return nil
}
