package tunnel

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"weave/mesh/fdb"
	"weave/mesh/id"
	"weave/mesh/tap"
)

// namespace is a thread in a network namespace of its own. Both end with it.
type namespace struct{ calls chan func() }

func newNamespace(t *testing.T) *namespace {
	n := &namespace{calls: make(chan func())}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		ns, err := netns.New()
		made <- err
		if err != nil {
			return
		}
		for call := range n.calls {
			call()
		}
		_ = ns.Close()
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(n.calls) })
	return n
}

// do calls f inside.
func (n *namespace) do(t *testing.T, f func() error) {
	t.Helper()
	result := make(chan error)
	n.calls <- func() { result <- f() }
	if err := <-result; err != nil {
		t.Fatal(err)
	}
}

// bridged makes a bridge with a TAP on it. The bridge has the addresses, and
// so plays the container.
func bridged(queues int, mac fdb.MAC, ips ...netip.Addr) (*tap.Device, error) {
	device, err := tap.Open(tap.Options{Name: "wvt0", MTU: mtu, Queues: queues})
	if err != nil {
		return nil, err
	}
	if err := bridgeTo("wvt0", mac, ips); err != nil {
		return nil, errors.Join(err, device.Close())
	}
	return device, nil
}

func bridgeTo(port string, mac fdb.MAC, ips []netip.Addr) error {
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "wv0", MTU: mtu, HardwareAddr: mac[:]}}
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("add bridge: %w", err)
	}
	link, err := netlink.LinkByName(port)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetMaster(link, bridge); err != nil {
		return fmt.Errorf("set master: %w", err)
	}
	for _, ip := range ips {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(ip.BitLen()/2, ip.BitLen())}}
		addr.Flags = 0x02 // IFA_F_NODAD: usable at once
		if err := netlink.AddrAdd(bridge, addr); err != nil {
			return fmt.Errorf("add %s: %w", ip, err)
		}
	}
	return netlink.LinkSetUp(bridge)
}

// Real TAPs, bridges and the kernel's TCP, with its runs and unfinished
// checksums; only the way between the tunnels is made up.
func TestKernelTCPThroughTheTunnel(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("WEAVE_REQUIRE_ROOT") == "1" {
			t.Fatal("not root")
		}
		t.Skip("not root")
	}
	for queues := 1; queues <= 2; queues++ {
		t.Run(fmt.Sprint("queues=", queues), func(t *testing.T) { kernelTCP(t, queues) })
	}
}

func kernelTCP(t *testing.T, queues int) {
	peers := []id.PeerID{{1}, {2}}
	macs := []fdb.MAC{macA, macB}
	ips := [][]netip.Addr{addrs(ipA, "fd00::a"), addrs(ipB, "fd00::b")}
	links := []*wireLink{{from: peers[0]}, {from: peers[1]}}
	tunnels := make([]*Tunnel, 2)
	spaces := []*namespace{newNamespace(t), newNamespace(t)}
	for i := range tunnels {
		tunnels[i] = New(Config{Self: peers[i], Links: links[i], Log: quiet(), Clock: time.Now})
		links[1-i].to = tunnels[i]
	}
	for i, tunnel := range tunnels {
		var device *tap.Device
		spaces[i].do(t, func() (err error) {
			device, err = bridged(queues, macs[i], ips[i]...)
			return err
		})
		(&host{t: t, tunnel: tunnel}).attach(key, device)
		tunnel.SetMembers(key, peers)
		for j := range peers {
			tunnel.SetEndpoint(key, Endpoint{ID: "bridge", MAC: macs[j], IPs: ips[j], Peer: peers[j]})
		}
	}
	for i, ip := range ips[1] {
		t.Run(ip.String(), func(t *testing.T) {
			for stream := range 4 {
				t.Run(fmt.Sprint("stream", stream), func(t *testing.T) {
					t.Parallel()
					transfer(t, spaces, ip)
				})
			}
		})
		if stats, _ := tunnels[0].Stats(key); stats.Answered <= uint64(i) {
			t.Errorf("%d questions were answered by the tunnel, want more than %d", stats.Answered, i)
		}
	}
	for _, tunnel := range tunnels {
		stats, _ := tunnel.Stats(key)
		t.Logf("%+v", stats)
		delete(stats.Out.Drops, "queue") // to slow streams down
		if stats.Out.Frames == 0 || stats.In.Frames == 0 || len(stats.In.Drops)+len(stats.Out.Drops) > 0 {
			t.Errorf("unexpected counters %+v", stats)
		}
	}
}

// transfer sends from the first namespace to an address of the second one, and
// back.
func transfer(t *testing.T, spaces []*namespace, to netip.Addr) {
	t.Helper()
	var listener net.Listener
	var conn net.Conn
	spaces[1].do(t, func() (err error) {
		listener, err = net.Listen("tcp", net.JoinHostPort(to.String(), "0"))
		return err
	})
	echoed := make(chan error, 1)
	go func() {
		c, err := listener.Accept()
		if err == nil {
			_, err = io.Copy(c, c)
			err = errors.Join(err, c.Close())
		}
		echoed <- err
	}()
	defer func() {
		if err := errors.Join(listener.Close(), <-echoed); err != nil {
			t.Error(err)
		}
	}()
	spaces[0].do(t, func() (err error) {
		conn, err = net.DialTimeout("tcp", listener.Addr().String(), patience)
		return err
	})
	defer conn.Close() // ends the echo, should the transfer have failed
	wantEcho(t, conn)
}

func wantEcho(t *testing.T, conn net.Conn) {
	t.Helper()
	payload := make([]byte, 8<<20)
	for i := range payload {
		payload[i] = byte(i * i >> 8)
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(payload)
		sent <- errors.Join(err, conn.(*net.TCPConn).CloseWrite())
	}()
	got, err := io.ReadAll(conn)
	if err := errors.Join(err, <-sent); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, payload) {
		t.Fatalf("%d bytes came back changed", len(got))
	}
}
