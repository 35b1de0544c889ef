// Package control is the API between the running plugin and the command line:
// HTTP and JSON on a unix socket that only root may use. It holds the types of
// the API, the server, which asks a Daemon, and the client.
//
// It knows nothing of meshes and pools: the daemon fills in the types, the
// command line shows them.
package control

import (
	"net/netip"
	"time"
)

// Status is what the plugin knows of itself and its cluster. Lists are in the
// order in which they are to be shown.
type Status struct {
	Version  string `json:"version"`
	Protocol int    `json:"protocol"` // of the mesh, on the wire
	Peer     string `json:"peer"`     // this host's peer ID
	Nickname string `json:"nickname"`
	Password bool   `json:"password"` // whether one is set
	Port     uint16 `json:"port"`
	// Service tells that the daemon runs without the managed plugin: its settings are
	// in its environment, and `weave launch` does not change them.
	Service bool `json:"service,omitempty"`
	// VXLANPort is the UDP port of the kernel's VXLAN; 0 with a password, when
	// nothing goes by it.
	VXLANPort uint16     `json:"vxlanPort,omitempty"`
	Address   netip.Addr `json:"address,omitzero"` // underlay address in use; zero: not known yet
	// NAT is what stands between this host and the others, as far as they can tell:
	// "none", "cone" or "symmetric"; empty if nobody has told.
	NAT string `json:"nat,omitempty"`
	// Discover is the setting: which hosts this one connects to by itself.
	Discover string `json:"discover,omitempty"`
	// Range is where subnets come from that nobody chose, and DefaultSubnet the
	// part of it that is for containers which name none.
	Range         netip.Prefix `json:"range,omitzero"`
	DefaultSubnet netip.Prefix `json:"defaultSubnet,omitzero"`

	LAN     *LAN      `json:"lan,omitempty"` // nil: hosts on the LAN are not looked for
	Started time.Time `json:"started"`

	Problems  []Problem  `json:"problems"` // the gravest first
	Refusals  []Refusal  `json:"refusals"`
	Peers     []Peer     `json:"peers"` // the others, without this host
	Seeds     []Seed     `json:"seeds"`
	Segments  []Segment  `json:"segments"`
	Endpoints []Endpoint `json:"endpoints"`
	Exposed   []Exposed  `json:"exposed"` // this host's own addresses on segments
	IPAM      []Pool     `json:"ipam"`
	DNS       *DNS       `json:"dns,omitempty"` // nil while the plugin does no work

	// Dropped counts datagrams between hosts, and streams, that were dropped,
	// by reason: a host that reaches the port can cause any of them.
	Dropped map[string]uint64 `json:"dropped,omitempty"`

	// Relayed is the bytes that this host passed on for hosts that do not reach
	// each other.
	Relayed uint64 `json:"relayedBytes,omitempty"`
}

// LAN tells how hosts on the same LAN are found.
type LAN struct {
	Port    uint16   `json:"port"`    // UDP
	Links   []string `json:"links"`   // that this host is announced on
	Foreign uint64   `json:"foreign"` // announcements heard of hosts with another password
}

// Severity tells how bad a problem is.
type Severity string

// The severities.
const (
	Error   Severity = "error"   // work is refused, or something does not work
	Warning Severity = "warning" // something works less well than it should
)

// Problem is something that a person should know and can change.
type Problem struct {
	Severity Severity `json:"severity"`
	What     string   `json:"what"` // one sentence, without a full stop
	Do       string   `json:"do"`   // the way out, in the same form
}

// Refusal is an address that was not let in, or did not let us in. What such a
// stranger says of itself is not proven.
type Refusal struct {
	Address netip.Addr `json:"address"`
	Why     string     `json:"why"`
	Do      string     `json:"do"`
	Count   uint64     `json:"count"`
	Last    time.Time  `json:"last"`
}

// PeerState tells whether a peer can be reached.
type PeerState string

// The states of a peer.
const (
	Up         PeerState = "up"
	Connecting PeerState = "connecting"
	Down       PeerState = "down"
)

// Peer is another host of the cluster.
type Peer struct {
	ID        string           `json:"id"`
	Nickname  string           `json:"nickname"`
	State     PeerState        `json:"state"`
	Path      string           `json:"path"` // how it is reached: "direct UDP" or "relay"
	Address   netip.AddrPort   `json:"address,omitzero"`
	Via       string           `json:"via,omitempty"`  // nickname of the next host on the way, if it is not the peer itself
	Hops      int              `json:"hops,omitempty"` // links on the way; 1 is direct
	Addresses []netip.AddrPort `json:"addresses"`      // all candidates
	RTT       time.Duration    `json:"rttNanoseconds"`
	PathMTU   int              `json:"pathMTU,omitempty"` // in bytes, if the path is by UDP
	Loss      float64          `json:"loss"`              // share of the pings of late that have no answer, on this path
	Pings     int              `json:"pings"`             // of late, whose answer is due; 0: Loss is not known
	Lossy     bool             `json:"lossy,omitempty"`   // Loss is high, and not for a moment only
	Since     time.Time        `json:"since,omitzero"`    // of the state
	PathSince time.Time        `json:"pathSince,omitzero"`
	KeysSince time.Time        `json:"keysSince,omitzero"` // when the session's keys were agreed on
	NAT       string           `json:"nat,omitempty"`      // what it says that stands before it, as in Status
	Heard     time.Time        `json:"heard,omitzero"`     // its last authentic datagram
	Sent      uint64           `json:"sentBytes"`
	Received  uint64           `json:"receivedBytes"`
	Error     string           `json:"error,omitempty"` // the last one

	Frames    Carrier `json:"frames,omitempty"`    // what containers' frames to it go by, while it is up
	FramesWhy string  `json:"framesWhy,omitempty"` // why not by VXLAN, or not all of them
}

// Carrier is a way from host to host for the frames of containers.
type Carrier string

// The carriers.
const (
	VXLAN  Carrier = "VXLAN"      // the kernel's, not encrypted
	Sealed Carrier = "sealed UDP" // the plugin's, encrypted
	TCP    Carrier = "sealed TCP" // the same over TCP, where UDP is blocked
	Relay  Carrier = "relay"      // the same, passed on by other hosts, which cannot read it
)

// Seed is an address that the operator named.
type Seed struct {
	Address string    `json:"address"` // host:port
	Met     bool      `json:"met"`     // a peer of this cluster answers there
	Self    bool      `json:"self"`    // it is this host
	Error   string    `json:"error,omitempty"`
	Tried   time.Time `json:"tried,omitzero"` // zero: not yet
}

// Segment is a layer-2 domain that this host takes part in.
type Segment struct {
	Key       string       `json:"key"`
	Subnet    netip.Prefix `json:"subnet,omitzero"`
	ID        string       `json:"id"`
	MTU       int          `json:"mtu"`
	VNI       uint32       `json:"vni,omitempty"` // its number on VXLAN
	Networks  []Network    `json:"networks"`      // of this host
	Members   []string     `json:"members"`       // nicknames of the peers that have it, this host included
	Endpoints int          `json:"endpoints"`     // of this host
}

// Network is one of Docker's networks on this host.
type Network struct {
	ID   string `json:"id"`
	Name string `json:"name"` // empty until the engine was asked
}

// KindHost is the kind of an Endpoint that is a host's own.
const KindHost = "host"

// Endpoint is a container's attachment, on this host or another.
type Endpoint struct {
	ID        string       `json:"id"`
	Container string       `json:"container"` // its name; empty if not known
	MAC       string       `json:"mac"`
	Addresses []netip.Addr `json:"addresses"`
	Network   string       `json:"network,omitempty"` // name or ID, of local ones
	Segment   string       `json:"segment"`           // its key
	Host      string       `json:"host"`              // nickname of the peer
	Peer      string       `json:"peer"`              // its ID
	Local     bool         `json:"local"`
	Kind      string       `json:"kind,omitempty"` // empty for a container's
}

// Pool is a subnet that addresses are given from.
type Pool struct {
	Subnet netip.Prefix `json:"subnet"`
	Size   uint64       `json:"size"`   // addresses in all; 2^64-1 stands for more
	Owned  uint64       `json:"owned"`  // by this host
	Leased uint64       `json:"leased"` // of those
	Free   uint64       `json:"free"`   // of those
	// FreeElsewhere is what the other hosts last said that they have free.
	FreeElsewhere uint64   `json:"freeElsewhere"`
	Owners        []Owner  `json:"owners"`
	Conflicts     []string `json:"conflicts"` // one sentence each
	// Trouble is what else is wrong, with the way out. What is wrong with all
	// pools is in each of them.
	Trouble []string `json:"trouble,omitempty"`
}

// Owner is a peer that owns addresses of a pool.
type Owner struct {
	Peer     string `json:"peer"`
	Nickname string `json:"nickname"`
	Owned    uint64 `json:"owned"`
}

// ConnectResult tells what came of one address of a Connect call.
type ConnectResult struct {
	Address  string `json:"address"` // host:port
	Peer     string `json:"peer,omitempty"`
	Nickname string `json:"nickname,omitempty"`
	Self     bool   `json:"self,omitempty"`  // it is this host: the address is not kept
	Error    string `json:"error,omitempty"` // why there is no peer; the address is tried again
	Do       string `json:"do,omitempty"`    // the way out
}
