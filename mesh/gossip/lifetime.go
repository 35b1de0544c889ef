package gossip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"weave/mesh/id"
	"weave/mesh/wire"
)

// maxStreams bounds the streams of one kind that other peers hold open to us.
// It also bounds what memberlist can be made to allocate by false counts.
const maxStreams = 16

var (
	// ErrClosed is returned once Run has ended, or is about to.
	ErrClosed = fmt.Errorf("gossip: %w", net.ErrClosed)
	errBusy   = errors.New("gossip: too many streams")
)

// lifetime keeps all goroutines and streams that are started on the way, to
// end them and to wait for them.
type lifetime struct {
	ctx    context.Context // done at the end
	cancel context.CancelFunc
	wg     sync.WaitGroup // one for each goroutine, stream and dial

	mu    sync.Mutex
	ended bool
	conns map[*heldConn]struct{}
	taken map[wire.StreamKind]int // streams that others opened
}

func newLifetime() *lifetime {
	ctx, cancel := context.WithCancel(context.Background())
	return &lifetime{
		ctx: ctx, cancel: cancel,
		conns: map[*heldConn]struct{}{}, taken: map[wire.StreamKind]int{},
	}
}

// begin counts one more thing to wait for. The caller ends it by wg.Done.
func (l *lifetime) begin() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ended {
		l.wg.Add(1)
	}
	return !l.ended
}

// start runs f in a goroutine, unless the end has come. The context is done at
// the end.
func (l *lifetime) start(f func(context.Context)) bool {
	if !l.begin() {
		return false
	}
	go func() {
		defer l.wg.Done()
		f(l.ctx)
	}()
	return true
}

// end closes all streams, ends all goroutines and refuses new ones.
func (l *lifetime) end() {
	l.mu.Lock()
	l.ended = true
	conns := make([]*heldConn, 0, len(l.conns))
	for c := range l.conns {
		conns = append(conns, c)
	}
	l.mu.Unlock()
	l.cancel()
	for _, c := range conns {
		_ = c.Conn.Close() // its user sees that, and closes the heldConn
	}
}

// dial opens a stream to a peer.
func (l *lifetime) dial(carrier Carrier, to id.PeerID, kind wire.StreamKind, timeout time.Duration) (*heldConn, error) {
	if !l.begin() {
		return nil, ErrClosed
	}
	defer l.wg.Done()
	ctx, cancel := context.WithTimeout(l.ctx, timeout)
	defer cancel()
	c, err := carrier.Dial(ctx, to, kind)
	if err != nil {
		return nil, err
	}
	return l.hold(c, 0)
}

// hold takes a stream in, or closes it. The kind is 0 for those that we opened.
func (l *lifetime) hold(c net.Conn, kind wire.StreamKind) (*heldConn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var err error
	switch {
	case l.ended:
		err = ErrClosed
	case kind != 0 && l.taken[kind] >= maxStreams:
		err = errBusy
	}
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	l.taken[kind]++
	l.wg.Add(1)
	held := &heldConn{Conn: c, life: l, kind: kind, closed: make(chan struct{})}
	l.conns[held] = struct{}{}
	return held, nil
}

// heldConn is a stream that its lifetime knows of.
type heldConn struct {
	net.Conn
	life   *lifetime
	kind   wire.StreamKind
	once   sync.Once
	closed chan struct{}
}

// Close closes the stream, once.
func (c *heldConn) Close() error {
	err := net.ErrClosed
	c.once.Do(func() {
		err = c.Conn.Close()
		c.life.mu.Lock()
		delete(c.life.conns, c)
		c.life.taken[c.kind]--
		c.life.mu.Unlock()
		close(c.closed)
		c.life.wg.Done()
	})
	return err
}
