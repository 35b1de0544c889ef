package mesh

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"weave/test/netlab"
)

// go test ./mesh -run TestLabManyHosts -many=50
var many = flag.Int("many", 12, "hosts of TestLabManyHosts")

// TestLabManyHosts joins many hosts through one seed, each a process in a namespace of
// its own, and measures what they send each other when nothing happens.
func TestLabManyHosts(t *testing.T) {
	const (
		joinTime = 20 * time.Second
		idleRate = 5000 // bytes per second and host
		idleTime = 10 * time.Second
	)
	needRoot(t)
	t.Parallel()
	count := *many
	lab, err := netlab.New(netlab.UniqueName())
	must(t, err)
	t.Cleanup(func() { must(t, lab.Close()) })
	l := &fastLab{t: t, net: lab}
	for range count {
		l.add("secret", 1)
	}
	l.introduce()
	began := time.Now()
	for _, h := range l.hosts {
		h.call("run")
	}
	for _, h := range l.hosts {
		await(t, fmt.Sprintf("host %d to know all", h.number), func() bool { return h.alive() == count-1 })
	}
	took := time.Since(began)
	t.Logf("%d hosts have joined after %s", count, took)
	if took > joinTime {
		t.Errorf("%d hosts have joined after %s", count, took)
	}
	await(t, "all to be reached directly", func() bool { return l.hosts[count-1].direct() == count-1 })
	rate := func(during time.Duration) float64 {
		before, began := l.sent(), time.Now()
		time.Sleep(during) // what is sent meanwhile is what counts
		return float64(l.sent()-before) / time.Since(began).Seconds() / float64(count)
	}
	began = time.Now()
	await(t, "the search for path MTUs to end", func() bool { return rate(time.Second) <= idleRate })
	t.Logf("the search for path MTUs took %s", time.Since(began))
	idle := rate(idleTime)
	t.Logf("each sends %.0f bytes per second", idle)
	if idle > idleRate {
		t.Errorf("each sends %.0f bytes per second", idle)
	}
}

// introduce tells each host the Ethernet addresses of all: the kernel keeps a
// thousand that it has asked for, in all namespaces together.
func (l *fastLab) introduce() {
	macs := map[*fastHost]net.HardwareAddr{}
	for _, h := range l.hosts {
		must(l.t, h.Do(func() error {
			link, err := netlink.LinkByName("eth0")
			if err == nil {
				macs[h] = link.Attrs().HardwareAddr
			}
			return err
		}))
	}
	for _, h := range l.hosts {
		must(l.t, h.Do(func() error {
			link, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			for other, mac := range macs {
				if other == h {
					continue
				}
				err = errors.Join(err, netlink.NeighSet(&netlink.Neigh{
					LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: other.IP4().AsSlice(), HardwareAddr: mac,
				}))
			}
			return err
		}))
	}
}

// alive counts the living members that a host knows.
func (h *fastHost) alive() (n int) {
	for _, p := range h.status().Peers {
		if p.Alive {
			n++
		}
	}
	return n
}

// direct counts the peers that a host reaches directly.
func (h *fastHost) direct() (n int) {
	for _, p := range h.status().Peers {
		if p.Up && !p.Relayed {
			n++
		}
	}
	return n
}

// sent is the bytes that all hosts have sent each other, whatever the protocol, with
// all headers down to Ethernet's.
func (l *fastLab) sent() (bytes uint64) {
	for _, h := range l.hosts {
		must(l.t, h.Do(func() error {
			link, err := netlink.LinkByName("eth0")
			if err == nil {
				bytes += link.Attrs().Statistics.TxBytes
			}
			return err
		}))
	}
	return bytes
}
