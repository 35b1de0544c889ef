package e2e

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"weave/plugin/control"
	"weave/test/dockerlab"
	"weave/test/netlab"
)

const (
	password = "correct horse battery staple"
	seed     = "10.99.0.1" // h1
	spare    = 201         // number of the first host that a test adds for itself
	lastHost = 249         // 250 is nobody
	model    = 200         // whose disk the others begin with
)

// Tests that can run at once wait most of the time: for timers, for peers, for
// what must not happen. The longest begin with t.Parallel and start together;
// the others begin with beside, so many at a time.
var slots = make(chan struct{}, 3)

// beside is t.Parallel for a short test.
func beside(t *testing.T) {
	t.Helper()
	t.Parallel()
	slots <- struct{}{}
	t.Cleanup(func() { <-slots })
}

// booting is held while hosts boot: they all need the processors.
var booting sync.Mutex

// shared is the lab that all tests use, made by the first that needs it: h1
// seeds, every other host knows h1 alone. Tests that run at once with others
// must not disturb these hosts, or have hosts of their own.
type shared struct {
	mu    sync.Mutex
	lab   *dockerlab.Lab
	hosts []*dockerlab.Host
	used  int // spare hosts so far
	err   error
}

var common shared

func TestMain(m *testing.M) {
	if err := flag.Set("test.parallel", "6"); err != nil { // with more, engines of a slow machine do not answer in time
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if common.lab != nil {
		if err := common.lab.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "lab:", err)
			code = 1
		}
	}
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("WEAVE_REQUIRE_ROOT") == "1" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

// hosts returns the first n hosts of the lab with the plugin in each.
func hosts(t *testing.T, n int) []*dockerlab.Host {
	t.Helper()
	requireRoot(t)
	hs, err := common.atLeast(n)
	if err != nil {
		t.Fatalf("no lab: %v", err)
	}
	t.Cleanup(func() { keepLogs(t, hs) })
	awaitPeers(t, hs[:n])
	return hs[:n:n]
}

// atLeast returns all hosts, n or more.
func (s *shared) atLeast(n int) ([]*dockerlab.Host, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	if s.lab == nil {
		s.err = s.open()
	}
	var boots errgroup.Group
	boots.SetLimit(3)
	for i := len(s.hosts); s.err == nil && i < n; i++ {
		s.hosts = append(s.hosts, nil)
		boots.Go(func() (err error) {
			s.hosts[i], err = addHost(s.lab, i+1)
			return err
		})
	}
	s.err = errors.Join(s.err, boots.Wait())
	return s.hosts, s.err
}

func (s *shared) open() error {
	err := dockerlab.Sweep()
	if err == nil {
		s.lab, err = dockerlab.New(netlab.UniqueName())
	}
	if err == nil {
		err = s.lab.Prepare(model, pluginDir())
	}
	return err
}

// addHost boots host n with the plugin; h1 is everybody's seed.
func addHost(lab *dockerlab.Lab, n int) (*dockerlab.Host, error) {
	h, err := lab.AddHost(n)
	if err != nil {
		return h, err
	}
	settings := map[string]string{"WEAVE_PASSWORD": password}
	if n > 1 {
		settings["WEAVE_PEERS"] = seed
	}
	return h, install(h, settings)
}

func pluginDir() string { return filepath.Join(dockerlab.BuildDir(), "plugin") }

// nickname is long enough not to turn up in random bytes.
func nickname(h *dockerlab.Host) string { return "nickname-of-" + h.Name() }

// numbers makes sure that there is a lab, and returns numbers for spare hosts.
// They come round again after some fifty.
func (s *shared) numbers(n int) ([]int, error) {
	if _, err := s.atLeast(0); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var numbers []int
	for range n {
		numbers = append(numbers, spare+s.used%(lastHost-spare+1))
		s.used++
	}
	return numbers, nil
}

// sparePassword keeps spare hosts apart from the shared ones.
const sparePassword = "of spare hosts"

// alone are settings of spare hosts that know nobody.
func alone(int, string) map[string]string { return map[string]string{"WEAVE_PASSWORD": sparePassword} }

// joined are settings of spare hosts that know the first of them.
func joined(i int, first string) map[string]string {
	settings := alone(i, first)
	if i > 0 {
		settings["WEAVE_PEERS"] = first
	}
	return settings
}

// spareHosts boots hosts for one test, with the plugin in each. The settings are
// those of host i, where the first has that address.
func spareHosts(t *testing.T, n int, settings func(i int, first string) map[string]string) []*dockerlab.Host {
	t.Helper()
	return bootSpare(t, n, func(i, first int, h *dockerlab.Host) error {
		return install(h, settings(i, fmt.Sprintf("10.99.0.%d", first)))
	})
}

// bootSpare boots hosts for one test, and prepares host i of them; first is the
// number of the first.
func bootSpare(t *testing.T, n int, prepare func(i, first int, h *dockerlab.Host) error) []*dockerlab.Host {
	t.Helper()
	requireRoot(t)
	numbers, err := common.numbers(n)
	if err != nil {
		t.Fatalf("no lab: %v", err)
	}
	return bootNumbers(t, numbers, prepare)
}

// bootNumbers is bootSpare for hosts of those numbers, which nobody else has.
func bootNumbers(t *testing.T, numbers []int, prepare func(i, first int, h *dockerlab.Host) error) []*dockerlab.Host {
	t.Helper()
	booting.Lock()
	defer booting.Unlock()
	all := make([]*dockerlab.Host, len(numbers))
	var boots errgroup.Group
	for i, number := range numbers {
		boots.Go(func() (err error) {
			if all[i], err = common.lab.AddHost(number); err != nil {
				return err
			}
			return prepare(i, numbers[0], all[i])
		})
	}
	err := boots.Wait()
	for _, h := range slices.DeleteFunc(all, func(h *dockerlab.Host) bool { return h == nil }) {
		removeAfter(t, h)
	}
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// spareHost is the only one.
func spareHost(t *testing.T, settings map[string]string) *dockerlab.Host {
	t.Helper()
	return spareHosts(t, 1, func(int, string) map[string]string { return settings })[0]
}

// spareCluster boots hosts for one test that have found each other.
func spareCluster(t *testing.T, n int) []*dockerlab.Host {
	t.Helper()
	all := spareHosts(t, n, joined)
	awaitPeers(t, all)
	return all
}

// isSpare tells whether a host ends with its test, so that nothing needs to be
// removed from it.
func isSpare(h *dockerlab.Host) bool {
	n, err := strconv.Atoi(strings.TrimPrefix(h.Name(), "h"))
	return err == nil && n >= spare
}

// disabledHosts boots spare hosts on which the plugin is not enabled.
func disabledHosts(t *testing.T, n int) []*dockerlab.Host {
	t.Helper()
	return bootSpare(t, n, func(int, int, *dockerlab.Host) error { return nil })
}

// emptyHost boots one without the plugin.
func emptyHost(t *testing.T) *dockerlab.Host {
	t.Helper()
	return emptyHosts(t, 1)[0]
}

// emptyHosts boots spare hosts without the plugin.
func emptyHosts(t *testing.T, n int) []*dockerlab.Host {
	t.Helper()
	return bootSpare(t, n, func(_, _ int, h *dockerlab.Host) error { return h.RemovePlugin() })
}

func removeAfter(t *testing.T, h *dockerlab.Host) {
	t.Cleanup(func() {
		keepLogs(t, []*dockerlab.Host{h})
		if err := common.lab.RemoveHost(h); err != nil {
			t.Error(err)
		}
	})
}

func install(h *dockerlab.Host, settings map[string]string) error {
	all := map[string]string{"WEAVE_NICKNAME": nickname(h)}
	maps.Copy(all, settings)
	return h.InstallPlugin(pluginDir(), all)
}

// keepLogs shows the end of the engines' logs, without what they say day in,
// day out, when a test has failed. The plugins' output is part of it.
func keepLogs(t *testing.T, hosts []*dockerlab.Host) {
	if !t.Failed() {
		return
	}
	const last = 40
	for _, h := range hosts {
		log, err := os.ReadFile(h.LogPath())
		if err != nil {
			t.Log(err)
			continue
		}
		var lines []string
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, "plugin=") || !strings.Contains(line, "level=info") {
				lines = append(lines, line)
			}
		}
		t.Logf("log of %s:\n%s", h.Name(), strings.Join(lines[max(0, len(lines)-last):], ""))
	}
}

// awaitPeer waits until the host is connected to the other.
func awaitPeer(t *testing.T, h, other *dockerlab.Host) {
	t.Helper()
	awaitOthers(t, h, []*dockerlab.Host{other})
}

// awaitPeers waits until each host is connected to all others.
func awaitPeers(t *testing.T, hosts []*dockerlab.Host) {
	t.Helper()
	for _, h := range hosts {
		awaitOthers(t, h, hosts)
	}
}

func awaitOthers(t *testing.T, h *dockerlab.Host, others []*dockerlab.Host) {
	t.Helper()
	eventually(t, soon, func() error {
		s, err := statusOf(h)
		if err != nil {
			return err
		}
		up := map[string]bool{nickname(h): true}
		for _, p := range s.Peers {
			if p.State == control.Up {
				up[p.Nickname] = true
			}
		}
		for _, other := range others {
			if !up[nickname(other)] {
				return fmt.Errorf("%s is not connected to %s: %+v", h.Name(), other.Name(), s.Peers)
			}
		}
		return nil
	})
}
