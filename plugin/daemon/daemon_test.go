package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weave/plugin/control"
	"weave/plugin/sock"
	"weave/plugin/store"
)

// takesPort in the environment names a port that the process keeps taken until
// it gets SIGUSR1.
const takesPort = "WEAVE_TEST_TAKE_PORT"

func takePort(addr string) (free func(), err error) {
	if addr == "" {
		return func() {}, nil
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	told := make(chan os.Signal, 1)
	signal.Notify(told, unix.SIGUSR1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		<-told
		_ = l.Close()
	}()
	return sync.OnceFunc(func() {
		signal.Stop(told)
		close(told)
		<-ended
	}), nil
}

// plugin is the whole daemon, in a process with mount and network namespaces of
// its own. It has no Docker Engine.
type plugin struct {
	t       *testing.T
	dir     string // its state and its /run
	env     []string
	cmd     *exec.Cmd
	log     *bytes.Buffer // not to be read before it has ended
	ended   chan error
	control *control.Client
}

func newPlugin(t *testing.T, env ...string) *plugin {
	t.Helper()
	needRoot(t)
	dir, err := os.MkdirTemp("", "weave") // t.TempDir is too long for a socket's path
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	p := &plugin{t: t, dir: dir, control: control.NewClient(filepath.Join(dir, "run/weave/weave.sock"))}
	p.env = append(os.Environ(), asDaemon+"=1", "WEAVE_STATE="+dir+"/state", "WEAVE_RUN="+dir+"/run",
		"WEAVE_NICKNAME=left", "WEAVE_PASSWORD=secret", "WEAVE_PEERS=")
	p.env = append(p.env, env...)
	return p
}

// start starts it, and waits until both sockets answer.
func (p *plugin) start() *plugin {
	p.t.Helper()
	p.cmd, p.log, p.ended = exec.Command("/proc/self/exe"), &bytes.Buffer{}, make(chan error, 1)
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = p.env, p.log, p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // Pdeathsig goes by the thread
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.ended <- p.cmd.Wait()
		}
	}()
	must(p.t, <-started)
	stop := sync.OnceFunc(func() { p.end(unix.SIGTERM, true) })
	p.t.Cleanup(stop)
	p.cmd.Cancel = func() error { stop(); return nil }
	await(p.t, "the control socket to answer", func() bool {
		_, err := p.control.Status(context.Background())
		return err == nil
	})
	await(p.t, "the plugin socket to answer", func() bool {
		c, err := net.Dial("unix", filepath.Join(p.dir, "run/docker/plugins/weave.sock"))
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	return p
}

// stop ends it, and holds that it ends well and soon.
func (p *plugin) stop() { _ = p.cmd.Cancel() }

func (p *plugin) end(how syscall.Signal, well bool) {
	p.t.Helper()
	_ = p.cmd.Process.Signal(how)
	select {
	case err := <-p.ended:
		if well && err != nil {
			p.t.Errorf("the plugin ended: %v", err)
		}
	case <-time.After(wait):
		p.t.Error("the plugin does not end")
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
	if p.t.Failed() {
		p.t.Logf("the plugin's log:\n%s", p.log)
	}
}

func (p *plugin) status() control.Status {
	p.t.Helper()
	s, err := p.control.Status(context.Background())
	must(p.t, err)
	return s
}

// problem waits until the status names a problem with all the words.
func (p *plugin) problem(words ...string) {
	p.t.Helper()
	await(p.t, fmt.Sprintf("status to say %q", words), func() bool {
		for _, x := range p.status().Problems {
			text, all := x.What+" -> "+x.Do, true
			for _, w := range words {
				all = all && strings.Contains(text, w)
			}
			if all {
				return true
			}
		}
		return false
	})
}

// works waits until the parts run and no problem is left.
func (p *plugin) works() {
	p.t.Helper()
	await(p.t, "all to be well", func() bool { s := p.status(); return s.Peer != "" && len(s.Problems) == 0 })
}

// call is a call of dockerd's; the result is the answer, or its Err.
func (p *plugin) call(path string, request map[string]any) map[string]any {
	p.t.Helper()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(p.dir, "run/docker/plugins/weave.sock"))
		},
	}}
	body, err := json.Marshal(request)
	must(p.t, err)
	resp, err := client.Post("http://plugin"+path, "application/json", bytes.NewReader(body))
	must(p.t, err)
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	must(p.t, err)
	var answer map[string]any
	if err := json.Unmarshal(raw, &answer); err != nil {
		p.t.Fatalf("%s answered %q", path, raw)
	}
	return answer
}

// activated holds that dockerd finds the plugin.
func (p *plugin) activated() {
	p.t.Helper()
	if got := fmt.Sprint(p.call("/Plugin.Activate", nil)); got != "map[Implements:[NetworkDriver IpamDriver]]" {
		p.t.Errorf("activate: %s", got)
	}
}

func TestBadSettings(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, "WEAVE_MTU=12", "WEAVE_PEERS=a:b:c").start()
	p.activated()
	p.problem("WEAVE_MTU=12")
	p.problem("WEAVE_PEERS=a:b:c")
	got := fmt.Sprint(p.call("/IpamDriver.RequestPool", map[string]any{"Pool": "10.50.0.0/24"})["Err"])
	if !strings.Contains(got, "WEAVE_MTU=12") || !strings.Contains(got, "WEAVE_PEERS") {
		t.Errorf("a call is refused with %q", got)
	}
	if _, err := p.control.Connect(context.Background(), []string{"192.0.2.1"}); err == nil || !strings.Contains(err.Error(), "WEAVE_MTU=12") {
		t.Errorf("connect: %v", err)
	}
	if _, err := p.control.Prime(context.Background()); err == nil || !strings.Contains(err.Error(), "WEAVE_MTU=12") {
		t.Errorf("prime: %v", err)
	}
	if _, err := os.Stat(filepath.Join(p.dir, "state")); !os.IsNotExist(err) {
		t.Errorf("state was touched: %v", err)
	}
}

// TestNoUnderlay holds that a host without an address is no reason to exit.
func TestNoUnderlay(t *testing.T) {
	t.Parallel()
	p := newPlugin(t).start()
	p.activated()
	p.problem("cannot start", "WEAVE_ADDRESS")
	if _, err := p.control.Connect(context.Background(), []string{"192.0.2.1"}); err == nil || !strings.Contains(err.Error(), "WEAVE_ADDRESS") {
		t.Errorf("connect: %v", err)
	}
}

func TestForeignAddress(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, "WEAVE_ADDRESS=192.0.2.1", "WEAVE_MTU=1400").start()
	p.activated()
	p.problem("cannot start", "192.0.2.1", "an address of this host")
}

func TestPortTaken(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, "WEAVE_ADDRESS=127.0.0.1", takesPort+"=127.0.0.1:6783").start()
	p.activated()
	p.problem("cannot start", "127.0.0.1:6783", "WEAVE_PORT")
	must(t, p.cmd.Process.Signal(unix.SIGUSR1))
	p.works()
}

// TestFurtherPortTaken: all works without the further port, which is told until it
// is free.
func TestFurtherPortTaken(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, "WEAVE_ADDRESS=127.0.0.1", "WEAVE_TCP_PORT=443", takesPort+"=127.0.0.1:443").start()
	p.problem("127.0.0.1:443", "WEAVE_TCP_PORT")
	if s := p.status(); s.Peer == "" || len(s.Problems) != 1 {
		t.Errorf("more is wrong: %+v", s)
	}
	must(t, p.cmd.Process.Signal(unix.SIGUSR1))
	p.works()
}

func TestCorruptState(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, "WEAVE_ADDRESS=127.0.0.1")
	file := filepath.Join(p.dir, "state/weave.db")
	must(t, os.MkdirAll(filepath.Dir(file), 0o700))
	rubbish := bytes.Repeat([]byte("rubbish\n"), 4096)
	must(t, os.WriteFile(file, rubbish, 0o600))
	p.start()
	p.activated()
	p.problem("cannot start", "corrupt", "backup")
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, rubbish) {
		t.Errorf("the file was changed: %v", err)
	}
	must(t, os.Rename(file, file+".bad"))
	p.works()
}

// TestLostNames holds that names on disk that make no sense keep nothing from working,
// and that those which somebody made by hand are told as lost.
func TestLostNames(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, "WEAVE_ADDRESS=127.0.0.1")
	disk, err := store.Open(filepath.Join(p.dir, "state/weave.db"))
	must(t, err)
	must(t, disk.Apply("names", map[string][]byte{"endpoint": []byte("junk")}))
	must(t, disk.Apply("dns", map[string][]byte{"scanner ": []byte("junk"), "printer ": []byte(`["192.0.2.7"]`)}))
	must(t, disk.Close())
	p.start()
	p.problem(`"scanner"`, "gone", "weave dns-add")
	if s := p.status(); s.Peer == "" || len(s.Problems) != 1 || s.DNS == nil || len(s.DNS.Names) != 1 || s.DNS.Names[0].Name != "printer" {
		t.Errorf("status %+v", s)
	}
	p.activated()
}

// TestSocketTaken holds that a socket of the host that another serves is named,
// and taken over when it gets free; the other socket works meanwhile.
func TestSocketTaken(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, "WEAVE_ADDRESS=127.0.0.1")
	l, err := sock.Listen(filepath.Join(p.dir, "run/docker/plugins/weave.sock"))
	must(t, err)
	p.start()
	p.problem("run/docker/plugins/weave.sock", "stop the other weave")
	must(t, l.Close())
	p.works()
	p.activated()
}

// TestWork takes the daemon through networks and restarts, as dockerd does.
func TestWork(t *testing.T) {
	t.Parallel()
	p := newPlugin(t, "WEAVE_ADDRESS=127.0.0.1").start()
	p.works()
	first := p.status()
	if first.Nickname != "left" || first.Address != addr("127.0.0.1") || first.Port != 6783 || !first.Password {
		t.Errorf("status %+v", first)
	}
	answer := p.call("/IpamDriver.RequestPool", map[string]any{"AddressSpace": "weavelocal", "Pool": "10.50.0.0/24"})
	if answer["PoolID"] == nil {
		t.Fatalf("request pool: %v", answer)
	}
	id := strings.Repeat("ab", 32)
	answer = p.call("/NetworkDriver.CreateNetwork", map[string]any{
		"NetworkID": id, "Options": map[string]any{}, "IPv6Data": []any{},
		"IPv4Data": []any{map[string]any{"AddressSpace": "weavelocal", "Pool": "10.50.0.0/24"}},
	})
	if answer["Err"] != nil {
		t.Fatalf("create network: %v", answer)
	}
	answer = p.call("/IpamDriver.RequestAddress", map[string]any{"PoolID": "10.50.0.0/24", "Options": map[string]any{}})
	if answer["Address"] == nil {
		t.Fatalf("request address: %v", answer)
	}
	checkWork(t, p)

	results, err := p.control.Connect(context.Background(), []string{"127.0.0.1", "127.0.0.2:99"})
	must(t, err)
	if !results[0].Self || results[0].Error != "" || results[1].Self || results[1].Error == "" || !strings.Contains(results[1].Do, "UDP and TCP") {
		t.Errorf("connect: %+v", results)
	}
	p.problem("no peer was met at 127.0.0.2:99")

	p.stop()
	p.start()
	await(t, "the network to be back", func() bool { return len(p.status().Segments) == 1 })
	checkWork(t, p)
	if s := p.status(); s.Peer != first.Peer || len(s.Seeds) != 1 {
		t.Errorf("after a restart: peer %s, was %s; seeds %+v", s.Peer, first.Peer, s.Seeds)
	}
	if err := p.control.Forget(context.Background(), []string{"127.0.0.3"}); err == nil || !strings.Contains(err.Error(), "127.0.0.3:6783") {
		t.Errorf("forget: %v", err)
	}
	must(t, p.control.Forget(context.Background(), []string{"127.0.0.2:99"}))
	if s := p.status(); len(s.Seeds) != 0 {
		t.Errorf("seeds %+v", s.Seeds)
	}
	primed, err := p.control.Prime(context.Background())
	if err != nil || primed.Subnet != p.status().DefaultSubnet || primed.Subnet.String() != "10.32.0.0/16" || primed.Free == 0 || primed.Waiting != "" {
		t.Errorf("prime: %+v, %v", primed, err)
	}
	answer = p.call("/NetworkDriver.DeleteNetwork", map[string]any{"NetworkID": id})
	if answer["Err"] != nil || len(p.status().Segments) != 0 {
		t.Errorf("delete network: %v", answer)
	}
	p.works()
}

func checkWork(t *testing.T, p *plugin) {
	t.Helper()
	s := p.status()
	if len(s.Segments) != 1 || s.Segments[0].Key != "10.50.0.0/24" || len(s.Segments[0].Networks) != 1 || len(s.Segments[0].Members) != 1 {
		t.Errorf("segments %+v", s.Segments)
	}
	if len(s.IPAM) != 1 || s.IPAM[0].Leased != 1 || s.IPAM[0].Owned == 0 {
		t.Errorf("pools %+v", s.IPAM)
	}
}
