package tunnel

import "weave/mesh/fdb"

// Lengths in bytes.
const (
	ethernetLen = 14
	vlanLen     = 4
)

// parseEthernet reads the addresses of a frame. A frame without a source that
// can be answered is not ok: bridges drop it too.
func parseEthernet(frame []byte) (to, source fdb.MAC, ok bool) {
	if len(frame) < ethernetLen {
		return to, source, false
	}
	to, source = fdb.MAC(frame), fdb.MAC(frame[6:])
	return to, source, !source.Multicast() && source != fdb.MAC{}
}
