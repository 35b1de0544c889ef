package host

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
)

const (
	// retiredPrefix and its index are the name of a link that was retired. The mesh
	// names its links wvt… and wvx….
	retiredPrefix = Prefix + "r"
	// retireAfter is how long a container's namespace has to end, which takes its
	// links along.
	retireAfter = 300 * time.Millisecond
	// maxRetired bounds the links that wait for that, and their sockets.
	maxRetired = 128
)

// RetireLink takes a pair of links out of use: the name is free at once, and the
// pair is deleted a moment later, by Close at the latest. To delete one takes the
// kernel some 20 ms, which a container that ends would wait for; most go with its
// namespace meanwhile. hide has to take the end that is in a container out of the
// way of whoever looks for it there, and gets the indexes of that end and of the one
// on the host. If it cannot, or too many wait already, the pair is deleted
// at once. That there is none is success.
func (k *Kernel) RetireLink(name string, hide func(link, peer int) error) error {
	if k.retire(name, hide) {
		return nil
	}
	return k.DeleteLink(name)
}

// retire does all of RetireLink but the deletion, and tells whether that will
// follow.
func (k *Kernel) retire(name string, hide func(link, peer int) error) bool {
	select {
	case k.waiting <- struct{}{}:
	default:
		return false
	}
	var index int
	err := withNetlink(func(h *netlink.Handle) error {
		link, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		index = link.Attrs().Index
		if err := hide(link.Attrs().ParentIndex, index); err != nil {
			return err
		}
		return errors.Join(h.LinkSetDown(link), h.LinkSetName(link, retiredName(index)))
	})
	// The namespace is that of this thread, not of the one that deletes.
	var later *netlink.Handle
	if err == nil {
		later, err = newHandle()
	}
	if err != nil {
		<-k.waiting
		return false
	}
	k.retired.Go(func() {
		defer func() { <-k.waiting }()
		defer later.Close()
		select {
		case <-time.After(retireAfter):
		case <-k.closing:
		}
		// What stays is deleted by the next daemon, see DeleteRetired.
		_ = retry(func() error { return deleteLink(later, retiredName(index)) })
	})
	return true
}

func retiredName(index int) string { return fmt.Sprintf("%s%08x", retiredPrefix, index) }

// DeleteRetired deletes the links that an earlier process had retired and did not
// live to delete.
func (k *Kernel) DeleteRetired() error {
	names, err := k.ListLinks(retiredPrefix)
	for _, name := range names {
		err = errors.Join(err, k.DeleteLink(name))
	}
	return err
}

// Close deletes what RetireLink has left for later.
func (k *Kernel) Close() {
	close(k.closing)
	k.retired.Wait()
}
