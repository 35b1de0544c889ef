package mesh

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"weave/mesh/gossip"
	"weave/mesh/id"
	"weave/mesh/transport"
)

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
		Listen: netip.AddrPortFrom(setup.Listen, fastPort), Advertise: setup.Advertise, Peers: setup.Peers, Store: newStore(), Log: quiet(),
		Answer: func(context.Context, id.PeerID, []byte) ([]byte, error) { return nil, nil },
		tune:   tuning{gossip: timing, seedInterval: 200 * time.Millisecond},
	}
	if setup.Names != nil {
		net.DefaultResolver = resolver(setup.Names)
	}
	cfg.TCPPort, cfg.Discovery = setup.TCPPort, setup.Discovery
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
	case len(words) == 3 && words[0] == "join":
		mtu, err := strconv.Atoi(words[2])
		if err != nil {
			return "", err
		}
		link, _, err := n.JoinSegment(words[1], mtu)
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

func (n *Node) report() hostStatus {
	out := hostStatus{NAT: n.NAT(), Refused: n.Refusals(), Dropped: n.Dropped(), Segments: map[string]segmentReport{}}
	lan, _ := n.LAN()
	out.LAN, out.Trouble = lan.Links, lan.Trouble
	for _, p := range n.Peers() {
		out.Peers = append(out.Peers, peerReport{
			p.Alive, p.Fast, p.Path.State == transport.StateUp, p.Path.Relayed, p.Path.TCP, p.Nickname, p.FastWhy, p.Path.Addr.String(),
			p.Route.Hops, p.Path.MTU, p.Path.TxBytes, p.Path.Candidates, p.NAT, p.Path.Pings, p.Path.LostPings,
		})
	}
	for _, s := range n.Segments() {
		out.Segments[s.Key] = segmentReport{s.VNI, s.VXLAN, s.Stats.Out.Bytes}
	}
	return out
}
