package mesh

import (
	"bufio"
	"cmp"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"weave/mesh/id"
	"weave/mesh/transport"
	"weave/test/netlab"
)

// fastLab is some hosts in namespaces. Each runs a Node without a password in a
// process of its own, and has containers: namespaces with a link into the bridge
// of a segment.
type fastLab struct {
	t     *testing.T
	net   *netlab.Lab
	hosts []*fastHost

	// Of the hosts that are placed next:
	tcpPort   uint16
	proxy     string
	dual      bool                    // they listen on both families, as the daemon does
	names     map[string][]netip.Addr // what their resolver knows
	peers     []string                // where they look for others, too
	ip6       bool                    // their underlay is IPv6 alone
	mtu       int                     // of segments; 0: fastMTU
	discovery Discovery
}

// statusGap is how often a host is asked for its status at most.
const statusGap = 50 * time.Millisecond

const (
	fastPort = 6783
	fastMTU  = 1450 // too long for the tunnel by 60 bytes
)

func (l *fastLab) frameMTU() int { return cmp.Or(l.mtu, fastMTU) }

func newFastLab(t *testing.T, n int) *fastLab {
	t.Helper()
	needRoot(t)
	lab, err := netlab.New(netlab.UniqueName())
	must(t, err)
	t.Cleanup(func() { must(t, lab.Close()) })
	l := &fastLab{t: t, net: lab}
	for range n {
		l.add("", 1)
	}
	return l
}

// add starts one more host, which has another one for its peer.
func (l *fastLab) add(password string, peer int) *fastHost {
	number := len(l.hosts) + 1
	h, err := l.net.AddHost(number)
	must(l.t, err)
	seed, err := netip.ParseAddr(fmt.Sprintf("10.99.0.%d", peer))
	must(l.t, err)
	if peer == number {
		return l.place(h, password)
	}
	return l.place(h, password, seed)
}

// place runs a process on a host, with the addresses where it looks for others.
func (l *fastLab) place(h *netlab.Host, password string, seeds ...netip.Addr) *fastHost {
	l.t.Helper()
	host := &fastHost{
		lab: l, Host: h, identity: testIdentity(l.t), number: len(l.hosts) + 1,
		setup: hostSetup{Password: password, Name: h.Name(), TCPPort: l.tcpPort, Proxy: l.proxy, Discovery: l.discovery, Names: l.names, Peers: slices.Clone(l.peers)},
	}
	host.setup.Private = hex.EncodeToString(host.identity.Private)
	for _, seed := range seeds {
		host.setup.Peers = append(host.setup.Peers, addrPort(seed, fastPort).String())
	}
	host.setup.Listen, host.setup.Advertise = netip.IPv6Unspecified(), host.addresses()
	if l.ip6 {
		host.setup.Advertise = []netip.Addr{h.IP6()}
	}
	if !l.dual {
		host.setup.Advertise = host.setup.Advertise[:1]
		host.setup.Listen = host.setup.Advertise[0]
	}
	host.start()
	l.hosts = append(l.hosts, host)
	return host
}

// fastHost is one of them.
type fastHost struct {
	*netlab.Host
	lab      *fastLab
	number   int
	identity id.Identity
	setup    hostSetup

	asked   time.Time // for its status
	process *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Scanner
	done    chan struct{}
	mu      sync.Mutex // one command at a time
}

// hostSetup is what a host's process is told.
type hostSetup struct {
	Private, Password, Name, Proxy string
	Listen                         netip.Addr
	Advertise                      []netip.Addr
	Peers                          []string
	TCPPort                        uint16
	Discovery                      Discovery
	Names                          map[string][]netip.Addr
}

// addresses are those of a host, IPv4 first.
func (h *fastHost) addresses() []netip.Addr {
	return slices.DeleteFunc([]netip.Addr{h.IP4(), h.IP6()}, func(a netip.Addr) bool { return !a.IsValid() })
}

const hostEnv = "WEAVE_TEST_FAST_HOST"

// start runs a new process, which takes over what the one before left.
func (h *fastHost) start() {
	t := h.lab.t
	t.Helper()
	text, err := json.Marshal(h.setup)
	must(t, err)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestFastHostProcess$", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), hostEnv+"="+string(text))
	cmd.Stderr = os.Stderr
	h.in, err = cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	h.out = bufio.NewScanner(out)
	h.out.Buffer(nil, 1<<20)
	must(t, h.Do(cmd.Start))
	h.process, h.done = cmd, make(chan struct{})
	go func() { _ = cmd.Wait(); close(h.done) }()
	t.Cleanup(func() { // the process ends with its input
		_ = h.in.Close()
		<-h.done
	})
	h.call("hello")
}

// kill ends the process without a chance to clean up.
func (h *fastHost) kill() {
	must(h.lab.t, h.process.Process.Kill())
	<-h.done
}

// call has the process do something, and returns its answer.
func (h *fastHost) call(words ...string) string {
	h.lab.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ask(words...)
	return h.answer(words...)
}

func (h *fastHost) ask(words ...string) {
	h.lab.t.Helper()
	if _, err := fmt.Fprintln(h.in, strings.Join(words, " ")); err != nil {
		h.lab.t.Fatalf("host %d: %v", h.number, err)
	}
}

func (h *fastHost) answer(words ...string) string {
	t := h.lab.t
	t.Helper()
	for h.out.Scan() {
		if answer, ok := strings.CutPrefix(h.out.Text(), "> "); ok {
			if why, failed := strings.CutPrefix(answer, "error: "); failed {
				t.Fatalf("host %d: %s: %s", h.number, words, why)
			}
			return answer
		}
	}
	t.Fatalf("host %d ended: %v", h.number, h.out.Err())
	return ""
}

// hostStatus is what a host tells of itself.
type hostStatus struct {
	Peers    []peerReport
	NAT      NAT
	Refused  []transport.Refusal
	LAN      []string
	Trouble  string
	Dropped  map[string]uint64
	Segments map[string]segmentReport
}

type segmentReport struct {
	VNI      uint32
	VXLAN    bool
	Tunneled uint64 // bytes
}

// peerReport is what it tells of another.
type peerReport struct {
	Alive, Fast, Up, Relayed, TCP bool
	Name, Why, Addr               string
	Hops, MTU                     int
	Sent                          uint64 // bytes
	Candidates                    []netip.AddrPort
	NAT                           NAT
	Pings, LostPings              int
}

// peer is what the host tells of another.
func (h *fastHost) peer(other *fastHost) peerReport {
	for _, p := range h.status().Peers {
		if p.Name == other.Name() {
			return p
		}
	}
	return peerReport{}
}

func (h *fastHost) status() (s hostStatus) {
	h.lab.t.Helper()
	// Who waits for something asks all the time, and answers cost processors.
	time.Sleep(statusGap - min(time.Since(h.asked), statusGap))
	h.asked = time.Now()
	must(h.lab.t, json.Unmarshal([]byte(h.call("status")), &s))
	return s
}

// fast tells whether frames to another host go by VXLAN, and why.
func (h *fastHost) fast(other *fastHost) (bool, string) {
	for _, p := range h.status().Peers {
		if p.Name == other.Name() {
			return p.Fast, p.Why
		}
	}
	return false, "not met"
}

func (l *fastLab) awaitFast(hosts ...*fastHost) {
	l.t.Helper()
	for _, h := range hosts {
		for _, other := range hosts {
			if h != other {
				await(l.t, fmt.Sprintf("host %d to have the fast path to %d", h.number, other.number), func() bool {
					fast, _ := h.fast(other)
					return fast
				})
			}
		}
	}
}

// join puts the host on a segment and makes its bridge.
func (h *fastHost) join(key, bridge string) {
	h.lab.t.Helper()
	tap := h.call("join", key, fmt.Sprint(h.lab.frameMTU()))
	must(h.lab.t, h.Do(func() error {
		br, err := netlink.LinkByName(bridge)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			snooping := false
			made := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge, MTU: h.lab.frameMTU()}, MulticastSnooping: &snooping}
			br, err = made, netlink.LinkAdd(made)
		}
		if err != nil {
			return err
		}
		port, err := netlink.LinkByName(tap)
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetMaster(port, br), netlink.LinkSetUp(br))
	}))
}

// container is a namespace with a link into a bridge.
type container struct {
	t    *testing.T
	path string
	addr netip.Addr
	mac  net.HardwareAddr
	id   string
}

// run starts a container on a host.
func (h *fastHost) run(key, bridge, name, address string) *container {
	t := h.lab.t
	t.Helper()
	full := h.lab.net.Name() + "-" + name
	c := &container{t: t, path: filepath.Join("/run/netns", full), addr: addr(address), id: name}
	ip := c.addr.As4()
	c.mac = net.HardwareAddr{2, 0x57, ip[0], ip[1], ip[2], ip[3]}
	must(t, onThread(func() error {
		ns, err := netns.NewNamed(full)
		if err != nil {
			return err
		}
		return ns.Close()
	}))
	ns, err := netns.GetFromPath(c.path)
	must(t, err)
	defer ns.Close()
	must(t, h.Do(func() error {
		br, err := netlink.LinkByName(bridge)
		if err != nil {
			return err
		}
		veth := netlink.NewVeth(netlink.LinkAttrs{Name: "v" + name, MTU: h.lab.frameMTU(), MasterIndex: br.Attrs().Index})
		veth.PeerName, veth.PeerMTU, veth.PeerHardwareAddr, veth.PeerNamespace = "eth0", uint32(h.lab.frameMTU()), c.mac, netlink.NsFd(ns)
		return errors.Join(netlink.LinkAdd(veth), netlink.LinkSetUp(veth))
	}))
	must(t, c.do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		a := &netlink.Addr{IPNet: &net.IPNet{IP: net.IP(c.addr.AsSlice()), Mask: net.CIDRMask(16, 32)}}
		group := &netlink.Route{Dst: &net.IPNet{IP: net.IPv4(224, 0, 0, 0), Mask: net.CIDRMask(4, 32)}, LinkIndex: link.Attrs().Index}
		return errors.Join(netlink.AddrAdd(link, a), netlink.LinkSetUp(link), netlink.RouteAdd(group))
	}))
	c.announce(h, key)
	return c
}

func (c *container) announce(h *fastHost, key string) {
	c.t.Helper()
	h.call("announce", key, c.id, c.mac.String(), c.addr.String())
}

// do runs f inside the container; goroutines that it starts are not.
func (c *container) do(f func() error) error {
	return onThread(func() error {
		ns, err := netns.GetFromPath(c.path)
		if err != nil {
			return err
		}
		defer ns.Close()
		return errors.Join(netns.Set(ns), f())
	})
}

// onThread runs f on a thread that is thrown away afterwards.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// sent tells how many packets went out by a host's links of a kind.
func (h *fastHost) sent(prefix string) (packets uint64) {
	must(h.lab.t, h.Do(func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			if strings.HasPrefix(l.Attrs().Name, prefix) && l.Attrs().Name != "wvx-beat" {
				packets += l.Attrs().Statistics.TxPackets
			}
		}
		return err
	}))
	return packets
}

// block drops what a host sends to another on the VXLAN port, or ends that.
func (h *fastHost) block(other *fastHost, on bool) {
	verb := "-D"
	if on {
		verb = "-A"
	}
	h.iptables(verb, "OUTPUT", "-p", "udp", "--dport", fmt.Sprint(fastPort+1), "-d", other.IP4().String(), "-j", "DROP")
}

func (h *fastHost) iptables(words ...string) {
	h.lab.t.Helper()
	must(h.lab.t, h.Do(func() error {
		if out, err := exec.Command("iptables", append([]string{"-w"}, words...)...).CombinedOutput(); err != nil {
			return fmt.Errorf("iptables %s: %w: %s", words, err, out)
		}
		return nil
	}))
}
