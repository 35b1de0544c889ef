package transport

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"weave/mesh/id"
	"weave/mesh/wire"
)

// A pipe carries datagrams between two peers over a TCP connection, where UDP does
// not get through: each behind its length, of two bytes, in a stream of kind
// StreamDatagrams. To a session it is a path like any other, better than relays
// and worse than UDP, since TCP holds back all that comes behind a lost packet.
//
// Writing never waits: what does not fit the queue is lost, as it would be in a
// socket's buffer.

const (
	// pipeAfter is how long a peer is looked for by UDP alone.
	pipeAfter = 1500 * time.Millisecond
	// A pipe that cannot be opened is tried again after pipeFirst, later twice as
	// long each time, up to pipeLast.
	pipeFirst = 2 * time.Second
	pipeLast  = time.Minute
	// pipeIdle is how many ping intervals a pipe may be silent: it is not used, or the
	// connection is dead and nobody tells us.
	pipeIdle = 3
	// pipeStall ends a pipe whose other side takes nothing.
	pipeStall = 10 * time.Second
	// pipeQueue is how many bytes wait to be written at most: a few milliseconds of
	// a fast network.
	pipeQueue = 256 << 10
	// maxPipes are kept with one peer: one that each side opened.
	maxPipes = 2
	// maxOpening bounds the pipes that are being opened at once; half of them to peers
	// without a session, most of which may be dead, and take their time.
	maxOpening = 16
)

const lengthLen = 2

// pipe is one of them. Its methods are safe for concurrent use.
type pipe struct {
	c      net.Conn
	peer   id.PeerID
	remote netip.AddrPort // not valid if it goes through a proxy

	wake chan struct{} // buffered: queue is not empty

	mu    sync.Mutex
	queue []byte // lengths and datagrams
	ended bool
}

func newPipe(c net.Conn, peer id.PeerID) *pipe {
	p := &pipe{c: c, peer: peer, wake: make(chan struct{}, 1)}
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		p.remote = netip.AddrPortFrom(a.AddrPort().Addr().Unmap(), a.AddrPort().Port())
	}
	return p
}

// send queues datagrams that stand one after the other in buf, each size bytes
// long, the last maybe shorter. buf is the caller's again when it returns.
func (p *pipe) send(buf []byte, size int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return net.ErrClosed
	}
	for len(buf) > 0 {
		n := min(size, len(buf))
		if len(p.queue)+lengthLen+n > pipeQueue {
			return ErrQueueFull
		}
		p.queue = binary.BigEndian.AppendUint16(p.queue, uint16(n))
		p.queue = append(p.queue, buf[:n]...)
		buf = buf[n:]
	}
	select {
	case p.wake <- struct{}{}:
	default:
	}
	return nil
}

// take empties the queue into b, whose memory it becomes.
func (p *pipe) take(b []byte) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	b, p.queue = p.queue, b[:0]
	return b
}

// write writes what is queued until the pipe ends.
func (p *pipe) write(ctx context.Context) {
	var b []byte
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		}
		b = p.take(b)
		if p.c.SetWriteDeadline(time.Now().Add(pipeStall)) != nil {
			return
		}
		if _, err := p.c.Write(b); err != nil {
			_ = p.c.Close() // so that reading ends
			return
		}
	}
}

// end has every later send fail.
func (p *pipe) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended, p.queue = true, nil
}

// runPipe carries datagrams of a stream of kind StreamDatagrams until it ends, and
// closes it. This goroutine is one of the transport's, which waits for it.
func (t *Transport) runPipe(c net.Conn, peer id.PeerID) {
	p := newPipe(c, peer)
	ctx, cancel := context.WithCancel(context.Background())
	var others sync.WaitGroup
	others.Go(func() { p.write(ctx) })
	if surplus, ok := t.addPipe(p); ok {
		for _, old := range surplus {
			others.Go(func() { _ = old.c.Close() }) // its own goroutine does the rest
		}
		t.readPipe(p)
		t.dropPipe(p)
	}
	p.end()
	cancel()
	_ = c.Close()
	others.Wait()
}

// readPipe hands over what comes, as much at a time as has come.
func (t *Transport) readPipe(p *pipe) {
	in := bufio.NewReaderSize(p.c, trainRoom)
	buf := make([]byte, trainRoom)
	for {
		if p.c.SetReadDeadline(time.Now().Add(pipeIdle*t.cfg.PingInterval)) != nil {
			return
		}
		if _, err := in.Peek(1); err != nil {
			return
		}
		if !t.takePipe(p, in, buf) {
			return
		}
	}
}

// takePipe handles the datagrams that have come, and one more if only its beginning
// has. It reports whether the pipe goes on.
func (t *Transport) takePipe(p *pipe, in *bufio.Reader, buf []byte) bool {
	used := 0
	var room [batch]int
	ends := room[:0]
	for first := true; (first || in.Buffered() >= lengthLen) && len(ends) < batch; first = false {
		var length [lengthLen]byte
		if _, err := io.ReadFull(in, length[:]); err != nil {
			return false
		}
		n := int(binary.BigEndian.Uint16(length[:]))
		if n > in.Buffered() || used+n > len(buf) { // those before do not wait for it
			t.receiver.piped(p, buf, ends)
			used, ends = 0, ends[:0]
		}
		if _, err := io.ReadFull(in, buf[used:used+n]); err != nil {
			return false
		}
		used += n
		ends = append(ends, used)
	}
	t.receiver.piped(p, buf, ends)
	return true
}

// piped handles datagrams that came by a pipe, each up to one of the ends.
func (r *receiver) piped(p *pipe, buf []byte, ends []int) {
	if len(ends) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now = time.Now()
	begin := 0
	for _, end := range ends {
		r.datagram(buf[begin:end:end], hop{pipe: p})
		begin = end
	}
	r.settle(nil)
	r.flush()
}

// addPipe makes a pipe known; not ok if there is no room for its peer. The surplus is
// to be closed, which may wait for the other side.
func (t *Transport) addPipe(p *pipe) (surplus []*pipe, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	peer, err := t.know(p.peer)
	if err != nil {
		return nil, false
	}
	peer.pipes = append([]*pipe{p}, peer.pipes...)
	peer.watch.probe = probe{}
	peer.want()
	return peer.pipes[min(len(peer.pipes), maxPipes):], true
}

func (t *Transport) dropPipe(p *pipe) {
	t.mu.Lock()
	defer t.mu.Unlock()
	peer := t.peers[p.peer]
	if peer == nil {
		return
	}
	for i, x := range peer.pipes {
		if x == p {
			peer.pipes = append(peer.pipes[:i:i], peer.pipes[i+1:]...)
			break
		}
	}
	if path := peer.path.Load(); path != nil && path.pipe == p {
		t.lost(peer)
		t.kick()
	}
}

// seekPipe opens a pipe to a peer that UDP does not reach, now and then; the
// caller has mu.
func (t *Transport) seekPipe(p *peer, now time.Time) {
	if path := p.path.Load(); p.proven() && path.udp() {
		p.dark = time.Time{}
		return
	}
	if p.dark.IsZero() {
		p.dark, p.nextPipe, p.pipeWait = now, now, 0
		if p.current.Load() == nil { // else UDP was tried for long enough
			p.nextPipe = now.Add(pipeAfter)
		}
	}
	bound := maxOpening
	if p.current.Load() == nil || p.silent(now) {
		bound /= 2
	}
	if len(p.pipes) > 0 || p.opening || len(p.candidates) == 0 || now.Before(p.nextPipe) || t.opening >= bound {
		return
	}
	p.pipeWait = min(max(2*p.pipeWait, pipeFirst), pipeLast)
	p.opening = true
	t.opening++
	t.inbound.start(func(ctx context.Context) {
		t.openPipe(ctx, p.id)
		t.mu.Lock()
		defer t.mu.Unlock()
		t.opening--
		p.opening, p.nextPipe = false, time.Now().Add(max(p.pipeWait, pipeFirst))
	})
}

// openPipe opens a pipe to a peer at one of its addresses, and runs it in a
// goroutine of its own.
func (t *Transport) openPipe(ctx context.Context, p id.PeerID) {
	if c, err := t.dialDirect(ctx, p, wire.StreamDatagrams); err == nil { // else the next time
		t.startPipe(c, p)
	}
}

// startPipe runs a pipe that we opened.
func (t *Transport) startPipe(c net.Conn, p id.PeerID) {
	if !t.inbound.start(func(ctx context.Context) {
		stop := context.AfterFunc(ctx, func() { _ = c.Close() })
		defer stop()
		t.runPipe(c, p)
	}) {
		_ = c.Close()
	}
}

// connectPipe is connect by a pipe.
func (t *Transport) connectPipe(ctx context.Context, addr netip.AddrPort) (id.PeerID, error) {
	c, err := t.dial(ctx, id.PeerID{}, direct(addr), wire.StreamDatagrams)
	if err != nil {
		return id.PeerID{}, err
	}
	peer := c.(*stream).peer
	t.startPipe(c, peer)
	t.AddCandidates(peer, addr)
	return peer, t.awaitSession(ctx, peer)
}

// awaitSession waits until there is a session with a peer that has a pipe.
func (t *Transport) awaitSession(ctx context.Context, p id.PeerID) error {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	tick := time.NewTicker(tickInterval)
	defer tick.Stop()
	for {
		if l := t.Link(p); l != nil && l.current.Load() != nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrNoAnswer, context.Cause(ctx))
		case <-t.closed:
			return ErrClosed
		case <-tick.C:
		}
	}
}
