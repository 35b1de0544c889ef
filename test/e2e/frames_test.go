package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"testing"

	"weave/test/dockerlab"
)

const (
	etherLen  = 14
	udpLen    = 8
	protoUDP  = 17
	weavePort = 6783
)

// weaveDatagram returns the UDP payload of an IPv4 frame to or from Weave's
// port, nil for any other.
func weaveDatagram(frame []byte) []byte {
	if len(frame) < etherLen+20 || binary.BigEndian.Uint16(frame[12:]) != 0x0800 {
		return nil
	}
	ip := frame[etherLen:]
	header := int(ip[0]&0xf) * 4
	if ip[9] != protoUDP || len(ip) < header+udpLen {
		return nil
	}
	udp := ip[header:]
	if binary.BigEndian.Uint16(udp) != weavePort && binary.BigEndian.Uint16(udp[2:]) != weavePort {
		return nil
	}
	return udp[udpLen:]
}

func parseMAC(s string) ([]byte, error) { return net.ParseMAC(s) }

// sendJunk sends each message from a host, each on a new TCP connection or all
// from one UDP socket. That a connection is closed by the other side is fine.
func sendJunk(h *dockerlab.Host, network, to string, messages [][]byte) error {
	const limit = 1400
	return h.Net().Do(func() error {
		for _, message := range messages {
			c, err := net.Dial(network, to)
			if err != nil {
				return fmt.Errorf("junk: %w", err)
			}
			_, _ = c.Write(message[:min(len(message), limit)])
			if err := c.Close(); err != nil {
				return fmt.Errorf("junk: %w", err)
			}
		}
		return nil
	})
}

// pluginPIDs tells whether a plugin has been restarted.
func pluginPIDs(t *testing.T, hosts []*dockerlab.Host) string {
	t.Helper()
	var pids []int
	for _, h := range hosts {
		pid, err := h.PluginPID()
		if err != nil || pid == 0 {
			t.Errorf("no plugin on %s: %v", h.Name(), err)
		}
		pids = append(pids, pid)
	}
	return fmt.Sprint(pids)
}
