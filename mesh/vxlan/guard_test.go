package vxlan

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"weave/test/netlab"
)

// TestGuardDropsStrangers holds that what comes to the VXLAN port gets in from
// peers only, and that other ports are nobody's business.
func TestGuardDropsStrangers(t *testing.T) {
	hosts := newLab(t, 2)
	for name, addr := range map[string]func(*netlab.Host) netip.Addr{"IPv4": (*netlab.Host).IP4, "IPv6": (*netlab.Host).IP6} {
		t.Run(name, func(t *testing.T) {
			here, there := addr(hosts[0]), addr(hosts[1])
			l := NewLinks()
			defer l.Close()
			f := NewFirewall(here, l)
			defer f.Close()
			guarded, open := listenAt(t, hosts[0], here, vxlanPort), listenAt(t, hosts[0], here, vxlanPort+1)
			ensure := func() error {
				return hosts[0].Do(func() error { _, err := f.Ensure(vxlanPort); return err })
			}
			for _, step := range []struct {
				what string
				do   func() error
				want bool
			}{
				{"no guard", func() error { return nil }, true},
				{"a guard", ensure, false},
				{"another peer", func() error { return f.Allow(here) }, false},
				{"a peer", func() error { return f.Allow(there) }, true},
				{"a peer no more", func() error { return f.Deny(there) }, false},
				{"another peer in the rule", ensure, false},
				{"a peer in the rule", func() error { return errors.Join(f.Allow(there), ensure()) }, true},
				{"a peer in the rule no more", func() error { return f.Deny(there) }, false},
				{"no guard again", f.Remove, true},
			} {
				must(t, step.do())
				if got := arrives(t, hosts[1], guarded, open); got != step.want {
					t.Errorf("%s: let in: %v", step.what, got)
				}
			}
		})
	}
}

// TestGuardIsForUDP holds that strangers reach the same port of TCP.
func TestGuardIsForUDP(t *testing.T) {
	hosts := newLab(t, 2)
	l := NewLinks()
	defer l.Close()
	f := NewFirewall(hosts[0].IP4(), l)
	defer f.Close()
	at := netip.AddrPortFrom(hosts[0].IP4(), vxlanPort)
	var server *net.TCPListener
	must(t, hosts[0].Do(func() (err error) {
		if _, err = f.Ensure(vxlanPort); err == nil {
			server, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
		}
		return err
	}))
	defer server.Close()
	must(t, hosts[1].Do(func() error {
		c, err := net.DialTimeout("tcp", at.String(), 10*time.Second)
		if err == nil {
			err = c.Close()
		}
		return err
	}))
}

// TestGuardIsCheap holds what makes the rule cost little: that it names some of
// the peers, and that the set has a size. And that it is left alone then.
func TestGuardIsCheap(t *testing.T) {
	h := newLab(t, 1)[0]
	for name, ours := range map[string]netip.Addr{"IPv4": h.IP4(), "IPv6": h.IP6()} {
		t.Run(name, func(t *testing.T) {
			l := NewLinks()
			defer l.Close()
			f := NewFirewall(ours, l)
			defer f.Close()
			ensure := func() { must(t, h.Do(func() error { _, err := f.Ensure(vxlanPort); return err })) }
			ensure()
			var peers []netip.Addr
			for a := ours; len(peers) < maxNear+2; a = a.Next() {
				peers = append(peers, a)
				must(t, f.Allow(a))
			}
			ensure()
			named := func() (addrs []netip.Addr) {
				must(t, f.do("read", func(c *nftables.Conn) error {
					input := f.chains(vxlanPort, nil)[0]
					rules, err := c.GetRules(input.Table, input.Chain)
					for _, r := range rules {
						for _, e := range r.Exprs {
							if x, ok := e.(*expr.Cmp); ok && x.Op == expr.CmpOpNeq {
								a, _ := netip.AddrFromSlice(x.Data)
								addrs = append(addrs, a)
							}
						}
					}
					set, setErr := c.GetSetByName(guardOf(f.family()), peerSet)
					if setErr == nil && set.Size != maxAllowed {
						t.Errorf("the set's size is %d", set.Size)
					}
					return errors.Join(err, setErr)
				}))
				return addrs
			}
			if got := named(); !slices.Equal(got, peers[:maxNear]) {
				t.Errorf("the rule names %v", got)
			}
			must(t, f.Deny(peers[1]))
			ensure()
			if got := named(); !slices.Equal(got, slices.Delete(slices.Clone(peers[:maxNear+1]), 1, 2)) {
				t.Errorf("one left, and the rule names %v", got)
			}
			before, err := l.generation()
			must(t, err)
			again := NewFirewall(ours, l) // as the next run does
			defer again.Close()
			must(t, h.Do(func() error { _, err := again.Ensure(vxlanPort); return err }))
			if after, err := l.generation(); err != nil || after != before {
				t.Errorf("what is in order was changed, %v", err)
			}
		})
	}
}

func listenAt(t *testing.T, h *netlab.Host, a netip.Addr, port uint16) (c *net.UDPConn) {
	t.Helper()
	must(t, h.Do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, port)))
		return err
	}))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// arrives sends a datagram to guarded, and one after it to open, which shows
// when the first would have come.
func arrives(t *testing.T, from *netlab.Host, guarded, open *net.UDPConn) bool {
	t.Helper()
	must(t, from.Do(func() error {
		for _, to := range []*net.UDPConn{guarded, open} {
			c, err := net.DialUDP("udp", nil, to.LocalAddr().(*net.UDPAddr))
			if err != nil {
				return err
			}
			_, err = c.Write([]byte("x"))
			_ = c.Close()
			if err != nil {
				return err
			}
		}
		return nil
	}))
	buf := make([]byte, 8)
	must(t, open.SetReadDeadline(time.Now().Add(10*time.Second)))
	_, err := open.Read(buf)
	must(t, err)
	must(t, guarded.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
	_, err = guarded.Read(buf)
	return err == nil
}
