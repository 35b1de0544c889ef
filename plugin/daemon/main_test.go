package daemon

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// asDaemon in the environment makes this test binary the plugin: see plugin.
const asDaemon = "WEAVE_TEST_DAEMON"

func TestMain(m *testing.M) {
	if os.Getenv(asDaemon) == "" {
		goleak.VerifyTestMain(m)
		return
	}
	if err := beDaemon(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// beDaemon is the plugin's main function, in namespaces of its own. It keeps
// what an earlier run of the plugin would have left in /run.
func beDaemon() error {
	for _, m := range []struct {
		source, target, kind string
		flags                uintptr
	}{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE},
		{"tmpfs", "/run", "tmpfs", 0},
	} {
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	free, err := takePort(os.Getenv(takesPort))
	if err != nil {
		return err
	}
	defer free()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	err = Run(ctx, "test", os.LookupEnv)
	stop()
	free()
	if err != nil {
		return err
	}
	return goleak.Find(goleak.IgnoreTopFunction("github.com/hashicorp/memberlist.(*Memberlist).probeNode"))
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("WEAVE_REQUIRE_ROOT") == "1" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func quiet() *logrus.Entry {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return logrus.NewEntry(l)
}

// wait is how long a condition is waited for; the machine may be busy.
const wait = 30 * time.Second

// await polls a condition that no channel tells of.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(wait); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", wait, what)
		}
	}
}
