package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/cpu"

	"weave/mesh/handshake"
	"weave/mesh/id"
	"weave/mesh/session"
	"weave/mesh/udp"
	"weave/mesh/wire"
)

// Transport is one peer's end of all its sessions. Its methods are safe for
// concurrent use.
type Transport struct {
	// Set by New and never changed.
	cfg    Config
	keys   handshake.Keys
	log    *logrus.Entry
	epoch  time.Time // what nanoseconds in atomics count from
	conn   Conn
	tcp    []net.Listener // one, or one more for Config.TCPPort if it was free
	port   uint16
	closed chan struct{}
	closer sync.Once

	running   atomic.Bool
	relinked  atomic.Bool // a link came or went: for control to tell Config.Linked
	drops     drops
	links     atomic.Pointer[map[id.PeerID]*Link] // copied on each change
	jobs      chan job                            // handshake messages, for control
	wake      chan struct{}                       // buffered: tick now
	inbound   *inbound
	callbacks *callbacks
	// streamFirsts are the first messages of streams.
	streamFirsts streamFirsts
	calling      atomic.Int32 // streams that we open for others
	trains       sync.Pool    // of *relayTrain
	rooms        sync.Pool    // of *[]byte, for fragments
	relayed      relayedCounters
	passing      passing

	table table // see there

	receiver *receiver // set by New

	mu       sync.Mutex
	peers    map[id.PeerID]*peer
	attempts map[uint32]*attempt
	pendings pendings
	refusals refusals
	// tcpTrouble is why nobody listens on Config.TCPPort.
	tcpTrouble error
	ups        []id.PeerID   // for control to tell Config.PeerUp
	watching   int           // links that are watched closely
	probes     int           // of path MTUs, sent in this tick
	opening    int           // pipes that are being opened
	every      time.Duration // between control's ticks
}

// New binds the UDP and the TCP port, and Config.TCPPort if it can, and derives the keys from the password,
// which takes a tenth of a second. Nothing is read before Run. A Transport that
// is never Run must be closed.
func New(cfg Config) (*Transport, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("transport: %w", err)
	}
	conn, tcp, port, err := bind(cfg.Listen)
	if err != nil {
		return nil, err
	}
	if cfg.tune.wrapConn != nil {
		conn = cfg.tune.wrapConn(conn)
	}
	listeners := []net.Listener{tcp}
	further, trouble := cfg.listenFurther(port)
	if further != nil {
		listeners = append(listeners, further)
	}
	if cfg.tune.wrapTCP != nil {
		listeners[0] = cfg.tune.wrapTCP(tcp)
	}
	t := &Transport{
		cfg:       cfg,
		keys:      *cfg.Keys,
		log:       cfg.Log,
		epoch:     time.Now(),
		conn:      conn,
		tcp:       listeners,
		port:      port,
		closed:    make(chan struct{}),
		jobs:      make(chan job, maxJobs),
		wake:      make(chan struct{}, 1),
		inbound:   newInbound(),
		callbacks: newCallbacks(),
		peers:     map[id.PeerID]*peer{},
		attempts:  map[uint32]*attempt{},
		pendings:  newPendings(),
		refusals:  refusals{},

		tcpTrouble: trouble,
	}
	t.links.Store(&map[id.PeerID]*Link{})
	t.receiver = newReceiver(t)
	t.trains.New = func() any { return newRelayTrain() }
	t.rooms.New = newRoom
	return t, nil
}

// bind takes the same port of UDP and TCP. With port 0 the one that UDP gets
// may be taken for TCP: then it tries others.
func bind(addr netip.AddrPort) (Conn, net.Listener, uint16, error) {
	for tries := 1; ; tries++ {
		conn, err := udp.Listen(addr, udp.Options{})
		if err != nil {
			return nil, nil, 0, err
		}
		port := conn.LocalAddr().Port()
		tcp, err := listenTCP(addr.Addr(), port)
		if err == nil {
			return conn, tcp, port, nil
		}
		err = errors.Join(err, conn.Close())
		if addr.Port() != 0 || tries == 10 {
			return nil, nil, 0, err
		}
	}
}

func listenTCP(addr netip.Addr, port uint16) (net.Listener, error) {
	hostport := net.JoinHostPort(addr.String(), strconv.Itoa(int(port)))
	lc := net.ListenConfig{Control: shortSegments}
	lc.SetMultipathTCP(false) // its sockets know no MSS
	l, err := lc.Listen(context.Background(), "tcp", hostport)
	if err != nil {
		return nil, fmt.Errorf("listen on tcp %s: %w", hostport, err)
	}
	return l, nil
}

// Port returns the port, of UDP and of TCP.
func (t *Transport) Port() uint16 { return t.port }

// Subkey makes a key from the password for a purpose that is not the transport's.
func (t *Transport) Subkey(purpose string) [32]byte { return t.keys.Subkey(purpose) }

// Run works until ctx ends, or a socket fails; it returns nil for the former.
// It closes the sockets and the inbound streams and waits for all goroutines.
// It can be called once.
func (t *Transport) Run(ctx context.Context) error {
	if !t.running.CompareAndSwap(false, true) {
		return errors.New("transport: Run called twice")
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return t.receive(gctx) })
	for _, l := range t.tcp {
		g.Go(func() error { return t.accept(gctx, l) })
	}
	if t.TCPTrouble() != nil {
		g.Go(func() error { return t.acceptLate(gctx, g) })
	}
	g.Go(func() error { t.control(gctx); return nil })
	g.Go(func() error {
		select {
		case <-gctx.Done():
		case <-t.closed:
		}
		return t.Close()
	})
	err := g.Wait()
	t.inbound.wait()
	return err
}

// Close closes the sockets and the inbound streams, so that Run ends. Streams
// made by Dial stay their callers' to close.
func (t *Transport) Close() error {
	var err error
	t.closer.Do(func() {
		close(t.closed)
		err = t.conn.Close()
		for _, l := range t.tcp {
			err = errors.Join(err, l.Close())
		}
		t.inbound.close()
	})
	return err
}

// tickInterval is how exactly deadlines are kept while a handshake is under way;
// else a tenth of the time between pings will do.
const tickInterval = 50 * time.Millisecond

// control works on handshake messages and deadlines.
func (t *Transport) control(ctx context.Context) {
	ticker := time.NewTicker(tickInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.closed:
			return
		case j := <-t.jobs:
			t.handshake(j)
		case <-t.wake:
			t.tick(time.Now())
		case <-ticker.C:
			t.tick(time.Now())
		}
		t.receiver.unshed(time.Now())
		t.announce()
		t.pace(ticker)
	}
}

// pace sets the time between ticks. A ticker that is left alone goes on whatever
// else comes.
func (t *Transport) pace(ticker *time.Ticker) {
	t.mu.Lock()
	defer t.mu.Unlock()
	every := tickInterval
	if len(t.attempts) == 0 {
		every = max(tickInterval, t.cfg.PingInterval/10)
		if t.watching > 0 {
			every = min(every, watchInterval/2)
		}
	}
	if every != t.every {
		t.every = every
		ticker.Reset(every)
	}
}

// kick makes control tick soon.
func (t *Transport) kick() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// announce calls Linked and PeerUp, with no lock held.
func (t *Transport) announce() {
	t.mu.Lock()
	ups := t.ups
	t.ups = nil
	t.mu.Unlock()
	if t.relinked.Swap(false) && t.cfg.Linked != nil {
		t.cfg.Linked()
	}
	for _, p := range ups {
		t.log.WithField("peer", p.Short()).Info("session with peer is up")
		if t.cfg.PeerUp != nil {
			t.cfg.PeerUp(p)
		}
	}
}

// job is a handshake message as it came; its MAC is right, or it is a
// rejection, which has none.
type job struct {
	header wire.Header
	msg    []byte
	from   hop
}

func (t *Transport) handshake(j job) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	switch j.header.Type {
	case wire.TypeHandshake1:
		t.handle1(j, now)
	case wire.TypeHandshake2:
		t.handle2(j, now)
	case wire.TypeHandshake3:
		t.handle3(j, now)
	}
}

// newEntry makes a session of what a handshake gave, whose keys it wipes; the
// caller has mu and has reserved index.
func (t *Transport) newEntry(p *peer, index uint32, res *handshake.Result, initiator bool, now time.Time) (*entry, error) {
	limits := t.cfg.tune.limits
	if !initiator { // one side is to begin, normally
		limits.RekeyAge += responderLag
		limits.RekeyMessages += limits.RekeyMessages / 2
	}
	s, err := session.New(session.Params{
		Send: res.Send, Receive: res.Receive, AES: res.AES,
		Index: res.Index, Established: now, Limits: limits,
	})
	clear(res.Send[:])
	clear(res.Receive[:])
	if err != nil {
		return nil, err
	}
	e := &entry{index: index, session: s, link: &p.Link, hello: res.Hello, aes: res.AES}
	e.heard.Store(t.since(now))
	return e, nil
}

// since is now in the form that atomics keep.
func (t *Transport) since(now time.Time) int64 { return int64(now.Sub(t.epoch)) }

// write sends one handshake datagram; a failure is as good as a loss.
func (t *Transport) write(b []byte, to hop) error {
	err := t.send(b, len(b), to)
	if err != nil {
		t.drops.add(dropSend)
	}
	return err
}

// hasAES reports whether the CPU makes AES-GCM the faster cipher.
func hasAES() bool {
	switch runtime.GOARCH {
	case "amd64":
		return cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ
	case "arm64":
		return cpu.ARM64.HasAES && cpu.ARM64.HasPMULL
	case "s390x":
		return cpu.S390X.HasAESGCM
	}
	return false
}
