package netlab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// delayQueue is how many frames wait each way; what comes then is lost.
const delayQueue = 4096

// Delay holds up the frames on a host's cable, as a long way does: no kernel
// that the tests are for need have netem. The cable's port leaves the bridge, and
// a TAP takes its place; goroutines of this process carry frames between the two,
// with their virtio headers, so that unfinished checksums stay as they are:
//
//	eth0 ──── h1 ═ packet socket ═ Delay ═ TAP h1-late ─ bridge
//
// It is good for some 10000 frames a second, and forgets VLAN tags. Where it is for
// a part of the frames, the port stays, and sends those aside; so the rest may be as
// many as the kernel can carry:
//
//	eth0 ──── h1 ─────────────────────────────────────── bridge
//	            └ dup to h1-late ═ Delay ═ TAP h1-late ──┘
type Delay struct {
	host        *Host
	least, most time.Duration
	part        float64  // of the frames; all if it is 1
	tap, packet *os.File // packet only if it is for all
	index       int      // of the TAP
	carriers    sync.WaitGroup
}

// Delay begins to hold up each frame, either way, for a random time from least
// to most. If these are the same, frames stay in order. The caller must Stop it,
// before the host is removed. There is one at a time on a host.
func (h *Host) Delay(least, most time.Duration) (*Delay, error) {
	return h.hold(&Delay{host: h, least: least, most: most, part: 1})
}

// DelaySome begins to hold up frames that the host sends, each with that
// probability, so that those behind overtake them. Else it is like Delay. As with
// loss, no run of several packets passes in one piece meanwhile.
func (h *Host) DelaySome(probability float64, by time.Duration) (*Delay, error) {
	if !(probability > 0 && probability < 1) {
		return nil, fmt.Errorf("delay of %s: %v is not between 0 and 1", h.name, probability)
	}
	return h.hold(&Delay{host: h, least: by, most: by, part: probability})
}

func (h *Host) hold(d *Delay) (*Delay, error) {
	if d.least < 0 || d.least > d.most {
		return nil, fmt.Errorf("delay of %s: from %s to %s", h.name, d.least, d.most)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.delay.Load() != nil {
		return nil, fmt.Errorf("delay of %s: there is one", h.name)
	}
	err := inNamespace(h.net.space, d.open)
	if err == nil {
		err = h.setDelay(d)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("delay of %s: %w", h.name, err), d.close(), h.setDelay(nil))
	}
	if d.ofAll() {
		d.carriers.Go(func() { d.carry(d.packet, d.tap) })
		d.carriers.Go(func() { d.carry(d.tap, d.packet) })
	} else {
		d.carriers.Go(func() { d.carry(d.tap, d.tap) })
	}
	return d, nil
}

// Stop ends the delay. What is under way is lost.
func (d *Delay) Stop() error {
	h := d.host
	h.mu.Lock()
	defer h.mu.Unlock()
	err := d.close()
	d.carriers.Wait()
	if err = errors.Join(err, h.setDelay(nil)); err != nil {
		return fmt.Errorf("delay of %s: stop: %w", h.name, err)
	}
	return nil
}

func delayName(port string) string { return port + "-late" }

func (d *Delay) ofAll() bool { return d.part == 1 }

// onBridge returns the name of the host's port on the network's bridge.
func (h *Host) onBridge() string {
	if d := h.delay.Load(); d != nil && d.ofAll() {
		return delayName(h.port)
	}
	return h.port
}

// sources are the names of all ports by which frames of the host come to the bridge.
func (h *Host) sources() []string {
	if d := h.delay.Load(); d != nil && !d.ofAll() {
		return []string{h.port, delayName(h.port)}
	}
	return []string{h.onBridge()}
}

// divert writes the rules that keep what is held up from going the short way.
func (d *Delay) divert(t *table) {
	// Behind what the cable does.
	aside := t.chain("aside", nftables.ChainTypeFilter, nftables.ChainHookIngress, 1, d.host.port)
	if d.ofAll() { // the packet socket has them
		t.add(aside, drop())
		return
	}
	t.add(aside, random(d.part), []expr.Any{
		&expr.Immediate{Register: 1, Data: word(uint32(d.index))}, &expr.Dup{RegDev: 1, IsRegDevSet: true},
	}, drop())
}

// setDelay moves all that goes by the name of the port; under h.mu.
func (h *Host) setDelay(d *Delay) error {
	h.delay.Store(d)
	errs := []error{h.writeCable(), h.net.setCuts(func() {})}
	if d == nil {
		errs = append(errs, h.onPort(plugIn), inNamespace(h.net.space, func() error {
			return writeTable(nftables.TableFamilyBridge, delayName(h.port), nil)
		}))
	} else if d.ofAll() {
		errs = append(errs, h.onPort(netlink.LinkSetNoMaster))
	}
	return errors.Join(errs...)
}

// open makes the TAP and the socket, in the network's namespace.
func (d *Delay) open() error {
	name := delayName(d.host.port)
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("open tun", err)
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = os.NewSyscallError("TUNSETIFF", unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr))
	}
	if err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	d.tap = os.NewFile(uintptr(fd), name)
	link, err := netlink.LinkByName(name)
	if err == nil {
		d.index = link.Attrs().Index
		err = plugIn(link)
	}
	if err == nil && !d.ofAll() { // nothing is to go to the host by it
		err = errors.Join(netlink.LinkSetLearning(link, false), writeTable(nftables.TableFamilyBridge, name, func(t *table) {
			t.add(t.chain("out", nftables.ChainTypeFilter, nftables.ChainHookPostrouting, 0, ""), oifname(name), drop())
		}))
	}
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	if d.ofAll() {
		return d.openSocket()
	}
	return nil
}

func (d *Delay) openSocket() error {
	port, err := netlink.LinkByName(d.host.port)
	if err != nil {
		return err
	}
	var order [2]byte
	binary.BigEndian.PutUint16(order[:], unix.ETH_P_ALL)
	all := binary.NativeEndian.Uint16(order[:])
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
		// What the bridge still sends to the port would come back to it, and others'
		// addresses with it.
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: port.Attrs().Index}))
	if err != nil {
		return errors.Join(os.NewSyscallError("packet socket", err), unix.Close(fd))
	}
	d.packet = os.NewFile(uintptr(fd), "packet")
	return nil
}

func (d *Delay) close() error {
	var errs []error
	for _, f := range []*os.File{d.tap, d.packet} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// held is a frame that waits.
type held struct {
	due   time.Time
	frame []byte
}

// carry takes frames from one side to the other until the side is closed.
func (d *Delay) carry(from, to *os.File) {
	arrived := make(chan held, delayQueue)
	var reader sync.WaitGroup
	defer reader.Wait()
	reader.Go(func() { d.read(from, arrived) })
	var waiting []held // by due, then by arrival
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case f, open := <-arrived:
			if !open {
				return
			}
			if len(waiting) < delayQueue {
				at, _ := slices.BinarySearchFunc(waiting, f.due, func(w held, due time.Time) int {
					if w.due.After(due) {
						return 1
					}
					return -1
				})
				waiting = slices.Insert(waiting, at, f)
			}
		case now := <-timer.C:
			n := 0
			for ; n < len(waiting) && !waiting[n].due.After(now); n++ {
				_, _ = to.Write(waiting[n].frame) // one that is not taken is lost, as on any wire
			}
			waiting = slices.Delete(waiting, 0, n)
		}
		if len(waiting) > 0 {
			timer.Reset(time.Until(waiting[0].due))
		}
	}
}

func (d *Delay) read(from *os.File, arrived chan<- held) {
	defer close(arrived)
	buf := make([]byte, maxFrame)
	for {
		n, err := from.Read(buf)
		if errors.Is(err, unix.ENETDOWN) { // the port went down, and may come back
			continue
		}
		if err != nil {
			return
		}
		wait := d.least + rand.N(d.most-d.least+1)
		select {
		case arrived <- held{time.Now().Add(wait), bytes.Clone(buf[:n])}:
		default:
		}
	}
}
