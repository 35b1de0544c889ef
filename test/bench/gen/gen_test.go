package gen

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

// One agent on loopback is both ends: it takes the ports, so there is one test.
func TestAgent(t *testing.T) {
	ours, theirs := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- Serve(theirs) }()
	c := NewClient(ours)
	ctx, home := context.Background(), netip.MustParseAddr("127.0.0.1")
	select {
	case err := <-served:
		t.Skip("ports are taken, or the kernel lacks cubic: ", err)
	case <-time.After(50 * time.Millisecond):
	}
	if err := c.Await(ctx, home, time.Second); err != nil {
		t.Fatal(err)
	}
	before, err := c.Counts(ctx)
	if err != nil {
		t.Fatal(err)
	}
	const span = 50 * time.Millisecond
	if err := c.TCP(ctx, TCPArgs{To: home, Streams: 2, For: span}); err != nil {
		t.Error(err)
	}
	sent, err := c.UDP(ctx, UDPArgs{To: home, Size: 64, For: span})
	if err != nil || sent == 0 {
		t.Errorf("sent %d, %v", sent, err)
	}
	if _, err := c.UDP(ctx, UDPArgs{To: home, Size: maxPayload + 1}); err == nil {
		t.Error("a datagram beyond the buffer was sent")
	}
	pings, err := c.Ping(ctx, PingArgs{To: home, Pause: time.Millisecond, For: span})
	if err != nil || len(pings.Nanos) == 0 || pings.Lost > 0 {
		t.Errorf("%+v, %v", pings, err)
	}
	after, err := c.Counts(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if after.TCPBytes == before.TCPBytes || after.UDPPackets-before.UDPPackets == 0 || after.UDPPackets-before.UDPPackets > sent || after.Nanos <= before.Nanos {
		t.Errorf("before %+v, after %+v, sent %d", before, after, sent)
	}
	if err := c.TCP(ctx, TCPArgs{To: netip.MustParseAddr("127.0.0.2"), Streams: 0}); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil && err != io.ErrClosedPipe {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}
