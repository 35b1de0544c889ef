package dns

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// maxPassed and maxConns are how many questions of one door are with others at
	// a time, and how many connections it has.
	maxPassed, maxConns = 256, 64
	// passTime is how long others may take to answer: longer than askers wait.
	passTime = 10 * time.Second
	// idleTime is how long a connection may be silent (RFC 7766, 6.2.3).
	idleTime = 10 * time.Second
)

// Config is what a Server works with.
type Config struct {
	Table  *Table
	Domain string        // under which names are known, too, as in NAME.weave.local
	TTL    time.Duration // of answers, in whole seconds
}

// Server answers questions that come in by doors. Its methods are safe for
// concurrent use.
type Server struct {
	cfg    Config
	domain string
	ttl    uint32
	turns  atomic.Uint64
	counts struct{ answered, passed, failed, dropped atomic.Uint64 }
}

// New makes a Server.
func New(cfg Config) *Server {
	return &Server{cfg: cfg, domain: strings.ToLower(strings.Trim(cfg.Domain, ".")), ttl: uint32(cfg.TTL / time.Second)}
}

// Counts are what became of questions.
type Counts struct {
	Answered uint64 // by the table
	Passed   uint64 // to others, and answered by them
	Failed   uint64 // others did not answer, or cannot be asked
	Dropped  uint64 // no question, or one too many at a time
}

// Counts returns the sums since the start.
func (s *Server) Counts() Counts {
	c := &s.counts
	return Counts{c.answered.Load(), c.passed.Load(), c.failed.Load(), c.dropped.Load()}
}

// Door is a place where questions come in. Serve closes its sockets.
type Door struct {
	UDP net.PacketConn
	TCP net.Listener
	// Scopes are the segments that askers may see; it is called for each question.
	Scopes func() []Scope
	// Upstream connects to who is asked what the table does not know, by "udp" or
	// "tcp". If it is nil, such questions are refused.
	Upstream func(ctx context.Context, network string) (net.Conn, error)
}

// door is an open one.
type door struct {
	*Server
	Door
	passing chan struct{}
	conns   chan struct{}
	tasks   sync.WaitGroup
}

// Serve answers what comes in by a door until ctx is done, or until the sockets
// fail, of which it returns the error. Nothing of it is left then.
func (s *Server) Serve(ctx context.Context, d Door) error {
	o := &door{Server: s, Door: d, passing: make(chan struct{}, maxPassed), conns: make(chan struct{}, maxConns)}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var loops sync.WaitGroup
	failures := make(chan error, 2)
	for _, loop := range []func(context.Context) error{o.datagrams, o.connections} {
		loops.Go(func() {
			failures <- loop(ctx)
			cancel() // one does not go on without the other
		})
	}
	<-ctx.Done()
	closed := errors.Join(d.UDP.Close(), d.TCP.Close())
	loops.Wait()
	o.tasks.Wait()
	for range cap(failures) {
		if err := <-failures; !errors.Is(err, net.ErrClosed) {
			closed = errors.Join(closed, err)
		}
	}
	return closed
}

// datagrams answers one after another what the table knows, which takes
// microseconds.
func (o *door) datagrams(ctx context.Context) error {
	in, out := make([]byte, usualSize+1), make([]byte, 0, usualSize)
	for {
		n, from, err := o.UDP.ReadFrom(in)
		if err != nil {
			if temporary(err) {
				continue
			}
			return err
		}
		if n > usualSize { // longer than any question, and cut
			o.counts.dropped.Add(1)
			continue
		}
		reply, pass := o.reply(out, in[:n], false)
		switch {
		case pass != nil:
			msg := append([]byte(nil), in[:n]...)
			o.pass(func() {
				if answer := o.ask(ctx, "udp", msg, *pass); answer != nil {
					_, _ = o.UDP.WriteTo(answer, from)
				}
			})
		case len(reply) > 0:
			_, _ = o.UDP.WriteTo(reply, from) // one that is not taken is lost, as any datagram
		}
	}
}

// temporary tells of errors of a socket that say nothing about its next use, as
// when an answer before went to a closed port.
func temporary(err error) bool {
	return !errors.Is(err, net.ErrClosed) && isRefused(err)
}

// pass runs f unless too many run.
func (o *door) pass(f func()) {
	select {
	case o.passing <- struct{}{}:
		o.tasks.Go(func() {
			defer func() { <-o.passing }()
			f()
		})
	default:
		o.counts.dropped.Add(1)
	}
}

// reply appends the answer to a message. If others are to be asked, it returns
// the question instead.
func (o *door) reply(out, msg []byte, byTCP bool) (reply []byte, pass *question) {
	q, isQuery, whole := parse(msg)
	if !isQuery {
		o.counts.dropped.Add(1)
		return nil, nil
	}
	limit := min(q.size(), ownUDP)
	if byTCP {
		limit = maxMessage
	}
	if whole {
		if a, known := o.find(q, o.Scopes()); known {
			o.counts.answered.Add(1)
			if q.edns != nil && q.edns.version > 0 {
				a = answer{code: badVersion}
			}
			return o.write(out, q, a, limit), nil
		}
	}
	if o.Upstream != nil {
		return nil, &q
	}
	o.counts.failed.Add(1)
	if !whole {
		return o.refusal(out, question{header: q.header}, dnsmessage.RCodeFormatError), nil
	}
	return o.refusal(out, q, dnsmessage.RCodeRefused), nil
}

// badVersion: the asker speaks a newer EDNS (RFC 6891, 6.1.3).
const badVersion dnsmessage.RCode = 16

// ask has others answer a message, byte for byte, or says that they cannot.
// Without an answer in time there is none: who asked has long given up.
func (o *door) ask(ctx context.Context, network string, msg []byte, q question) []byte {
	ctx, cancel := context.WithTimeout(ctx, passTime)
	defer cancel()
	answer, err := o.exchange(ctx, network, msg, max(q.size(), usualSize))
	if err == nil {
		o.counts.passed.Add(1)
		return answer
	}
	o.counts.failed.Add(1)
	if ctx.Err() != nil {
		return nil
	}
	return o.refusal(nil, q, dnsmessage.RCodeServerFailure)
}

// usualSize is the longest message by UDP that is common (RFC 6891, 6.2.5). There
// is a door for each container: room for the longest would be 128 KB for each.
const usualSize = 4096

// exchange sends a message and returns what comes back, of size bytes at most by UDP.
func (o *door) exchange(ctx context.Context, network string, msg []byte, size int) ([]byte, error) {
	c, err := o.Upstream(ctx, network)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) }) // wakes it up
	defer func() {
		stop()
		_ = c.Close()
	}()
	if network == "tcp" {
		if err := writeMessage(c, msg); err != nil {
			return nil, err
		}
		return readMessage(c, nil)
	}
	if _, err := c.Write(msg); err != nil {
		return nil, err
	}
	buf := make([]byte, size)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return nil, err
		}
		if answers(buf[:n], msg) {
			return buf[:n:n], nil
		}
	}
}

// answers tells whether a datagram may be the answer to a message: it has its ID.
func answers(d, msg []byte) bool {
	return len(d) >= headerLen && d[0] == msg[0] && d[1] == msg[1] && d[2]&0x80 != 0
}
