package mesh

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"weave/mesh/gossip"
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

	tcpPort uint16 // of the hosts that are placed next
	proxy   string
}

// statusGap is how often a host is asked for its status at most.
const statusGap = 50 * time.Millisecond

const (
	fastPort = 6783
	fastMTU  = 1450 // too long for the tunnel by 60 bytes
)

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
		lab: l, Host: h, identity: testIdentity(l.t), number: len(l.hosts) + 1, password: password, seeds: seeds,
		tcpPort: l.tcpPort, proxy: l.proxy,
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
	password string
	seeds    []netip.Addr
	tcpPort  uint16
	proxy    string

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
	Advertise                      netip.Addr
	Peers                          []string
	TCPPort                        uint16
}

const hostEnv = "WEAVE_TEST_FAST_HOST"

// start runs a new process, which takes over what the one before left.
func (h *fastHost) start() {
	t := h.lab.t
	t.Helper()
	setup := hostSetup{
		Private: hex.EncodeToString(h.identity.Private), Password: h.password, Name: h.Name(), Advertise: h.IP4(),
		TCPPort: h.tcpPort, Proxy: h.proxy,
	}
	for _, seed := range h.seeds {
		setup.Peers = append(setup.Peers, addrPort(seed, fastPort).String())
	}
	text, err := json.Marshal(setup)
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
	Dropped  map[string]uint64
	Segments map[string]struct {
		VNI      uint32
		VXLAN    bool
		Tunneled uint64 // bytes
	}
}

// peerReport is what it tells of another.
type peerReport struct {
	Alive, Fast, Up, Relayed, TCP bool
	Name, Why, Addr               string
	Hops                          int
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
	tap := h.call("join", key)
	must(h.lab.t, h.Do(func() error {
		br, err := netlink.LinkByName(bridge)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			snooping := false
			made := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge, MTU: fastMTU}, MulticastSnooping: &snooping}
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
		veth := netlink.NewVeth(netlink.LinkAttrs{Name: "v" + name, MTU: fastMTU, MasterIndex: br.Attrs().Index})
		veth.PeerName, veth.PeerMTU, veth.PeerHardwareAddr, veth.PeerNamespace = "eth0", fastMTU, c.mac, netlink.NsFd(ns)
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

// TestFastHostProcess is a host's process. Alone it does nothing.
func TestFastHostProcess(t *testing.T) {
	text := os.Getenv(hostEnv)
	if text == "" {
		return
	}
	var setup hostSetup
	must(t, json.Unmarshal([]byte(text), &setup))
	private, err := hex.DecodeString(setup.Private)
	must(t, err)
	identity, err := id.FromPrivate(private)
	must(t, err)
	timing := gossip.DefaultTiming()
	timing.Sum = 500 * time.Millisecond
	cfg := Config{
		Identity: identity, Password: []byte(setup.Password), Nickname: setup.Name, VXLANPort: fastPort + 1,
		Listen: netip.AddrPortFrom(setup.Advertise, fastPort), Advertise: setup.Advertise, Peers: setup.Peers, Store: newStore(), Log: quiet(),
		Answer: func(context.Context, id.PeerID, []byte) ([]byte, error) { return nil, nil },
		tune:   tuning{gossip: timing, seedInterval: 200 * time.Millisecond},
	}
	cfg.TCPPort = setup.TCPPort
	if setup.Proxy != "" {
		cfg.Proxy, err = url.Parse(setup.Proxy)
		must(t, err)
	}
	n, err := New(cfg)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	run := sync.OnceFunc(func() { go func() { ended <- n.Run(ctx) }() })
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		answer, err := serve(n, run, strings.Fields(in.Text()))
		if err != nil {
			answer = "error: " + err.Error()
		}
		fmt.Println("\n> " + answer) // the testing package writes lines of its own
	}
	run()
	cancel()
	must(t, <-ended)
}

// serve does one command. As the daemon does, it runs the node after the first
// segments are back.
func serve(n *Node, run func(), words []string) (string, error) {
	switch {
	case len(words) == 1 && words[0] == "run":
		run()
		return "", nil
	case len(words) == 2 && words[0] == "join":
		link, _, err := n.JoinSegment(words[1], fastMTU)
		return link, err
	case len(words) == 2 && words[0] == "leave":
		return "", n.LeaveSegment(words[1])
	case len(words) == 5 && words[0] == "announce":
		mac, err := net.ParseMAC(words[3])
		if err != nil {
			return "", err
		}
		ip, err := netip.ParseAddr(words[4])
		if err != nil {
			return "", err
		}
		began := monotonic()
		err = n.Announce(Endpoint{ID: words[2], Segment: words[1], MAC: MAC(mac), Addrs: []netip.Addr{ip}})
		return fmt.Sprint(began), err
	case len(words) == 1 && words[0] == "status":
		b, err := json.Marshal(n.report())
		return string(b), err
	case len(words) == 1 && words[0] == "hello":
		return "", nil
	}
	return serveFlat(n, words)
}

func (n *Node) report() any {
	type segment struct {
		VNI      uint32
		VXLAN    bool
		Tunneled uint64
	}
	out := struct {
		Peers    []peerReport
		NAT      NAT
		Dropped  map[string]uint64
		Segments map[string]segment
	}{NAT: n.NAT(), Dropped: n.Dropped(), Segments: map[string]segment{}}
	for _, p := range n.Peers() {
		out.Peers = append(out.Peers, peerReport{
			p.Alive, p.Fast, p.Path.State == transport.StateUp, p.Path.Relayed, p.Path.TCP, p.Nickname, p.FastWhy, p.Path.Addr.String(),
			p.Route.Hops, p.Path.TxBytes, p.Path.Candidates, p.NAT, p.Path.Pings, p.Path.LostPings,
		})
	}
	for _, s := range n.Segments() {
		out.Segments[s.Key] = segment{s.VNI, s.VXLAN, s.Stats.Out.Bytes}
	}
	return out
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
