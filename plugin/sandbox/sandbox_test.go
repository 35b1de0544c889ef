package sandbox

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func passTo(s *Sandbox) func(network, question string) (string, error) {
	return func(network, question string) (string, error) {
		c, err := s.Dial(context.Background(), network)
		if err != nil {
			return "", err
		}
		defer func() { _ = c.Close() }()
		return ask(c, question)
	}
}

// TestRedirect: what is asked of Docker's resolver comes to us, and what we ask
// goes to it, whatever Docker's own rules are made with; also when they are made
// after ours. In a room there are no addresses but those of lo, as on networks of
// IPv6 alone.
func TestRedirect(t *testing.T) {
	for _, iptables := range []string{"iptables-nft", "iptables-legacy"} {
		for _, first := range []string{"docker", "weave"} {
			t.Run(iptables+", first "+first, func(t *testing.T) {
				t.Parallel()
				r := newRoom(t)
				if first == "docker" {
					r.docker(iptables)
					r.expect("web", "docker: web")
				}
				s := r.open()
				answer(t, "weave", s.UDP(), s.TCP(), passTo(s))
				if first == "weave" {
					r.docker(iptables)
				}
				r.expect("web", "weave: web")
				r.expect("pass on", "docker: pass on")
				must(t, s.Close())
				r.expect("web", "docker: web")
			})
		}
	}
}

// TestOldSockets: programs that keep their socket are led along, too.
func TestOldSockets(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	r.docker("iptables-nft")
	c := r.dial("udp")
	expect := func(want string) {
		t.Helper()
		if got, err := ask(c, "web"); err != nil || got != want+": web" {
			t.Errorf("answered %q, %v; want it by %s", got, err, want)
		}
	}
	expect("docker")
	for range 2 {
		s := r.open()
		answer(t, "weave", s.UDP(), s.TCP(), nil)
		expect("weave")
		must(t, s.Close())
		expect("docker")
	}
}

// TestKilled: a killed process leaves Docker's resolver as it was, and no trace
// however often it happens.
func TestKilled(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	r.docker("iptables-nft")
	for range 20 {
		c := startChild(t, r.path())
		if tables, rules := r.tables(); tables != 1 || rules != 2 {
			t.Errorf("%d tables, %d rules; it said %q", tables, rules, c.said)
		}
		c.kill()
		r.expect("web", "docker: web")
	}
	if tables, _ := r.tables(); tables != 0 {
		t.Errorf("%d tables are left", tables)
	}
}

// TestLeftBehind: rules that did not end with their process are replaced.
func TestLeftBehind(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	r.docker("iptables-nft")
	for port := range uint16(20) {
		r.in(func() error {
			left, err := installAs(0, 1000+port)
			if err != nil {
				return err
			}
			return left.conn.CloseLasting()
		})
	}
	s := r.open()
	answer(t, "weave", s.UDP(), s.TCP(), nil)
	if tables, rules := r.tables(); tables != 1 || rules != 2 {
		t.Errorf("%d tables, %d rules", tables, rules)
	}
	r.expect("web", "weave: web")
}

// TestOldKernel: without owned tables, rules are removed by Close, and it is seen that
// a container takes them away.
func TestOldKernel(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	r.docker("iptables-nft")
	s := r.open()
	r.in(func() (err error) {
		if err = s.rules.remove(); err == nil {
			s.rules, err = installAs(0, s.port())
		}
		return err
	})
	answer(t, "weave", s.UDP(), s.TCP(), nil)
	r.expect("web", "weave: web")
	if s.flushed() {
		t.Error("rules that are there are missed")
	}
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	for _, command := range []string{"nft flush chain ip " + tableName + " output", "nft delete table ip " + tableName} {
		r.run(command)
		if _, err := watch(ctx, s, r.path(), nil); !errors.Is(err, errFlushed) {
			t.Errorf("after %s: %v", command, err)
		}
	}
	must(t, s.Close())
	r.expect("web", "docker: web")
}

// TestClose: nothing is left, and the namespace can end. It is repeated, and while
// it is open nobody else has its rules.
func TestClose(t *testing.T) {
	t.Parallel()
	outside, inside := newRoom(t), newRoom(t)
	outside.in(func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "out"}, PeerName: "in", PeerNamespace: netlink.NsFd(inside.handle),
		})
	})
	s := inside.open()
	if again, err := Open(inside.path()); !errors.Is(err, ErrHeld) {
		t.Errorf("opened twice: %v, %v", again, err)
	}
	must(t, s.Close())
	must(t, s.Close())
	if text := inside.run("nft list ruleset"); text != "" {
		t.Errorf("left: %s", text)
	}
	if _, err := s.Dial(context.Background(), "udp"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("dial a closed sandbox: %v", err)
	}
	if _, _, err := s.UDP().ReadFrom(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read from a closed sandbox: %v", err)
	}
	s = inside.open() // nobody else is in the namespace when it is closed
	must(t, inside.handle.Close())
	must(t, s.Close())
	eventually(t, "the namespace ends, and its link with it", func() bool {
		err := outside.do(func() error { _, err := netlink.LinkByName("out"); return err })
		return errors.As(err, &netlink.LinkNotFoundError{})
	})
}

// TestCloseEndsDial: a resolver that takes no connection does not hold up Close, nor
// threads.
func TestCloseEndsDial(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	s := r.open()
	r.run("iptables-nft -A INPUT -p tcp --dport 53 -j DROP")
	const count = 50
	ended := make(chan error, count)
	for range count {
		go func() {
			_, err := s.Dial(context.Background(), "tcp")
			ended <- err
		}()
	}
	eventually(t, "all connect", func() bool {
		var text []byte
		r.in(func() (err error) { text, err = os.ReadFile("/proc/thread-self/net/tcp"); return err })
		return strings.Count(string(text), " 0B00007F:0035 02 ") == count // SYN_SENT
	})
	r.isEmpty()
	must(t, s.Close())
	for range count {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Dial returned %v", err)
		}
	}
}

// TestRulesAreHeld: a container that may change its own network does not take the rules
// away, where the kernel has owned tables, and what it adds is its own affair.
func TestRulesAreHeld(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	r.docker("iptables-nft")
	s := r.open()
	answer(t, "weave", s.UDP(), s.TCP(), nil)
	for command, refused := range map[string]bool{
		"nft delete table ip " + tableName: true, "nft flush chain ip " + tableName + " output": true,
		"nft add rule ip " + tableName + " output drop": true, "nft flush ruleset": false, // of all but ours
	} {
		if out, err := r.try(command); (err != nil) != refused {
			t.Errorf("%s: %v\n%s", command, err, out)
		}
		if got, err := ask(r.dial("udp"), "web"); err != nil || got != "weave: web" {
			t.Errorf("after %q: %q, %v", command, got, err)
		}
	}
}

func TestNoResolver(t *testing.T) {
	t.Parallel()
	s := newRoom(t).open()
	if _, err := s.Dial(context.Background(), "tcp"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("TCP: %v", err)
	}
	c, err := s.Dial(context.Background(), "udp")
	must(t, err)
	defer func() { _ = c.Close() }()
	if got, err := ask(c, "anybody"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("UDP: %q, %v", got, err)
	}
	if _, err := s.Dial(context.Background(), "unix"); !errors.As(err, new(net.UnknownNetworkError)) {
		t.Errorf("a network that is none: %v", err)
	}
}

// TestUserNamespace: as with Docker's userns-remap, the namespace is owned by a
// user namespace of its own.
func TestUserNamespace(t *testing.T) {
	t.Parallel()
	needRoot(t)
	cmd := exec.Command("cat")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 1}},
	}
	in, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	handle, err := netns.GetFromPid(cmd.Process.Pid)
	must(t, err)
	t.Cleanup(func() { _ = handle.Close() })
	r := &room{t: t, namespace: namespace{handle: handle}}
	r.docker("iptables-nft")
	s := r.open()
	answer(t, "weave", s.UDP(), s.TCP(), passTo(s))
	r.expect("web", "weave: web")
	r.expect("pass on", "docker: pass on")
}

// tryOpen leaves nothing open, also when it succeeds.
func tryOpen(path string) error {
	s, err := Open(path)
	if err == nil {
		err = s.Close()
	}
	return err
}

func TestNotThere(t *testing.T) {
	t.Parallel()
	needRoot(t)
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	for path, want := range map[string]error{
		file:                       ErrNotThere,
		file + "2":                 ErrNotThere,
		"/proc/thread-self/ns/net": ErrOwn,
	} {
		if err := tryOpen(path); !errors.Is(err, want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
	if tryOpen("/proc/thread-self/ns/uts") == nil {
		t.Error("a namespace of another kind was opened")
	}
}

// TestThreadsComeHome: none stays in a sandbox, whatever was done there.
func TestThreadsComeHome(t *testing.T) {
	r := newRoom(t)
	s := r.open()
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			for _, network := range []string{"udp", "tcp"} {
				if c, err := s.Dial(context.Background(), network); err == nil {
					_ = c.Close()
				}
			}
		})
	}
	all.Wait()
	must(t, s.Close())
	r.isEmpty()
}

// TestThreadIsThrownAway: one that cannot come home ends.
func TestThreadIsThrownAway(t *testing.T) {
	r := newRoom(t)
	must(t, r.do(func() error {
		var none [2]unix.CapUserData // each thread has capabilities of its own
		return unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0])
	}))
	r.isEmpty()
}

// BenchmarkOpen tells what each container costs at start and end.
func BenchmarkOpen(b *testing.B) {
	r := newRoom(b)
	for b.Loop() {
		s, err := Open(r.path())
		must(b, err)
		must(b, s.Close())
	}
}

// BenchmarkDial tells what passing a question on costs, besides the answer.
func BenchmarkDial(b *testing.B) {
	s := newRoom(b).open()
	for b.Loop() {
		c, err := s.Dial(context.Background(), "udp")
		must(b, err)
		_ = c.Close()
	}
}
