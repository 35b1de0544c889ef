package vxlan

import (
	"errors"
	"net/netip"

	"weave/mesh/fdb"
)

// Device is a VXLAN device of this host.
type Device struct {
	Name  string
	VNI   uint32
	MTU   int
	Local netip.Addr // underlay address to send from
	Port  uint16     // UDP, here and there
}

// Overhead is what the MTU of a segment must stay below that of the underlay: the
// inner Ethernet header, VXLAN's, and the outer UDP and IP headers.
func Overhead(local netip.Addr) int {
	const inner = ethernetLen + 8 + 8
	if local.Unmap().Is4() {
		return inner + 20
	}
	return inner + 40
}

// Kind tells what an Entry is.
type Kind uint8

// Kinds of entries. What stands in brackets names the entry, the rest is what
// it says.
const (
	// Remote [MAC] Addr: frames to MAC go to that host, and those from MAC may
	// come from no other. It is in the VXLAN device's table.
	Remote Kind = iota
	// Neighbour [Addr] MAC: the bridge answers ARP requests for Addr.
	Neighbour
	// Flood [Addr]: multicast goes to that host too. It is in the VXLAN
	// device's table.
	Flood
	// Port [MAC] Fast: the bridge gives frames for MAC to the VXLAN device, or
	// to the TAP.
	Port
	// Allow [Addr]: the guard lets VXLAN in from that host.
	Allow
)

// Entry is one line of a kernel's table.
type Entry struct {
	Kind Kind
	MAC  fdb.MAC
	Addr netip.Addr
	Fast bool
}

// slot is the name of an entry: the same with what it says left out.
type slot Entry

func (e Entry) slot() slot {
	switch e.Kind {
	case Remote, Port:
		return slot{Kind: e.Kind, MAC: e.MAC}
	}
	return slot{Kind: e.Kind, Addr: e.Addr}
}

// Kernel makes devices and keeps their tables; *Links is one. One goroutine at
// a time calls it. Everything can be done twice: to make what is there, or to
// remove what is not, is success.
type Kernel interface {
	// Find returns the VNI of the VXLAN device of that name, 0 if there is none.
	Find(name string) (uint32, error)
	// Make sees to it that there is such a device. fresh tells that it was made
	// anew, with empty tables.
	Make(d Device) (fresh bool, err error)
	// Plug makes the device a port of the bridge that the TAP is in, keeps the
	// two apart, and brings it up. plugged is false while the TAP is in none;
	// fresh tells that the bridge's tables know nothing of the device yet.
	// Without a TAP the device is only brought up.
	Plug(name, tap string) (plugged, fresh bool, err error)
	Remove(name string) error
	// Clear takes out what Set put into the tables of the TAP and its bridge.
	Clear(tap string) error
	// Entries returns what Set put in, in this run or an earlier one.
	Entries(name, tap string) ([]Entry, error)
	// Set puts in an entry, in place of the one of the same name.
	Set(name, tap string, e Entry) error
	Delete(name, tap string, e Entry) error
	// TakeLearned takes out the addresses that the kernel learned behind a
	// host, and returns them.
	TakeLearned(name string, at netip.Addr) ([]fdb.MAC, error)
	// Close gives back what the calls opened. They can be used again.
	Close() error
}

// ErrUnguarded is a Guard's: it is not there, and cannot be set up.
var ErrUnguarded = errors.New("vxlan: no guard")

// Guard keeps VXLAN from everybody but the hosts that are allowed, and from
// what containers send; *Firewall is one. One goroutine at a time calls it.
type Guard interface {
	// Ensure sets the guard up, with those allowed that were before, and returns
	// them. It fails with ErrUnguarded if it knows that the guard is not up.
	Ensure(port uint16) ([]netip.Addr, error)
	// Touched reports, at little cost, whether the packet filter has changed
	// since Ensure found all in order. After an Ensure that did not, it is false.
	Touched() bool
	Allow(a netip.Addr) error
	Deny(a netip.Addr) error
	Remove() error
	Close() error // as Kernel's
}

// Probes sends and receives heart-beats as whole Ethernet frames; *Socket is
// one.
type Probes interface {
	// Bind chooses the link. Frames go by none before.
	Bind(link string) error
	Send(frame []byte) error
	// Receive waits for a frame, or for Close, which makes it fail. It has one
	// caller at a time, beside those of the other methods.
	Receive(buf []byte) (int, error)
	Close() error
}
