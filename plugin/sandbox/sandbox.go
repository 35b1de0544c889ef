// Package sandbox stands between the containers of a sandbox and Docker's
// resolver there: what they ask it comes to sockets of ours, and what we do not
// know is passed on to it. It enters network namespaces by their paths, and
// leaves nothing in them but sockets and one table of nftables. It also hides a
// device that is to be deleted.
//
// It does not know what is asked (see plugin/dns), whose sandbox it is, nor
// Docker's API. A sandbox in which Docker's resolver does not run is entered all
// the same: there nothing sends to its address.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Resolver is where Docker's resolver is asked in a sandbox of any network that
// a user defined, whatever families of addresses that has. Docker's own rules
// translate it to the port on which the resolver listens.
var Resolver = netip.MustParseAddrPort("127.0.0.11:53")

// Mark is the mark (SO_MARK) of our own sockets, "wvdn" in ASCII: by it the rules
// know what is to get through to Docker's resolver. A process of the sandbox that
// may set it as well gains Docker's answers, and nothing else.
const Mark = 0x7776646e

const maxPorts = 16 // tried, where others have the same ones for TCP

var (
	// ErrNotThere is returned by Open while a path leads to no network namespace.
	ErrNotThere = errors.New("no network namespace there yet")
	// ErrOwn is returned by Open for the namespace that the process runs in: the
	// host's names are not a container's.
	ErrOwn = errors.New("it is the host's own network namespace")
	// ErrHeld is returned by Open while the rules are those of another process
	// that runs.
	ErrHeld = errors.New("another process has its rules there")
)

// Sandbox is a network namespace whose resolver we stand before. Its methods may
// be called concurrently. As long as it is open, the namespace stays, whoever else
// leaves it.
type Sandbox struct {
	id  identity
	udp *net.UDPConn
	tcp *net.TCPListener

	closing context.Context // done once Close was called
	close   context.CancelFunc

	mu    sync.RWMutex // held for reading while ns is used
	ns    *namespace   // nil once closed
	rules *rules       // nil once removed
}

// Open enters the network namespace at path and leads to the new Sandbox what is
// asked there of Docker's resolver. Whatever an earlier process left behind is
// replaced. It takes CAP_SYS_ADMIN and CAP_NET_ADMIN in the user namespaces that
// own the namespace and that the process runs in.
//
// Where the kernel can (Linux 5.12), the rules are bound to the life of this
// process: if it is killed, Docker's resolver is asked again. On others, the rules
// of a killed process lead nowhere until the next Open.
func Open(path string) (*Sandbox, error) {
	s, err := open(path)
	if err != nil {
		return nil, fmt.Errorf("open sandbox %s: %w", path, err)
	}
	return s, nil
}

func open(path string) (*Sandbox, error) {
	ns, err := openNamespace(path)
	if err != nil {
		return nil, err
	}
	s := &Sandbox{id: ns.id, ns: ns}
	if err := ns.do(s.enter); err != nil {
		ns.close()
		return nil, err
	}
	s.closing, s.close = context.WithCancel(context.Background())
	return s, nil
}

// enter does what has to be done inside the namespace. The sockets are there
// before the rules that lead to them.
func (s *Sandbox) enter() (err error) {
	if err = raiseLoopback(); err != nil {
		return err
	}
	if s.udp, s.tcp, err = listen(); err != nil {
		return err
	}
	if s.rules, err = install(s.port()); err != nil {
		return errors.Join(err, s.udp.Close(), s.tcp.Close())
	}
	forgetFlows()
	return nil
}

// raiseLoopback sets lo up, by which it has its addresses: Docker may not have come
// to that yet. Where it has, nothing waits for the kernel's lock on all links of
// all namespaces.
func raiseLoopback() error {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(socket) }()
	lo, err := unix.NewIfreq("lo")
	if err == nil {
		err = unix.IoctlIfreq(socket, unix.SIOCGIFFLAGS, lo)
	}
	if err == nil && lo.Uint16()&unix.IFF_UP == 0 {
		lo.SetUint16(lo.Uint16() | unix.IFF_UP)
		err = unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, lo)
	}
	if err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// listen finds a port that is free for both protocols.
func listen() (*net.UDPConn, *net.TCPListener, error) {
	var err error
	for range maxPorts {
		var udp *net.UDPConn
		if udp, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(Resolver.Addr(), 0))); err != nil {
			return nil, nil, err
		}
		var tcp *net.TCPListener
		if tcp, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(udp.LocalAddr().(*net.UDPAddr).AddrPort())); err == nil {
			return udp, tcp, nil
		}
		_ = udp.Close()
		if !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	return nil, nil, err
}

func (s *Sandbox) port() uint16 { return s.udp.LocalAddr().(*net.UDPAddr).AddrPort().Port() }

// UDP returns the socket to which datagrams for Docker's resolver come. Answers
// are sent to where they came from. Closing it is Close's task, or that of who
// reads from it.
func (s *Sandbox) UDP() net.PacketConn { return s.udp }

// TCP returns the listener to which connections to Docker's resolver come. Closing
// it is Close's task, or that of who accepts them.
func (s *Sandbox) TCP() net.Listener { return s.tcp }

// Dial connects to Docker's resolver in the sandbox, past our own rules. The
// network is "udp" or "tcp". Where that resolver does not run, the connection is
// refused: with UDP it is the first read that fails. Connections that are open
// when Close is called stay so, and hold the namespace.
func (s *Sandbox) Dial(ctx context.Context, network string) (net.Conn, error) {
	kind, known := map[string]int{"udp": unix.SOCK_DGRAM, "tcp": unix.SOCK_STREAM}[network]
	if !known {
		return nil, net.UnknownNetworkError(network)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.closing, cancel)()
	file, err := s.socket(kind)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	if err := connect(ctx, file); err != nil {
		return nil, err
	}
	return net.FileConn(file) // has a descriptor of its own
}

// socket makes a marked socket in the namespace. It belongs there ever after, so no
// thread has to stay until it is connected: a container can have that take long, for
// as many connections as it likes.
func (s *Sandbox) socket(kind int) (file *os.File, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.ns == nil {
		return nil, net.ErrClosed
	}
	err = s.ns.do(func() error {
		fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		// Without the mark what it sends would come back to us, so it is not used then.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, Mark); err != nil {
			_ = unix.Close(fd)
			return os.NewSyscallError("setsockopt", err)
		}
		file = os.NewFile(uintptr(fd), "resolver")
		return nil
	})
	return file, err
}

// connect connects a socket to Docker's resolver.
func connect(ctx context.Context, file *os.File) error {
	defer context.AfterFunc(ctx, func() { _ = file.SetDeadline(time.Unix(1, 0)) })() // wakes it up
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var connected error
	waited := raw.Write(func(fd uintptr) bool { // until it is no longer under way
		connected = unix.Connect(int(fd), &unix.SockaddrInet4{Port: int(Resolver.Port()), Addr: Resolver.Addr().As4()})
		return connected != unix.EINPROGRESS && connected != unix.EALREADY
	})
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case waited != nil:
		return waited
	}
	return os.NewSyscallError("connect", connected)
}

// Close removes the rules, so that Docker's resolver is asked again, and closes
// the sockets. A sandbox that has ended meanwhile is no error, and Close can be
// repeated.
func (s *Sandbox) Close() error {
	s.close() // ends calls of Dial
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ns == nil {
		return nil
	}
	err := errors.Join(s.unhookLocked(), notClosed(s.udp.Close()), notClosed(s.tcp.Close()))
	_ = s.ns.do(func() error { forgetFlows(); return nil })
	s.ns.close()
	s.ns = nil
	if err != nil {
		return fmt.Errorf("close sandbox: %w", err)
	}
	return nil
}

// unhook removes the rules only: no new question comes, those that have come can
// still be answered.
func (s *Sandbox) unhook() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unhookLocked()
}

func (s *Sandbox) unhookLocked() error {
	if s.rules == nil {
		return nil
	}
	err := s.rules.remove()
	s.rules = nil
	return err
}

// flushed tells whether the rules were taken away by others.
func (s *Sandbox) flushed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rules != nil && s.rules.gone()
}

func notClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
