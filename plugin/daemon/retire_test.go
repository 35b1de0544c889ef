package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"weave/driver/host"
)

// TestRetireFromSandbox: a link is found in the sandbox that Docker named, wherever
// the host's /run is to us, and hidden there. One that is deleted at once instead
// would not be there any more.
func TestRetireFromSandbox(t *testing.T) {
	needRoot(t)
	// Not on the main thread, by which others judge where the process is: if it is
	// this one, it is held while the test runs on another.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	t.Run("apart", retireFromSandbox)
}

func retireFromSandbox(t *testing.T) {
	runtime.LockOSThread() // for good: the thread ends in another namespace, with the test
	sandbox, err := netns.New()
	must(t, err)
	defer func() { _ = sandbox.Close() }()
	own, err := netns.New()
	must(t, err)
	defer func() { _ = own.Close() }()
	inside, err := netlink.NewHandleAt(sandbox)
	must(t, err)
	defer inside.Close()

	run := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(run, "docker/netns"), 0o700))
	must(t, os.Symlink(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), sandbox), filepath.Join(run, "docker/netns/1")))
	k := kernel{host.New(), run}
	must(t, k.CreateVeth("wvl00000001", "wvc00000001", 1400, []byte{2, 0, 0, 0, 0, 1}))
	peer, err := netlink.LinkByName("wvc00000001")
	must(t, err)
	must(t, netlink.LinkSetNsFd(peer, int(sandbox)))

	must(t, k.RetireLink("wvl00000001", "/var/run/docker/netns/1"))
	hidden, err := inside.LinkByIndex(peer.Attrs().Index)
	must(t, err)
	if name := hidden.Attrs().Name; name == "wvc00000001" {
		t.Errorf("the sandbox still has %s", name)
	}
	k.Close()
	if _, err := inside.LinkByIndex(peer.Attrs().Index); err == nil {
		t.Error("it stays after Close")
	}
}
