package tap

import (
	"errors"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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

// namespace is a network namespace; it goes when the test ends and nothing in
// it is open any more.
type namespace struct{ handle netns.NsHandle }

func newNamespace(t testing.TB) namespace {
	t.Helper()
	needRoot(t)
	var ns namespace
	err := onThread(func() (err error) {
		ns.handle, err = netns.New()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.handle.Close(); err != nil {
			t.Error(err)
		}
	})
	return ns
}

// do runs f in the namespace.
func (ns namespace) do(t testing.TB, f func() error) {
	t.Helper()
	err := onThread(func() error { return errors.Join(netns.Set(ns.handle), f()) })
	if err != nil {
		t.Fatal(err)
	}
}

// onThread runs f on a thread that is thrown away afterwards.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}
