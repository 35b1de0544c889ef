package scale

import (
	"io"
	"math"
	"net"
	"os"
	"sync"
	"time"

	"weave/mesh/handshake"
	"weave/mesh/wire"
)

// rate is how fast a stream gets once it is under way, in bytes per second.
const rate = 125_000_000

// stream is one end of a stream between two peers.
type stream struct {
	in, out *lane
}

// lane is one direction of a stream. It never blocks the writer.
type lane struct {
	net       *network
	kind      wire.StreamKind
	from, to  *peer
	delay     time.Duration
	news      chan struct{} // buffered: something changed for the reader
	mu        sync.Mutex    // guards what follows
	began     time.Time     // of the first Write
	written   float64       // bytes
	free      time.Time     // when the wire has sent what was written
	queue     []chunk
	closed    bool // by the reader
	ended     bool // by the writer, from endAt on
	endAt     time.Time
	deadlines [2]time.Time // of the reader and of the writer
}

// chunk is what one Write wrote, or the rest of it.
type chunk struct {
	at time.Time // it arrives
	b  []byte
}

// newStream opens a stream and counts what that takes: TCP's three segments and
// the handshake's three messages.
func newStream(n *network, kind wire.StreamKind, from, to *peer, delay time.Duration) (ours, theirs *stream) {
	n.mu.Lock()
	n.counts[from.index].stream(kind, ipSYN+2*ipTCP+ipTCP+2+handshake.Len1+2+handshake.Len3+recordHead+1)
	n.counts[to.index].stream(kind, ipSYN+ipTCP+ipTCP+2+handshake.Len2)
	if kind == wire.StreamSync {
		n.counts[from.index].syncs++
	}
	n.mu.Unlock()
	there := &lane{net: n, kind: kind, from: from, to: to, delay: delay, news: make(chan struct{}, 1)}
	back := &lane{net: n, kind: kind, from: to, to: from, delay: delay, news: make(chan struct{}, 1)}
	return &stream{in: back, out: there}, &stream{in: there, out: back}
}

// write queues b to arrive when the wire and TCP's slow start let it.
func (l *lane) write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	switch {
	case l.ended:
		return 0, net.ErrClosed
	case l.closed:
		return 0, io.ErrClosedPipe
	case expired(l.deadlines[1], now):
		return 0, os.ErrDeadlineExceeded
	}
	records := (len(b) + recordSize - 1) / recordSize
	size := len(b) + records*recordHead
	packets := (size + mss - 1) / mss
	l.account(uint64(size+packets*ipTCP), uint64((packets+1)/2*ipTCP))
	if l.written == 0 {
		l.began = now
	}
	l.written += float64(size)
	if l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(time.Duration(float64(size) / rate * float64(time.Second)))
	rounds := math.Floor(math.Log2(1 + l.written/window))
	slow := l.began.Add(time.Duration(rounds) * 2 * l.delay)
	at := l.free
	if slow.After(at) {
		at = slow
	}
	l.queue = append(l.queue, chunk{at.Add(l.delay), append([]byte(nil), b...)})
	l.tell()
	return len(b), nil
}

// account counts what is sent, and what the other side acknowledges with.
func (l *lane) account(there, back uint64) {
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	from, to := &l.net.counts[l.from.index], &l.net.counts[l.to.index]
	from.stream(l.kind, there)
	to.stream(l.kind, back)
	from.in += back
	to.in += there
}

func (l *lane) tell() {
	select {
	case l.news <- struct{}{}:
	default:
	}
}

func (l *lane) read(b []byte) (int, error) {
	for {
		n, wait, err := l.take(b)
		if n > 0 || err != nil {
			return n, err
		}
		timer := time.NewTimer(wait)
		select {
		case <-l.news:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// take takes what has arrived, or tells how long to wait for something.
func (l *lane) take(b []byte) (n int, wait time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	wait = time.Hour
	switch {
	case l.closed:
		return 0, 0, net.ErrClosed
	case expired(l.deadlines[0], now):
		return 0, 0, os.ErrDeadlineExceeded
	case len(l.queue) > 0 && !l.queue[0].at.After(now):
		first := &l.queue[0]
		n = copy(b, first.b)
		if first.b = first.b[n:]; len(first.b) == 0 {
			l.queue = l.queue[1:]
		}
		return n, 0, nil
	case len(l.queue) > 0:
		wait = l.queue[0].at.Sub(now)
	case l.ended && !l.endAt.After(now):
		return 0, 0, io.EOF
	case l.ended:
		wait = l.endAt.Sub(now)
	}
	if d := l.deadlines[0]; !d.IsZero() {
		wait = min(wait, d.Sub(now))
	}
	return 0, wait, nil
}

func expired(deadline, now time.Time) bool { return !deadline.IsZero() && !deadline.After(now) }

// finish ends the lane, from the writer's side.
func (l *lane) finish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return
	}
	l.ended, l.endAt = true, time.Now().Add(l.delay)
	if l.free.After(time.Now()) {
		l.endAt = l.free.Add(l.delay)
	}
	l.account(recordHead+2*ipTCP, ipTCP)
	l.tell()
}

// Read implements net.Conn.
func (s *stream) Read(b []byte) (int, error) { return s.in.read(b) }

// Write implements net.Conn.
func (s *stream) Write(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	return s.out.write(b)
}

// Close implements net.Conn.
func (s *stream) Close() error {
	s.out.finish()
	s.in.mu.Lock()
	defer s.in.mu.Unlock()
	s.in.closed, s.in.queue = true, nil
	s.in.tell()
	return nil
}

// SetDeadline implements net.Conn.
func (s *stream) SetDeadline(t time.Time) error {
	_ = s.SetReadDeadline(t)
	return s.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (s *stream) SetReadDeadline(t time.Time) error {
	s.in.mu.Lock()
	defer s.in.mu.Unlock()
	s.in.deadlines[0] = t
	s.in.tell()
	return nil
}

// SetWriteDeadline implements net.Conn.
func (s *stream) SetWriteDeadline(t time.Time) error {
	s.out.mu.Lock()
	defer s.out.mu.Unlock()
	s.out.deadlines[1] = t
	return nil
}

// LocalAddr implements net.Conn.
func (s *stream) LocalAddr() net.Addr { return &net.TCPAddr{} }

// RemoteAddr implements net.Conn.
func (s *stream) RemoteAddr() net.Addr { return &net.TCPAddr{} }
