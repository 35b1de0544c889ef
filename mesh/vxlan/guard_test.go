package vxlan

import (
	"net"
	"net/netip"
	"testing"
	"time"

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
			for _, step := range []struct {
				what string
				do   func() error
				want bool
			}{
				{"no guard", func() error { return nil }, true},
				{"a guard", func() error { return hosts[0].Do(func() error { _, err := f.Ensure(vxlanPort); return err }) }, false},
				{"another peer", func() error { return f.Allow(here) }, false},
				{"a peer", func() error { return f.Allow(there) }, true},
				{"a peer no more", func() error { return f.Deny(there) }, false},
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
