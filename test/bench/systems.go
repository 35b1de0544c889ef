package main

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
)

// system is one way from host to host.
type system struct {
	name  string // in flags and figures
	title string // in tables
	build func(context.Context, *pair) error
	lossy bool // is measured on wires that lose and delay, too
}

// Names of the systems that targets speak of.
const (
	bare      = "bare"
	vxlan     = "vxlan"
	wireguard = "wireguard"
	nebula    = "nebula"
	nebulaMQ  = "nebula-mq"
	sealed    = "weave"
	hostwise  = "weave-hosts"
	chacha    = "weave-chacha"
	fast      = "weave-fast"
)

// alsoEnv names further binaries of Weave, for a change and what was before it
// side by side, as in BENCH_ALSO=before=/tmp/weave1,after=/tmp/weave2.
const alsoEnv = "BENCH_ALSO"

// systems lists all, in the order of the tables.
func systems() []system {
	all := []system{
		{bare, "bare path", func(_ context.Context, p *pair) error { p.mtu = 1500; return nil }, false},
		{vxlan, "kernel VXLAN, not encrypted", buildVXLAN, false},
		{fast, "Weave, fast path, not encrypted", func(ctx context.Context, p *pair) error { return buildWeave(ctx, p, weaveFast, weaveBinary()) }, false},
		{sealed, "Weave, sealed, AES-256-GCM", buildSealed(weaveBinary()), true},
		{hostwise, "Weave, sealed, AES-256-GCM, between the hosts", func(ctx context.Context, p *pair) error { return buildWeave(ctx, p, weaveHosts, weaveBinary()) }, false},
		{chacha, "Weave, sealed, ChaCha20-Poly1305", func(ctx context.Context, p *pair) error { return buildWeave(ctx, p, weaveChaCha, weaveBinary()) }, false},
		{nebula, "nebula, tuned", func(ctx context.Context, p *pair) error { return buildNebula(ctx, p, 1) }, false},
		{nebulaMQ, "nebula, tuned, 2 routines", func(ctx context.Context, p *pair) error { return buildNebula(ctx, p, 2) }, false},
		{wireguard, "userspace WireGuard", buildWireGuard, true},
	}
	for pair := range strings.SplitSeq(os.Getenv(alsoEnv), ",") {
		if name, binary, ok := strings.Cut(pair, "="); ok {
			all = append(all, system{name, "Weave, sealed, " + binary, buildSealed(binary), true})
		}
	}
	return all
}

func buildSealed(binary string) func(context.Context, *pair) error {
	return func(ctx context.Context, p *pair) error { return buildWeave(ctx, p, weaveAES, binary) }
}

// overlay is the subnet of every system; side i has its address i+1.
func overlay(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 40, 0, byte(i + 1)}), 24)
}

func self() string { return fmt.Sprintf("/proc/%d/exe", os.Getpid()) }

const vxlanMTU = 1450

// buildVXLAN makes what Docker's overlay and Flannel make: container, veth,
// bridge, VXLAN device, with the other side in its FDB and no learning.
func buildVXLAN(_ context.Context, p *pair) error {
	p.mtu = vxlanMTU
	p.note = "VNI 42, static FDB"
	macs := [2]net.HardwareAddr{{2, 0x58, 0, 0, 0, 1}, {2, 0x58, 0, 0, 0, 2}}
	for i := range p.ends {
		if err := p.addContainer(i, overlay(i).Addr()); err != nil {
			return err
		}
		e, other := &p.ends[i], p.ends[1-i].host
		if err := e.host.Do(func() error { return layVXLAN(e, other.IP4(), macs[1-i]) }); err != nil {
			return fmt.Errorf("VXLAN on %s: %w", e.host.Name(), err)
		}
		if err := e.plugIn("cont0", macs[i].String(), overlay(i), vxlanMTU); err != nil {
			return err
		}
	}
	return nil
}

func layVXLAN(e *end, other netip.Addr, otherMAC net.HardwareAddr) error {
	uplink, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0", MTU: vxlanMTU}}
	tunnel := &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: "vxlan0", MTU: vxlanMTU}, VxlanId: 42, Port: 4789,
		SrcAddr: e.host.IP4().AsSlice(), VtepDevIndex: uplink.Attrs().Index, Learning: false,
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "veth0", MTU: vxlanMTU}, PeerName: "cont0", PeerMTU: vxlanMTU}
	for _, l := range []netlink.Link{br, tunnel, veth} {
		if err := netlink.LinkAdd(l); err != nil {
			return fmt.Errorf("add %s: %w", l.Attrs().Name, err)
		}
	}
	for _, l := range []netlink.Link{tunnel, veth} {
		if err := netlink.LinkSetMaster(l, br); err != nil {
			return fmt.Errorf("add %s to the bridge: %w", l.Attrs().Name, err)
		}
	}
	for _, mac := range []net.HardwareAddr{make(net.HardwareAddr, 6), otherMAC} { // the first stands for all others
		err := netlink.NeighAppend(&netlink.Neigh{
			LinkIndex: tunnel.Index, Family: afBridge, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF,
			HardwareAddr: mac, IP: other.AsSlice(),
		})
		if err != nil {
			return fmt.Errorf("add to FDB: %w", err)
		}
	}
	for _, l := range []netlink.Link{br, tunnel, veth} {
		if err := netlink.LinkSetUp(l); err != nil {
			return fmt.Errorf("bring up %s: %w", l.Attrs().Name, err)
		}
	}
	return nil
}

const afBridge = 7 // AF_BRIDGE

// buildWireGuard starts a daemon of our own around the library on each host.
// The load is on the hosts themselves, since it is a layer-3 tunnel.
func buildWireGuard(_ context.Context, p *pair) error {
	p.mtu = wireguardMTU
	p.note = moduleVersion("golang.zx2c4.com/wireguard") + ", its batching bind and its TUN with offloads"
	var keys [2]*ecdh.PrivateKey
	for i := range keys {
		var err error
		if keys[i], err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			return err
		}
	}
	for i := range p.ends {
		p.ends[i].addr = overlay(i).Addr()
		uapi := fmt.Sprintf("private_key=%s\nlisten_port=51820\npublic_key=%s\nendpoint=%s\nallowed_ip=%s\n",
			hex.EncodeToString(keys[i].Bytes()), hex.EncodeToString(keys[1-i].PublicKey().Bytes()),
			netip.AddrPortFrom(p.ends[1-i].host.IP4(), 51820), overlay(0).Masked())
		daemon, err := p.starter.start(program{
			space: p.ends[i].space, log: p.log("wireguard", i), args: []string{self(), "wireguard", overlay(i).String()},
			env: []string{wireguardEnv + "=" + uapi},
		})
		if err != nil {
			return err
		}
		p.daemons = append(p.daemons, daemon)
	}
	return nil
}
