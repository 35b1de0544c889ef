package mesh

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"weave/test/netlab"
)

// go test ./mesh -run TestLabFlappingLinks -flap=60s -flap-seed=7
var (
	flapTime = flag.Duration("flap", 8*time.Second, "how long links go up and down in TestLabFlappingLinks")
	flapSeed = flag.Uint64("flap-seed", 1, "what they do is drawn from this")
)

const tickerPort = 9

// ticker sends numbered datagrams from one container to another, and looks for
// such that arrive twice.
type ticker struct {
	from, to  *container
	in, out   net.PacketConn
	sent      uint64
	seen      map[uint64]bool
	doubled   []uint64
	stop      chan struct{}
	done      sync.WaitGroup
	mu        sync.Mutex // guards seen and doubled
	addressee net.Addr
}

func (c *container) packetConn(port uint16) (conn net.PacketConn) {
	c.t.Helper()
	must(c.t, c.do(func() (err error) {
		conn, err = net.ListenPacket("udp4", netip.AddrPortFrom(c.addr, port).String())
		return err
	}))
	return conn
}

func newTicker(from, to *container, port uint16) *ticker {
	k := &ticker{from: from, to: to, in: to.packetConn(port), out: from.packetConn(0), seen: map[uint64]bool{}, stop: make(chan struct{})}
	k.addressee = net.UDPAddrFromAddrPort(addrPort(to.addr, port))
	k.done.Go(k.send)
	k.done.Go(k.receive)
	return k
}

func (k *ticker) send() {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-k.stop:
			return
		case <-tick.C:
			k.sent++
			_, _ = k.out.WriteTo(binary.BigEndian.AppendUint64(nil, k.sent), k.addressee)
		}
	}
}

func (k *ticker) receive() {
	b := make([]byte, 100)
	for {
		n, _, err := k.in.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n != 8 {
			continue
		}
		k.mu.Lock()
		number := binary.BigEndian.Uint64(b)
		if k.seen[number] {
			k.doubled = append(k.doubled, number)
		}
		k.seen[number] = true
		k.mu.Unlock()
	}
}

func (k *ticker) end() {
	close(k.stop)
	_ = k.in.Close()
	_ = k.out.Close()
	k.done.Wait()
}

// TestLabFlappingLinks has each link between five hosts go up and down at random.
// Nothing arrives twice or goes in circles meanwhile, and when the links have
// settled all reach all within 5 s.
func TestLabFlappingLinks(t *testing.T) {
	t.Parallel()
	l := newHardLab(t)
	hosts := l.startLine(5)
	must(t, l.net.Connect(hosts, netlab.Full(hosts...)))
	l.awaitHops(l.hosts, func(i, j int) int { return 1 })
	var tickers []*ticker
	for i, c := range l.boxes {
		c.udpEcho()
		for j, d := range l.boxes {
			if i != j {
				tickers = append(tickers, newTicker(c, d, uint16(tickerPort+100*i)))
			}
		}
	}
	t.Logf("-flap-seed=%d", *flapSeed)
	flap(t, l.net, netlab.Full(hosts...), *flapSeed, *flapTime)
	began := time.Now()
	for i, c := range l.boxes {
		for j, d := range l.boxes {
			for i != j && c.ask(d, "settled", 50*time.Millisecond) != nil {
				if time.Since(began) > wait {
					t.Fatalf("%s does not reach %s", c.addr, d.addr)
				}
			}
		}
	}
	t.Logf("all reach all after %s", time.Since(began))
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("all reach all after %s", took)
	}
	got, sent := 0, uint64(0)
	for _, k := range tickers {
		k.end()
		got, sent = got+len(k.seen), sent+k.sent
		if len(k.doubled) > 0 {
			t.Errorf("%s to %s: %d of %d arrived twice", k.from.addr, k.to.addr, len(k.doubled), len(k.seen))
		}
	}
	t.Logf("%d of %d datagrams arrived", got, sent)
	for _, h := range l.hosts {
		if n := h.status().Dropped["too many hops"]; n > 0 {
			t.Errorf("%s: %d datagrams went in circles", h.Name(), n)
		}
	}
}

// flap cuts and mends links at random, and mends all at the end.
func flap(t *testing.T, net *netlab.Lab, links []netlab.Link, seed uint64, long time.Duration) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 0))
	var log strings.Builder
	cut := make([]bool, len(links))
	for began := time.Now(); time.Since(began) < long; {
		i := r.IntN(len(links))
		cut[i] = !cut[i]
		do := net.HealLink
		if cut[i] {
			do = func(a, b *netlab.Host) error { return net.CutLink(a, b, netlab.AllIP) }
		}
		must(t, do(links[i].A, links[i].B))
		fmt.Fprintf(&log, " %d", i)
		time.Sleep(time.Duration(r.IntN(300)) * time.Millisecond)
	}
	for i, l := range links {
		if cut[i] {
			must(t, net.HealLink(l.A, l.B))
		}
	}
	t.Logf("links that changed:%s", &log)
}
