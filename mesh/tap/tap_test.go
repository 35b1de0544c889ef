package tap

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weave/mesh/run"
)

const testMTU = 1390

// open opens the device with one queue in ns; it is closed and removed when the
// test ends.
func (ns namespace) open(t testing.TB, name string) *Device {
	t.Helper()
	return ns.openQueues(t, name, 1)
}

func (ns namespace) openQueues(t testing.TB, name string, queues int) *Device {
	t.Helper()
	var d *Device
	ns.do(t, func() (err error) {
		d, err = Open(Options{Name: name, MTU: testMTU, Queues: queues})
		return err
	})
	t.Cleanup(func() {
		_ = d.Close() // the test may have done so
		ns.do(t, func() error { return Remove(name) })
	})
	return d
}

// forQueues tests a device with one queue, and one with several.
func forQueues(t *testing.T, test func(t *testing.T, queues int)) {
	for _, queues := range []int{1, 3} {
		t.Run(fmt.Sprint("queues=", queues), func(t *testing.T) { test(t, queues) })
	}
}

func buffers(n int) (bufs [][]byte, sizes []int) {
	for range n {
		bufs = append(bufs, make([]byte, minBuffer))
	}
	return bufs, make([]int, n)
}

func TestNames(t *testing.T) {
	for _, name := range []string{"", ".", "..", "sixteen-letters!", "a/b", "a b", "a:b", "tap%d", "a\x00b", "a\n"} {
		if _, err := Open(Options{Name: name, MTU: testMTU}); !errors.Is(err, ErrName) {
			t.Errorf("Open %q: %v", name, err)
		}
		if err := Remove(name); !errors.Is(err, ErrName) {
			t.Errorf("Remove %q: %v", name, err)
		}
	}
}

func TestLink(t *testing.T) {
	ns := newNamespace(t)
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	ns.do(t, func() error {
		d, err := Open(Options{Name: "wvt0", MTU: testMTU, MAC: mac})
		if err != nil {
			return err
		}
		if d.Name() != "wvt0" {
			t.Errorf("name %q", d.Name())
		}
		if err := d.Close(); err != nil {
			return err
		}
		link, err := netlink.LinkByName("wvt0") // is persistent
		if err != nil {
			return err
		}
		a := link.Attrs()
		if a.MTU != testMTU || a.TxQLen != txQueueLen || !bytes.Equal(a.HardwareAddr, mac) || a.Flags&net.FlagUp == 0 {
			t.Errorf("link %+v", a)
		}
		addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
		if err != nil || len(addrs) != 0 {
			t.Errorf("addresses %v, %v", addrs, err)
		}
		if err := errors.Join(Remove("wvt0"), Remove("wvt0")); err != nil {
			return err
		}
		if _, err := netlink.LinkByName("wvt0"); !errors.As(err, &netlink.LinkNotFoundError{}) {
			t.Errorf("after Remove: %v", err)
		}
		return nil
	})
}

// TestReadOnlySysctls: where /proc/sys cannot be written, the link still makes
// up no IPv6 address.
func TestReadOnlySysctls(t *testing.T) {
	newNamespace(t).do(t, func() error {
		err := errors.Join(
			unix.Unshare(unix.CLONE_NEWNS),
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""),
			unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""),
		)
		if err != nil {
			return err
		}
		d, err := Open(Options{Name: "wvt0", MTU: testMTU})
		if err != nil {
			return err
		}
		link, err := netlink.LinkByName("wvt0")
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
		if err != nil || len(addrs) != 0 {
			t.Errorf("addresses %v, %v", addrs, err)
		}
		return errors.Join(d.Close(), Remove("wvt0"))
	})
}

func TestAttach(t *testing.T) {
	forQueues(t, func(t *testing.T, queues int) {
		ns := newNamespace(t)
		first := ns.openQueues(t, "wvt0", queues)
		before := ns.link(t, "wvt0")
		ns.do(t, func() error {
			for _, others := range []int{1, 2} {
				if _, err := Open(Options{Name: "wvt0", MTU: testMTU + 10, Queues: others}); !errors.Is(err, ErrBusy) {
					t.Errorf("second Open: %v", err)
				}
			}
			return first.Close()
		})
		if mtu := ns.link(t, "wvt0").Attrs().MTU; mtu != testMTU {
			t.Errorf("MTU %d after the others' tries", mtu)
		}
		ns.do(t, func() error {
			second, err := Open(Options{Name: "wvt0", MTU: testMTU + 10, Queues: queues})
			if err != nil {
				return err
			}
			return second.Close()
		})
		after := ns.link(t, "wvt0")
		if before.Attrs().Index != after.Attrs().Index || after.Attrs().MTU != testMTU+10 {
			t.Errorf("link %d became %d, MTU %d", before.Attrs().Index, after.Attrs().Index, after.Attrs().MTU)
		}
	})
}

func (ns namespace) link(t *testing.T, name string) (link netlink.Link) {
	t.Helper()
	ns.do(t, func() (err error) {
		link, err = netlink.LinkByName(name)
		return err
	})
	return link
}

func TestOtherKindOfLink(t *testing.T) {
	newNamespace(t).do(t, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "wvt0"
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return err
		}
		if _, err := Open(Options{Name: "wvt0", MTU: testMTU}); !errors.Is(err, ErrNotTAP) {
			t.Errorf("Open: %v", err)
		}
		if err := Remove("wvt0"); !errors.Is(err, ErrNotTAP) {
			t.Errorf("Remove: %v", err)
		}
		return nil
	})
}

// TestFailedOpenLeavesNothing: a link that could not be set up is gone.
func TestFailedOpenLeavesNothing(t *testing.T) {
	forQueues(t, func(t *testing.T, queues int) {
		newNamespace(t).do(t, func() error {
			if d, err := Open(Options{Name: "wvt0", MTU: 1 << 20, Queues: queues}); err == nil {
				t.Error("MTU of 1 MiB accepted")
				return d.Close()
			}
			if _, err := netlink.LinkByName("wvt0"); !errors.As(err, &netlink.LinkNotFoundError{}) {
				t.Errorf("link is there: %v", err)
			}
			return nil
		})
	})
}

// readers start to read all queues, and return where each of them ends.
func (d *Device) readers() <-chan error {
	ended := make(chan error, d.Queues())
	for q := range d.Queues() {
		go func() {
			bufs, sizes := buffers(1)
			for {
				if _, _, err := d.ReadBatch(q, bufs, sizes); err != nil {
					ended <- err
					return
				}
			}
		}()
	}
	return ended
}

func TestCloseUnblocks(t *testing.T) {
	forQueues(t, func(t *testing.T, queues int) {
		d := newNamespace(t).openQueues(t, "wvt0", queues)
		ended := d.readers()
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		for range queues {
			if err := <-ended; !errors.Is(err, os.ErrClosed) {
				t.Errorf("ReadBatch: %v", err)
			}
		}
		if err := d.Write(make([]byte, 100)); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Write: %v", err)
		}
	})
}

func TestRemoveUnblocks(t *testing.T) {
	forQueues(t, func(t *testing.T, queues int) {
		ns := newNamespace(t)
		d := ns.openQueues(t, "wvt0", queues)
		ended := d.readers()
		ns.do(t, func() error { return Remove("wvt0") })
		for range queues {
			if err := <-ended; !errors.Is(err, ErrGone) {
				t.Errorf("ReadBatch: %v", err)
			}
		}
		bufs, sizes := buffers(1)
		if _, _, err := d.ReadBatch(0, bufs, sizes); !errors.Is(err, ErrGone) {
			t.Errorf("ReadBatch again: %v", err)
		}
		if err := d.Write(make([]byte, 100)); !errors.Is(err, ErrGone) {
			t.Errorf("Write: %v", err)
		}
	})
}

func TestBadBuffersAndFrames(t *testing.T) {
	d := newNamespace(t).open(t, "wvt0")
	if n, _, err := d.ReadBatch(0, nil, nil); n != 0 || err != nil {
		t.Errorf("no buffers: %d, %v", n, err)
	}
	if _, _, err := d.ReadBatch(0, [][]byte{make([]byte, 2000)}, make([]int, 1)); !errors.Is(err, io.ErrShortBuffer) {
		t.Errorf("short buffer: %v", err)
	}
	if err := d.Write(make([]byte, run.VnetHdrLen+5)); !errors.Is(err, unix.EINVAL) {
		t.Errorf("frame of 5 bytes: %v", err)
	}
	bad := make([]byte, run.VnetHdrLen+100)
	run.Meta{NeedsCsum: true, CsumStart: 200}.EncodeVnet(bad)
	if err := d.Write(bad); !errors.Is(err, unix.EINVAL) {
		t.Errorf("checksum outside the frame: %v", err)
	}
}

func TestWriteWhileDown(t *testing.T) {
	ns := newNamespace(t)
	d := ns.open(t, "wvt0")
	ns.do(t, func() error {
		link, err := netlink.LinkByName("wvt0")
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(link)
	})
	if err := d.Write(make([]byte, run.VnetHdrLen+60)); !errors.Is(err, unix.EIO) {
		t.Errorf("Write: %v", err)
	}
}

// put sends a frame some times through a link's other side, a packet socket.
func (ns namespace) put(t *testing.T, name string, frame []byte, times int) {
	t.Helper()
	ns.putAll(t, name, slices.Repeat([][]byte{frame}, times))
}

func (ns namespace) putAll(t *testing.T, name string, frames [][]byte) {
	t.Helper()
	ns.do(t, func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, frame := range frames {
			to := &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index}
			if err := unix.Sendto(fd, frame, 0, to); err != nil {
				return err
			}
		}
		return nil
	})
}

// TestReadSaysWhetherMoreIsLeft: it stops at the last buffer and behind
// batchBytes, and then does not know that the device is empty.
func TestReadSaysWhetherMoreIsLeft(t *testing.T) {
	ns := newNamespace(t)
	d := ns.open(t, "wvt0")
	bufs, sizes := buffers(8)
	read := func(buffers, want int, wantMore bool) {
		t.Helper()
		if n, more, err := d.ReadBatch(0, bufs[:buffers], sizes); n != want || more != wantMore || err != nil {
			t.Errorf("ReadBatch = %d, %v, %v, want %d, %v", n, more, err, want, wantMore)
		}
	}
	header := []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5}
	ns.put(t, "wvt0", append(header, 1), 3)
	read(2, 2, true)
	read(2, 1, false)
	ns.put(t, "wvt0", append(header, 1), 2)
	read(2, 2, true)

	const large = 60_000
	ns.do(t, func() error {
		link, err := netlink.LinkByName("wvt0")
		if err != nil {
			return err
		}
		return netlink.LinkSetMTU(link, large)
	})
	const enough = batchBytes/large + 1
	ns.put(t, "wvt0", append(header, make([]byte, large-100)...), enough+1)
	read(8, enough, true)
	read(8, 1, false)
}

func TestFrames(t *testing.T) {
	ns := newNamespace(t)
	d := ns.open(t, "wvt0")
	frame := append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5}, bytes.Repeat([]byte{7}, 50)...)
	ns.put(t, "wvt0", frame, 3)
	bufs, sizes := buffers(4)
	n, _, err := d.ReadBatch(0, bufs, sizes)
	if err != nil || n != 3 {
		t.Fatalf("ReadBatch = %d, %v", n, err)
	}
	for i := range n {
		if !bytes.Equal(bufs[i][run.VnetHdrLen:sizes[i]], frame) {
			t.Errorf("frame %d: %x", i, bufs[i][:sizes[i]])
		}
	}
}
