package mesh

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"unicode"

	"weave/mesh/fdb"
	"weave/mesh/id"
	"weave/mesh/state"
	"weave/mesh/tunnel"
	"weave/mesh/vni"
)

// Kinds of records that peers publish about themselves.
const (
	kindSegment  = "segment"  // key: segment key, value: segmentRecord
	kindEndpoint = "endpoint" // key: endpoint ID, value: endpointRecord
	kindFree     = "free"     // key: pool, value: freeRecord
)

// MAC is an Ethernet address.
type MAC = fdb.MAC

// Endpoint is a container's attachment to a segment, as its host announces it.
type Endpoint struct {
	ID        string
	Segment   string
	MAC       MAC
	Addrs     []netip.Addr // not to be changed
	Bits      []int        // lengths of the subnets that Addrs are of, or none
	Container string       // name, empty until it is known
	OfHost    bool         // it is its host's own, no container's
}

// Has tells whether an address of a pool, which is a subnet, is the endpoint's.
// Who does not tell the subnets of its addresses may have them of any.
func (e Endpoint) Has(pool netip.Prefix, a netip.Addr) bool {
	i := slices.Index(e.Addrs, a)
	return i >= 0 && pool.Contains(a) && (len(e.Bits) == 0 || e.Bits[i] == pool.Bits())
}

// OwnedEndpoint is an endpoint and the peer that announced it.
type OwnedEndpoint struct {
	Endpoint
	Owner id.PeerID
}

// endpointRecord is an Endpoint as it is published.
type endpointRecord struct {
	Segment   string       `json:"segment"`
	MAC       string       `json:"mac"`
	Addrs     []netip.Addr `json:"addrs"`
	Bits      []int        `json:"bits,omitempty"`
	Container string       `json:"container,omitempty"`
	OfHost    bool         `json:"host,omitempty"`
}

// Bounds on an endpoint's record.
const (
	maxEndpointAddrs = 8   // one of each family, and room for what Docker may bring
	maxContainer     = 128 // bytes of the name that are shown
)

// encode checks an endpoint as its receivers will.
func (e Endpoint) encode() ([]byte, error) {
	value := recordValue(endpointRecord{e.Segment, e.MAC.String(), e.Addrs, e.Bits, printable(e.Container, maxContainer), e.OfHost})
	_, err := decodeEndpoint(e.ID, value)
	return value, err
}

func decodeEndpoint(key string, value []byte) (Endpoint, error) {
	var r endpointRecord
	if err := json.Unmarshal(value, &r); err != nil {
		return Endpoint{}, fmt.Errorf("endpoint record: %w", err)
	}
	hw, err := net.ParseMAC(r.MAC)
	if err != nil || len(hw) != len(MAC{}) {
		return Endpoint{}, fmt.Errorf("endpoint record: MAC address %.40q", r.MAC)
	}
	mac := MAC(hw)
	if mac.Multicast() || mac == (MAC{}) {
		return Endpoint{}, fmt.Errorf("endpoint record: MAC address %s", mac)
	}
	if key == "" || r.Segment == "" || len(r.Segment) > state.MaxKey {
		return Endpoint{}, errors.New("endpoint record: no ID, or no segment")
	}
	if len(r.Addrs) > maxEndpointAddrs || len(r.Bits) > 0 && len(r.Bits) != len(r.Addrs) {
		return Endpoint{}, fmt.Errorf("endpoint record: %d addresses, %d lengths of subnets", len(r.Addrs), len(r.Bits))
	}
	for i, a := range r.Addrs {
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
			return Endpoint{}, fmt.Errorf("endpoint record: address %q", a)
		}
		r.Addrs[i] = a.Unmap()
	}
	return Endpoint{key, r.Segment, mac, r.Addrs, r.Bits, printable(r.Container, maxContainer), r.OfHost}, nil
}

// segmentRecord says that its owner has a network on the segment, and what it
// uses there: who comes later follows.
type segmentRecord struct {
	MTU   int    `json:"mtu"`
	VNI   uint32 `json:"vni,omitempty"`   // see package vni; 0 for none
	VXLAN bool   `json:"vxlan,omitempty"` // its owner takes VXLAN frames with that VNI
}

func decodeSegment(value []byte) (segmentRecord, error) {
	var s segmentRecord
	if err := json.Unmarshal(value, &s); err != nil {
		return segmentRecord{}, fmt.Errorf("segment record: %w", err)
	}
	if s.MTU < tunnel.MinMTU || s.MTU > tunnel.MaxMTU {
		return segmentRecord{}, fmt.Errorf("segment record: MTU %d", s.MTU)
	}
	if s.VNI != 0 && !vni.Valid(s.VNI) || s.VXLAN && s.VNI == 0 {
		return segmentRecord{}, fmt.Errorf("segment record: VNI %d", s.VNI)
	}
	return s, nil
}

// freeRecord says how many addresses of a pool its owner could give away.
type freeRecord struct {
	Free uint64 `json:"free"`
}

func decodeFree(value []byte) (freeRecord, error) {
	var f freeRecord
	if err := json.Unmarshal(value, &f); err != nil {
		return freeRecord{}, fmt.Errorf("record of free space: %w", err)
	}
	return f, nil
}

// recordValue encodes a record's value. The types of this package always
// marshal.
func recordValue(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("mesh: record does not marshal: " + err.Error())
	}
	return b
}

// printable makes another host's text fit to be shown: at most limit bytes, and
// nothing that disturbs a terminal.
func printable(s string, limit int) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) && r != unicode.ReplacementChar {
			return r
		}
		return '?'
	}, s[:min(len(s), limit)])
}
