package netlab

import (
	"errors"
	"fmt"
	"math"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A cable's table, in the family netdev, stands where frames come out of it at
// either end, before all that the host, or the bridge, does with them:
//
//	table netdev cable-h1 {
//	  chain out { type filter hook ingress device "h1" priority 0; … }   # in the network's namespace
//	  chain out { type filter hook ingress device "eth0" priority 0; … } # in the host's
//	}
//
// There are no tables while there is nothing to drop.

// cable is what befalls the frames on a host's uplink.
type cable struct {
	cut    bool
	loss   float64
	filter Filter
}

// Filter is what a firewall on a host's cable drops, without a word to the
// sender, both ways. ARP and neighbour discovery always pass. It is stateless:
// for who may begin a conversation, see Stateful.
type Filter struct {
	IPv4      bool // all of it
	IPv6      bool
	UDP       bool
	ICMP      bool     // of IPv4 and IPv6
	Fragments bool     // of IPv4 and IPv6, the first as well
	OnlyTCP   []uint16 // if any: all but TCP to these ports, and what comes back from them
}

func (f Filter) empty() bool {
	return !f.IPv4 && !f.IPv6 && !f.UDP && !f.ICMP && !f.Fragments && len(f.OnlyTCP) == 0
}

// Cut takes the host off the wire without telling it: its uplink keeps its
// carrier, and frames vanish both ways.
func (h *Host) Cut() error { return h.change("cut", func(c *cable) { c.cut = true }) }

// Heal undoes Cut.
func (h *Host) Heal() error { return h.change("heal", func(c *cable) { c.cut = false }) }

// SetLoss loses frames at random, each with that probability, both ways; 0 ends
// it. Meanwhile no run of several packets passes the cable in one piece.
func (h *Host) SetLoss(probability float64) error {
	if !(probability >= 0 && probability <= 1) {
		return fmt.Errorf("loss of %s: %v is not in 0..1", h.name, probability)
	}
	return h.change("loss", func(c *cable) { c.loss = probability })
}

// SetFilter puts a firewall on the host's cable in place of the one before; that
// of the zero value drops nothing.
func (h *Host) SetFilter(f Filter) error {
	f.OnlyTCP = append([]uint16(nil), f.OnlyTCP...)
	return h.change("filter", func(c *cable) { c.filter = f })
}

// change changes the cable, and writes down what it has become.
func (h *Host) change(what string, f func(*cable)) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(&h.cable)
	if err := h.writeCable(); err != nil {
		return fmt.Errorf("%s of %s: %w", what, h.name, err)
	}
	return nil
}

// writeCable makes the kernel do what h.cable says; under h.mu.
func (h *Host) writeCable() error {
	c, d := &h.cable, h.delay.Load()
	end := func(device string, delay func(*table)) error {
		if err := setRuns(device, c.loss == 0 && d == nil); err != nil {
			return err
		}
		if delay == nil && !c.cut && c.loss == 0 && c.filter.empty() {
			return writeTable(nftables.TableFamilyNetdev, h.cableTable(), nil)
		}
		return writeTable(nftables.TableFamilyNetdev, h.cableTable(), func(t *table) {
			c.fill(t, t.chain("out", nftables.ChainTypeFilter, nftables.ChainHookIngress, 0, device))
			if delay != nil {
				delay(t)
			}
		})
	}
	var delay func(*table)
	if d != nil {
		delay = d.divert
	}
	return errors.Join(
		inNamespace(h.net.space, func() error { return end(h.onBridge(), delay) }),
		h.Do(func() error { return end(uplink, nil) }))
}

// forgetCable deletes the table in the network's namespace: it would be waiting
// for the next link of that name.
func (h *Host) forgetCable() error {
	return inNamespace(h.net.space, func() error { return writeTable(nftables.TableFamilyNetdev, h.cableTable(), nil) })
}

func (h *Host) cableTable() string { return "cable-" + h.port }

func (c *cable) fill(t *table, out *nftables.Chain) {
	if c.cut {
		t.add(out, drop())
	}
	if c.loss > 0 {
		t.add(out, random(c.loss), drop())
	}
	t.add(out, etherType(unix.ETH_P_ARP), accept())
	t.add(out, neighbours(), accept())
	if c.filter.IPv4 {
		t.add(out, etherType(unix.ETH_P_IP), drop())
	}
	if c.filter.IPv6 {
		t.add(out, etherType(unix.ETH_P_IPV6), drop())
	}
	if c.filter.Fragments {
		t.add(out, etherType(unix.ETH_P_IP), []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 6, Len: 2},
		}, anyBit([]byte{0x3f, 0xff}), drop()) // more follows, or an offset
		t.add(out, etherType(unix.ETH_P_IPV6), []expr.Any{
			&expr.Exthdr{DestRegister: 1, Type: unix.IPPROTO_FRAGMENT, Len: 1, Flags: unix.NFT_EXTHDR_F_PRESENT, Op: expr.ExthdrOpIpv6},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{1}},
		}, drop())
	}
	if c.filter.UDP {
		t.add(out, protocol(unix.IPPROTO_UDP), drop())
	}
	if c.filter.ICMP {
		t.add(out, protocol(unix.IPPROTO_ICMP), drop())
		t.add(out, protocol(unix.IPPROTO_ICMPV6), drop())
	}
	c.filter.fillTCP(t, out)
}

// fillTCP lets pass what goes to the ports, and what comes from them but for the
// first packet of a connection.
func (f Filter) fillTCP(t *table, out *nftables.Chain) {
	for _, p := range f.OnlyTCP {
		t.add(out, protocol(unix.IPPROTO_TCP), transport(2, port16(p)), accept())
		t.add(out, protocol(unix.IPPROTO_TCP), transport(0, port16(p)), []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		}, anyBit([]byte{0x14}), accept()) // ACK or RST
	}
	if len(f.OnlyTCP) > 0 {
		t.add(out, drop())
	}
}

// random matches with that probability.
func random(probability float64) []expr.Any {
	const all = 1 << 20
	limit := uint32(math.Round(probability * all))
	return []expr.Any{
		&expr.Numgen{Register: 1, Type: unix.NFT_NG_RANDOM, Modulus: all},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: []byte{byte(limit >> 24), byte(limit >> 16), byte(limit >> 8), byte(limit)}},
	}
}

// setRuns says whether runs of packets pass a link in one piece.
func setRuns(device string, whole bool) error {
	most := 1
	if whole {
		most = math.MaxUint16 // as at first
	}
	link, err := netlink.LinkByName(device)
	if err == nil {
		err = netlink.LinkSetGSOMaxSegs(link, most)
	}
	if err != nil {
		return fmt.Errorf("runs of packets on %s: %w", device, err)
	}
	return nil
}
