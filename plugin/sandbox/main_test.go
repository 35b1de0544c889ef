package sandbox

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// holdPath has the test binary be another process that opens the sandbox there,
// until it is killed.
const holdPath = "WEAVE_TEST_HOLD_SANDBOX"

func TestMain(m *testing.M) {
	if path := os.Getenv(holdPath); path != "" {
		hold(path)
	}
	goleak.VerifyTestMain(m)
}

func hold(path string) {
	s, err := Open(path)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(s.port())
	_, _ = io.Copy(io.Discard, os.Stdin) // ends with the parent, if not before
	os.Exit(0)
}

const soon = 20 * time.Second // for what must come

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("WEAVE_REQUIRE_ROOT") == "1" {
		t.Fatal("this test must run as root")
	}
	t.Skip("needs root")
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(soon); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", soon, what)
		}
	}
}

// room is a network namespace for a test, as fresh as Docker's are.
type room struct {
	t testing.TB
	namespace
}

func newRoom(t testing.TB) *room {
	t.Helper()
	needRoot(t)
	var handle netns.NsHandle
	must(t, onOwnThread(func() (err error) { handle, err = netns.New(); return err }))
	r := &room{t: t, namespace: namespace{handle: handle}}
	must(t, r.identify())
	t.Cleanup(func() { _ = r.handle.Close() })
	return r
}

// onOwnThread runs f on a thread that ends with it. The main thread would not.
func onOwnThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			err := onOwnThread(f) // elsewhere, while this thread is held
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// path leads to the room while the test runs.
func (r *room) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), r.handle) }

// in runs f in the room.
func (r *room) in(f func() error) {
	r.t.Helper()
	must(r.t, r.do(f))
}

// run runs a command in the room.
func (r *room) run(command string) string {
	r.t.Helper()
	out, err := r.try(command)
	must(r.t, err)
	return out
}

// try runs a command that may fail.
func (r *room) try(command string) (string, error) {
	r.t.Helper()
	args := strings.Fields(command)
	program, err := exec.LookPath(args[0])
	if err != nil {
		program, err = exec.LookPath(filepath.Join("/usr/sbin", args[0]))
	}
	if err != nil {
		if os.Getenv("WEAVE_REQUIRE_ROOT") == "1" {
			r.t.Fatal(err)
		}
		r.t.Skipf("needs %s", args[0])
	}
	var out []byte
	err = r.do(func() (err error) {
		out, err = exec.Command(program, args[1:]...).CombinedOutput()
		return err
	})
	return string(out), err
}

func (r *room) open() *Sandbox {
	r.t.Helper()
	s, err := Open(r.path())
	must(r.t, err)
	r.t.Cleanup(func() { must(r.t, s.Close()) })
	return s
}

// tables returns how many tables and rules of ours are in the room.
func (r *room) tables() (tables, rules int) {
	r.t.Helper()
	text := r.run("nft list ruleset")
	return strings.Count(text, "table ip "+tableName), strings.Count(text, `comment "weave: `)
}

// isEmpty waits until none of our threads is in the room.
func (r *room) isEmpty() {
	r.t.Helper()
	eventually(r.t, "no thread is in the room", func() bool {
		threads, err := filepath.Glob("/proc/self/task/*/ns/net")
		must(r.t, err)
		return !slices.ContainsFunc(threads, r.id.at)
	})
}

// docker stands for Docker in a room: a resolver, and its rules by an iptables.
func (r *room) docker(iptables string) {
	r.t.Helper()
	r.in(raiseLoopback)
	var udp *net.UDPConn
	var tcp *net.TCPListener
	r.in(func() (err error) { udp, tcp, err = listen(); return err })
	answer(r.t, "docker", udp, tcp, nil)
	port := udp.LocalAddr().(*net.UDPAddr).Port
	r.run(iptables + " -t nat -N DOCKER_OUTPUT")
	r.run(iptables + " -t nat -A OUTPUT -d 127.0.0.11 -j DOCKER_OUTPUT")
	for _, protocol := range []string{"tcp", "udp"} {
		r.run(fmt.Sprintf("%s -t nat -A DOCKER_OUTPUT -d 127.0.0.11 -p %s --dport 53 -j DNAT --to-destination 127.0.0.11:%d", iptables, protocol, port))
	}
}

// answer answers each question with the answerer's name before it, or has upstream
// answer if the question begins with "pass". It closes the sockets when the test
// ends.
func answer(t testing.TB, name string, udp net.PacketConn, tcp net.Listener, upstream func(network, question string) (string, error)) {
	reply := func(network, question string) string {
		if upstream == nil || !strings.HasPrefix(question, "pass") {
			return name + ": " + question
		}
		text, err := upstream(network, question)
		if err != nil {
			return err.Error()
		}
		return text
	}
	ended := make(chan struct{}, 2)
	go func() {
		defer func() { ended <- struct{}{} }()
		buf := make([]byte, 512)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = udp.WriteTo([]byte(reply("udp", string(buf[:n]))), from)
		}
	}()
	go func() {
		defer func() { ended <- struct{}{} }()
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(soon))
			question, _ := io.ReadAll(c)
			_, _ = io.WriteString(c, reply("tcp", string(question)))
			_ = c.Close()
		}
	}()
	t.Cleanup(func() {
		_ = udp.Close()
		_ = tcp.Close()
		<-ended
		<-ended
	})
}

// ask sends a question on a connection and returns the answer.
func ask(c net.Conn, question string) (string, error) { return askFor(soon, c, question) }

func askFor(limit time.Duration, c net.Conn, question string) (string, error) {
	_ = c.SetDeadline(time.Now().Add(limit))
	if _, err := io.WriteString(c, question); err != nil {
		return "", err
	}
	if stream, ok := c.(*net.TCPConn); ok {
		if err := stream.CloseWrite(); err != nil {
			return "", err
		}
		text, err := io.ReadAll(c)
		return string(text), err
	}
	buf := make([]byte, 512)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}

// dial connects a program of the room to the resolver.
func (r *room) dial(network string) net.Conn {
	r.t.Helper()
	var c net.Conn
	r.in(func() (err error) { c, err = net.Dial(network, Resolver.String()); return err })
	r.t.Cleanup(func() { _ = c.Close() })
	return c
}

// expect asks by UDP and by TCP.
func (r *room) expect(question, want string) {
	r.t.Helper()
	for _, network := range []string{"udp", "tcp"} {
		if got, err := ask(r.dial(network), question); err != nil || got != want {
			r.t.Errorf("%s: answered %q, %v; want %q", network, got, err, want)
		}
	}
}

// child is another process that holds a sandbox.
type child struct {
	*exec.Cmd
	said string
}

func startChild(t *testing.T, path string) child {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.Env = append(os.Environ(), holdPath+"="+path)
	_, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	line := make([]byte, 512)
	n, err := out.Read(line)
	must(t, err)
	return child{cmd, strings.TrimSpace(string(line[:n]))}
}

func (c child) kill() {
	_ = c.Process.Kill()
	_ = c.Wait()
}
