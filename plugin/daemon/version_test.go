package daemon

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weave/mesh/handshake"
	"weave/mesh/wire"
	"weave/plugin/control"
)

// plug opens a UDP socket in the plugin's network namespace.
func plug(t *testing.T, p *plugin, at string) *net.UDPConn {
	t.Helper()
	type result struct {
		conn *net.UDPConn
		err  error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // and the thread ends with this function
		conn, err := listenIn(p.cmd.Process.Pid, at)
		made <- result{conn, err}
	}()
	r := <-made
	must(t, r.err)
	t.Cleanup(func() { _ = r.conn.Close() })
	return r.conn
}

func listenIn(pid int, at string) (*net.UDPConn, error) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, err
	}
	defer func() { _ = ns.Close() }()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	return net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at)))
}

// TestOtherVersion: where hosts of two protocol versions meet, the status says
// so, with the way out, on the one that is told to join as on the other.
func TestOtherVersion(t *testing.T) {
	t.Parallel()
	const other, version = "127.0.0.9:6783", 9
	p := newPlugin(t, "WEAVE_ADDRESS=127.0.0.1", "WEAVE_PEERS="+other).start()
	stranger := plug(t, p, other)
	ended := make(chan struct{})
	go func() { // refuses all who come, as another version does
		defer close(ended)
		msg := make([]byte, 2048)
		for {
			n, from, err := stranger.ReadFromUDPAddrPort(msg)
			if err != nil {
				return
			}
			if h, err := wire.ParseHeader(msg[:n]); err == nil && h.Type == wire.TypeHandshake1 {
				answer := handshake.Reject(h, handshake.VersionError{Theirs: h.Version})
				answer[1] = version
				_, _ = stranger.WriteToUDPAddrPort(answer, from) // it is asked again
			}
		}
	}()
	t.Cleanup(func() { _ = stranger.Close(); <-ended })
	p.problem("no peer was met at "+other, fmt.Sprintf("protocol version %d, ours is %d", version, wire.Version), "run the same version of weave on both hosts")

	visitor := plug(t, p, "127.0.0.8:6783") // and one that comes to us
	hello := make([]byte, handshake.Len1)
	wire.Header{Type: wire.TypeHandshake1, Version: version, Counter: 77}.Put(hello)
	await(t, "the status to name the visitor", func() bool {
		_, err := visitor.WriteToUDPAddrPort(hello, netip.MustParseAddrPort("127.0.0.1:6783"))
		must(t, err)
		return slices.ContainsFunc(p.status().Refusals, func(r control.Refusal) bool {
			return r.Address == addr("127.0.0.8") && strings.Contains(r.Why, "protocol version 9") && strings.Contains(r.Do, "same version of weave")
		})
	})
}
