package transport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"weave/mesh/wire"
)

// blockUDP loses all that the nodes send by UDP, or nothing any more.
func blockUDP(blocked bool, nodes ...*node) {
	for _, n := range nodes {
		n.wire.setLose(func([]byte) bool { return blocked })
	}
}

// barePipe opens a pipe of which nobody takes care on our side, but that it is
// closed.
func barePipe(t *testing.T, from, to *node) net.Conn {
	t.Helper()
	c, err := from.dialDirect(within(t, 10*time.Second), to.self, wire.StreamDatagrams)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func (n *node) pipesTo(other *node) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := n.peers[other.self]; p != nil {
		return len(p.pipes)
	}
	return 0
}

// newestPipe is the address at the other end of a node's newest pipe to another.
func (n *node) newestPipe(other *node) (addr netip.AddrPort) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := n.peers[other.self]; p != nil && len(p.pipes) > 0 {
		addr = p.pipes[0].remote
	}
	return addr
}

// Where UDP is blocked from the start, hosts meet by TCP, and take UDP when it
// gets through.
func TestUDPBlocked(t *testing.T) {
	t.Parallel()
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2")
	blockUDP(true, a, b)
	connect(t, a, b)
	exchange(t, a, b)
	if s := a.status(b.self); !s.TCP || s.Relayed || s.Addr != b.addr || s.State != StateUp {
		t.Errorf("status %+v", s)
	}
	await(t, "link", func() bool { return len(a.Direct()) == 1 && len(b.Direct()) == 1 })
	frame := wire.AppendItem(make([]byte, wire.HeaderLen), wire.KindFrame, append(make([]byte, wire.FrameHeaderLen), "a frame"...))
	frame = append(frame, make([]byte, wire.TagLen)...)
	if l := a.Link(b.self); l.Seal(frame, len(frame)) != nil || l.Send(frame, len(frame)) != nil {
		t.Fatal("not sent")
	}
	await(t, "frame", func() bool {
		frames, flushes := b.frames.got()
		return len(frames) == 1 && frames[0] == "a frame" && flushes > 0
	})
	blockUDP(false, a, b)
	await(t, "UDP to be taken", func() bool { return !a.status(b.self).TCP && !b.status(a.self).TCP })
	exchange(t, a, b)
}

// A host that is looked for as a candidate is met by TCP, too.
func TestUDPBlockedToCandidate(t *testing.T) {
	t.Parallel()
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2")
	blockUDP(true, a, b)
	a.AddCandidates(b.self, b.addr)
	await(t, "session", func() bool { return a.status(b.self).State == StateUp && b.status(a.self).State == StateUp })
	exchange(t, a, b)
}

// UDP that is blocked later is left for TCP within 3 s.
func TestUDPBlockedLater(t *testing.T) {
	t.Parallel()
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2")
	connect(t, a, b)
	talk(t, a, b)
	exchange(t, a, b)
	blockUDP(true, a, b)
	began := time.Now()
	await(t, "TCP to be taken", func() bool { return a.status(b.self).TCP && b.status(a.self).TCP })
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("it took %s", took)
	}
	exchange(t, a, b)

	// The connection is cut: another one is made.
	a.mu.Lock()
	for _, x := range a.peers[b.self].pipes {
		_ = x.c.(*stream).Conn.Close()
	}
	a.mu.Unlock()
	await(t, "other pipes", func() bool { return a.pipesTo(b) > 0 && a.status(b.self).TCP && b.status(a.self).TCP })
	awaitExchange(t, a, b)
}

// A stranger's reasons are told by TCP as well.
func TestUDPBlockedAndWrongPassword(t *testing.T) {
	t.Parallel()
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2", func(c *Config) { c.Keys = &wrongKeys })
	blockUDP(true, a, b)
	if _, err := a.Connect(within(t, 10*time.Second), b.addr); err == nil || !wontDo(err) {
		t.Errorf("connect: %v", err)
	}
	if _, err := a.Connect(within(t, 10*time.Second), a.addr); !wontDo(err) {
		t.Errorf("connect to itself: %v", err)
	}
}

// What comes by a pipe is handled as it comes, in order, however it is cut.
func TestPipeIsCutAnyhow(t *testing.T) {
	t.Parallel()
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2")
	connect(t, a, b)
	c := barePipe(t, a, b)
	const count = 300
	var all []byte
	for i := range count {
		d := wire.AppendItem(make([]byte, wire.HeaderLen), wire.KindGossip, fmt.Append(nil, i))
		d = append(d, make([]byte, wire.TagLen)...)
		if err := a.Link(b.self).Seal(d, len(d)); err != nil {
			t.Fatal(err)
		}
		all = append(binary.BigEndian.AppendUint16(all, uint16(len(d))), d...)
	}
	for size := 1; len(all) > 0; size = size*3%1000 + 1 {
		n := min(size, len(all))
		if _, err := c.Write(all[:n]); err != nil {
			t.Fatal(err)
		}
		all = all[n:]
	}
	for i := range count {
		if got := take(t, "item", b.packets); got.body != fmt.Sprint(i) {
			t.Fatalf("%q after %d items", got.body, i)
		}
	}
}

// What has come by a pipe does not wait for the rest of what comes behind it.
func TestHalfDatagramInPipe(t *testing.T) {
	t.Parallel()
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2")
	connect(t, a, b)
	c := barePipe(t, a, b)
	d := wire.AppendItem(make([]byte, wire.HeaderLen), wire.KindGossip, []byte("whole"))
	d = append(d, make([]byte, wire.TagLen)...)
	if err := a.Link(b.self).Seal(d, len(d)); err != nil {
		t.Fatal(err)
	}
	whole := append(binary.BigEndian.AppendUint16(nil, uint16(len(d))), d...)
	if _, err := c.Write(append(whole, 0, 100, 1)); err != nil {
		t.Fatal(err)
	}
	if got := take(t, "item", b.packets); got.body != "whole" {
		t.Errorf("got %q", got.body)
	}
}

// Junk in a pipe is dropped, and disturbs nobody.
func TestJunkInPipe(t *testing.T) {
	t.Parallel()
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2")
	connect(t, a, b)
	for _, junk := range [][]byte{
		make([]byte, 1000), // datagrams of no length
		append([]byte{0xff, 0xff}, make([]byte, 0xffff)...),
		append(append([]byte{0, 40}, make([]byte, 40)...), 0xff, 0xff, 1),
	} {
		c := barePipe(t, a, b)
		before := b.dropped(dropMalformed)
		if _, err := c.Write(junk); err != nil {
			t.Fatal(err)
		}
		await(t, "junk to be dropped", func() bool { return b.dropped(dropMalformed) > before })
		_ = c.Close()
	}
	await(t, "pipes to end", func() bool { return b.pipesTo(a) == 0 })
	exchange(t, a, b)
}

// By a pipe comes what its peer sealed, and not what others did: else their path could
// be a pipe that ends without their noticing.
func TestOthersDatagramInPipe(t *testing.T) {
	t.Parallel()
	a, b, c := start(t, "127.0.0.1"), start(t, "127.0.0.2"), start(t, "127.0.0.3")
	connect(t, a, b)
	connect(t, c, b)
	s, err := c.dialDirect(within(t, 10*time.Second), b.self, wire.StreamDatagrams)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	before := b.dropped(dropMalformed)
	for _, from := range []*node{a, c} {
		d := wire.AppendItem(make([]byte, wire.HeaderLen), wire.KindGossip, nil)
		d = append(d, make([]byte, wire.TagLen)...)
		if err := from.Link(b.self).Seal(d, len(d)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(d))), d...)); err != nil {
			t.Fatal(err)
		}
	}
	if got := take(t, "item", b.packets); got.from != c.self || b.dropped(dropMalformed) != before+1 {
		t.Errorf("got %+v", got)
	}
}

// A peer has a few pipes, the newest ones.
func TestPipesAreFew(t *testing.T) {
	t.Parallel()
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2")
	connect(t, a, b)
	var all []net.Conn
	for range maxPipes + 2 {
		c := barePipe(t, a, b)
		all = append(all, c)
		addr := c.LocalAddr().(*net.TCPAddr).AddrPort()
		await(t, "pipe", func() bool { return b.newestPipe(a) == addr })
	}
	for _, c := range all[:2] {
		if _, err := c.Read(make([]byte, 1)); err != io.EOF && err != io.ErrUnexpectedEOF {
			t.Errorf("an old pipe reads %v", err)
		}
	}
	await(t, "the others to stay", func() bool { return b.pipesTo(a) == maxPipes })
}

// slowToClose is a connection whose other side takes its time.
type slowToClose struct {
	net.Conn
	may <-chan struct{}
}

func (c slowToClose) Close() error {
	<-c.may
	return c.Conn.Close()
}

// A pipe that is one too many holds nobody up while it is closed.
func TestPipeIsSlowToClose(t *testing.T) {
	t.Parallel()
	a, peer := start(t, "127.0.0.1"), testIdentity(t).ID
	may := make(chan struct{})
	t.Cleanup(func() { close(may) })
	for n := range maxPipes + 1 {
		ours, theirs := net.Pipe()
		t.Cleanup(func() { _ = theirs.Close() })
		a.startPipe(slowToClose{ours, may}, peer)
		await(t, "pipe, and nobody to wait for it", func() bool {
			if !a.mu.TryLock() {
				return false
			}
			defer a.mu.Unlock()
			p := a.peers[peer]
			return p != nil && len(p.pipes) > n
		})
	}
}

// deaf is an address that takes connections and says nothing.
func deaf(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.9:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// Peers that are dead leave room to open pipes to those that live, and one that has
// many addresses is not tried again meanwhile.
func TestPipesToDeadPeers(t *testing.T) {
	t.Parallel()
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2")
	connect(t, a, b)
	addr := deaf(t)
	a.mu.Lock()
	defer a.mu.Unlock()
	var dead []*peer
	for range maxOpening {
		p, err := a.know(testIdentity(t).ID)
		if err != nil {
			t.Fatal(err)
		}
		p.addCandidates(addr)
		dead = append(dead, p)
	}
	now := time.Now()
	for range 3 {
		a.seekPipe(dead[0], now)
		a.seekPipe(dead[1], now)
		now = now.Add(pipeLast)
	}
	if a.opening != 2 {
		t.Errorf("%d pipes are opened to two peers", a.opening)
	}
	for _, p := range dead {
		a.seekPipe(p, now)
		a.seekPipe(p, now.Add(pipeLast))
	}
	if a.opening != maxOpening/2 {
		t.Errorf("%d pipes are opened to peers that may be dead", a.opening)
	}
	living := a.peers[b.self]
	living.up.Store(false)
	living.dark = time.Time{} // until now
	if a.seekPipe(living, time.Now()); a.opening != maxOpening/2+1 {
		t.Errorf("a peer that lives has to wait")
	}
}

// A pipe that says nothing is ended soon: its connection may be dead.
func TestPipeIsSilent(t *testing.T) {
	t.Parallel()
	hasty := func(c *Config) { c.PingInterval = 100 * time.Millisecond }
	a, b := start(t, "127.0.0.1"), start(t, "127.0.0.2", hasty)
	connect(t, a, b)
	c := barePipe(t, a, b)
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("reading gives %v", err)
	}
}

// What nobody takes is lost, and holds nobody up.
func TestPipeIsFull(t *testing.T) {
	t.Parallel()
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	p := newPipe(ours, testIdentity(t).ID)
	d := make([]byte, 10_000)
	var err error
	n := 0
	for ; err == nil && n < 1000; n++ {
		err = p.send(d, len(d))
	}
	if !errors.Is(err, ErrQueueFull) || n < 10 || n > pipeQueue/len(d)+1 {
		t.Errorf("after %d: %v", n, err)
	}
	if b := p.take(nil); len(b) > pipeQueue || len(b) != (n-1)*(len(d)+lengthLen) {
		t.Errorf("%d bytes are queued", len(b))
	}
	p.end()
	if err := p.send(d, len(d)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}
