package tap

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// txQueueLen is the most frames that wait for us to read them; runs count as
// one. It is the kernel's default for Ethernet.
const txQueueLen = 1000

// setupLink brings the link to the state that opt describes, and up. ours is how
// many of its queues we have; 0: it can have but one.
func setupLink(opt Options, ours int) error {
	link, err := netlink.LinkByName(opt.Name)
	if err != nil {
		return fmt.Errorf("find link: %w", err)
	}
	if ours > 0 {
		if err := setupQueues(link, ours); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetMTU(link, opt.MTU); err != nil {
		return fmt.Errorf("set MTU %d: %w", opt.MTU, err)
	}
	if opt.MAC != nil && !bytes.Equal(opt.MAC, link.Attrs().HardwareAddr) {
		if err := netlink.LinkSetHardwareAddr(link, opt.MAC); err != nil {
			return fmt.Errorf("set MAC %s: %w", opt.MAC, err)
		}
	}
	if err := netlink.LinkSetTxQLen(link, txQueueLen); err != nil {
		return fmt.Errorf("set queue length: %w", err)
	}
	if err := disableIPv6(link); err != nil {
		return fmt.Errorf("disable IPv6: %w", err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up: %w", err)
	}
	return nil
}

// setupQueues is for a link that can have several queues. The kernel lets any
// process add its own, so it is for us to see that nobody else has one. And the
// queueing discipline that the kernel chooses would have 256 queues of its own,
// 6 MiB in all, for nothing: the device always takes what it is given.
func setupQueues(link netlink.Link, ours int) error {
	tuntap, ok := link.(*netlink.Tuntap)
	if !ok {
		return ErrNotTAP // replaced meanwhile
	}
	if tuntap.Queues+tuntap.DisabledQueues > ours {
		return ErrBusy
	}
	none := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Parent: netlink.HANDLE_ROOT},
		QdiscType:  "noqueue",
	}
	// A kernel without queueing disciplines has none.
	if err := netlink.QdiscReplace(none); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("set queueing discipline: %w", err)
	}
	return nil
}

// disableIPv6 keeps the host off the segment: a port of a bridge needs no
// address. /proc/sys may be read-only; then at least none is made up.
func disableIPv6(link netlink.Link) error {
	path := "/proc/sys/net/ipv6/conf/" + link.Attrs().Name + "/disable_ipv6"
	err := os.WriteFile(path, []byte("1"), 0)
	if err == nil || errors.Is(err, os.ErrNotExist) {
		return nil // there is no IPv6 to disable
	}
	if genErr := netlink.LinkSetIP6AddrGenMode(link, nl.IN6_ADDR_GEN_MODE_NONE); genErr != nil {
		return errors.Join(err, genErr)
	}
	return nil
}

// Remove deletes the device of that name in the calling thread's network
// namespace, open or not. It is no error if there is none.
func Remove(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove tap %s: %w", name, err)
	}
	if _, ok := link.(*netlink.Tuntap); !ok {
		return fmt.Errorf("remove tap %s: %w", name, ErrNotTAP)
	}
	if err := netlink.LinkDel(link); err != nil {
		return fmt.Errorf("remove tap %s: %w", name, err)
	}
	return nil
}
