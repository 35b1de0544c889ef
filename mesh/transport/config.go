package transport

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"runtime/debug"
	"time"

	"github.com/sirupsen/logrus"

	"weave/mesh/handshake"
	"weave/mesh/id"
	"weave/mesh/session"
	"weave/mesh/udp"
	"weave/mesh/wire"
)

// Frames takes what the tunnel carries. Both methods are called from one goroutine
// at a time and must not block; frame is valid until Receive returns.
type Frames interface {
	// Receive takes one frame, or a piece of a run. The counter is that of the
	// datagram it came in: it grows by one from datagram to datagram of a
	// session.
	Receive(from id.PeerID, counter uint64, h wire.FrameHeader, frame []byte)
	// Flush ends a batch.
	Flush()
}

// Conn is the socket; see udp.Conn for the contract.
type Conn interface {
	ReadBatch(trains []udp.Train) (int, error)
	Write(buf []byte, size int, to netip.AddrPort) error
	RouteMTU(to netip.AddrPort) int
	Shed(udp.Shed) error
	Close() error
}

// Config is what a Transport is made of. Callbacks that are nil are not
// called, and what they would have got is dropped.
type Config struct {
	Identity    id.Identity
	Password    []byte          // may be empty; not kept
	Keys        *handshake.Keys // what Derive makes of Password; nil: it is called
	Nickname    string
	Incarnation uint64         // larger than at each start before
	Listen      netip.AddrPort // UDP and TCP; port 0 takes a free one
	Advertise   netip.Addr     // underlay address that peers are told to use; may be zero
	Log         *logrus.Entry  // required

	// TCPPort is a further port for TCP, on which peers are tried as well; 0 for
	// none. Proxy is an HTTP proxy that streams go through where they do not get
	// through without; nil for none.
	TCPPort uint16
	Proxy   *url.URL

	// NoDiscovery has peers be looked for only where AddCandidates or Connect named
	// an address: not where they say that they are, or came from.
	NoDiscovery bool

	// Packet takes small items, of any kind but frames, pings and keepalives. It
	// is called from one goroutine at a time and must not block; body is valid
	// until it returns. It may come before the peer's PeerUp.
	Packet func(from id.PeerID, kind wire.Kind, body []byte)
	Frames Frames
	// Stream serves an inbound stream on a goroutine of its own. It owns c and
	// closes it, then or later; Run closes what is open when it ends, and waits
	// for Stream to return.
	Stream func(from id.PeerID, kind wire.StreamKind, c net.Conn)
	// PeerUp is told of each peer that has a session after it had none.
	PeerUp func(p id.PeerID)
	// Next names the peer to which what is for p is to be given, where there is
	// no direct way. It is called on the hot path.
	Next func(p id.PeerID) (next id.PeerID, ok bool)
	// Linked is told that Direct or Seen says something new.
	Linked func()

	// PingInterval is how often each peer is pinged; 0 means 5 s.
	PingInterval time.Duration

	tune tuning
}

// tuning holds what only tests set differently.
type tuning struct {
	noAES      bool
	limits     session.Limits
	minBackoff time.Duration
	maxBackoff time.Duration
	raiseFirst time.Duration
	wrapConn   func(Conn) Conn
	wrapTCP    func(net.Listener) net.Listener
}

// Bounds on what others can make us keep.
const (
	maxPeers         = 4096
	maxCandidates    = 8 // of one peer
	maxSessions      = 4 // of one peer
	maxQueued        = 32
	maxQueuedBytes   = 64 << 10
	maxPendings      = 256
	maxPendingsOfOne = 16 // of one address
	maxAttempts      = 2 * maxPeers
	maxRefusals      = 64
	maxJobs          = 256 // handshake messages waiting for control
	maxStreams       = 1024
	maxHalfOpen      = 128 // inbound streams in handshake
	maxHalfOpenOfOne = 16  // of one address
)

// Times. A lost peer is noticed when two pings and a bit stayed unanswered.
const (
	defaultPing      = 5 * time.Second
	handshakeTimeout = 5 * time.Second
	idleGrace        = 3 // ping intervals that a superseded session may be silent
	responderLag     = 10 * time.Second
	tableSize        = 1 << 15
)

// MaxBody is the largest body of an item that Send takes, in bytes.
const MaxBody = udp.MaxDatagram - wire.HeaderLen - wire.ItemHeaderLen - wire.TagLen

// Errors of Transport and Link, besides those of package handshake
// (ErrPassword, ErrVersion, ErrSelf, ErrPeer), which Connect and Dial wrap.
var (
	// ErrUnknownPeer: no candidate of that peer was ever given.
	ErrUnknownPeer = errors.New("unknown peer")
	// ErrNoCandidate: no address of that peer is known (any more).
	ErrNoCandidate = errors.New("no address of the peer is known")
	// ErrNoSession: there is no session with the peer now; one is being made.
	ErrNoSession = errors.New("no session with the peer")
	// ErrNoAnswer: nobody answered at that address.
	ErrNoAnswer = errors.New("no answer")
	// ErrTooBig: the item does not fit a datagram.
	ErrTooBig = errors.New("item too big for a datagram")
	// ErrQueueFull: too much waits for a session with the peer already.
	ErrQueueFull = errors.New("too much waits for a session")
	// ErrClosed: the transport was closed, or Run has ended.
	ErrClosed = errors.New("transport closed")
	// ErrBusy: as many peers or handshakes as we keep.
	ErrBusy = errors.New("too many peers or handshakes")
)

func (c *Config) complete() error {
	if err := c.hello(netip.AddrPort{}, 0).Check(); err != nil {
		return err
	}
	if len(c.Identity.Private) != id.KeySize {
		return fmt.Errorf("identity without a key")
	}
	if c.PingInterval <= 0 {
		c.PingInterval = defaultPing
	}
	if c.tune.limits == (session.Limits{}) {
		c.tune.limits = session.DefaultLimits()
	}
	if c.tune.minBackoff == 0 {
		c.tune.minBackoff = 250 * time.Millisecond
	}
	if c.tune.maxBackoff == 0 {
		c.tune.maxBackoff = 5 * time.Second
	}
	if c.tune.raiseFirst == 0 {
		c.tune.raiseFirst = raiseFirst
	}
	if c.Keys == nil {
		keys := handshake.Derive(c.Password)
		debug.FreeOSMemory() // Argon2id's 64 MiB, else held for minutes
		c.Keys = &keys
	}
	c.Password = nil
	return nil
}

// hello is what we say to a peer that we see at seen.
func (c *Config) hello(seen netip.AddrPort, port uint16) handshake.Hello {
	return handshake.Hello{
		Nickname:    c.Nickname,
		AES:         hasAES() && !c.tune.noAES,
		Incarnation: c.Incarnation,
		Port:        port,
		Advertise:   c.Advertise,
		Seen:        seen,
	}
}
