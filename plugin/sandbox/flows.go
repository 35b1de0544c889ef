package sandbox

import (
	"bytes"
	"encoding/binary"
	"os"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// maxFlows bounds the memory for what one sandbox has to forget.
const maxFlows = 4096

const (
	trackingGet    = unix.NFNL_SUBSYS_CTNETLINK<<8 | nl.IPCTNL_MSG_CT_GET
	trackingDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | nl.IPCTNL_MSG_CT_DELETE
)

// forgetFlows has the kernel forget where the datagrams go that are sent to
// Docker's resolver in the namespace of the calling thread. Rules are asked for the
// first datagram of a flow only, and programs that keep a socket to the resolver
// (nginx, dnsmasq) keep the flow alive: for them no change of rules would come
// into effect. A question that is under way loses its answer, and is asked again. A
// kernel that does not tell of flows by netlink forgets them once they are idle.
// They are looked at one by one: a container can have flows without end. A fresh one
// has none, and is spared the search, which goes through those of all containers.
func forgetFlows() {
	count, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
	if err == nil && strings.TrimSpace(string(count)) == "0" {
		return
	}
	var tuples [][]byte
	_ = trackingRequest(trackingGet, unix.NLM_F_DUMP).ExecuteIter(unix.NETLINK_NETFILTER, 0, func(flow []byte) bool {
		tuple := find(flow[min(len(flow), nl.SizeofNfgenmsg):], nl.CTA_TUPLE_ORIG)
		if isQuestion(tuple) {
			tuples = append(tuples, bytes.Clone(tuple))
		}
		return len(tuples) < maxFlows
	})
	for _, tuple := range tuples {
		r := trackingRequest(trackingDelete, unix.NLM_F_ACK)
		r.AddData(nl.NewRtAttr(nl.CTA_TUPLE_ORIG|unix.NLA_F_NESTED, tuple))
		_, _ = r.Execute(unix.NETLINK_NETFILTER, 0)
	}
}

func trackingRequest(kind, flags int) *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(kind, flags)
	r.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_INET, Version: unix.NFNETLINK_V0})
	return r
}

// isQuestion tells whether the tuple of a flow leads by UDP to Docker's resolver.
func isQuestion(tuple []byte) bool {
	protocol := find(tuple, nl.CTA_TUPLE_PROTO)
	return bytes.Equal(find(tuple, nl.CTA_TUPLE_IP, nl.CTA_IP_V4_DST), Resolver.Addr().AsSlice()) &&
		bytes.Equal(find(protocol, nl.CTA_PROTO_NUM), []byte{unix.IPPROTO_UDP}) &&
		bytes.Equal(find(protocol, nl.CTA_PROTO_DST_PORT), binary.BigEndian.AppendUint16(nil, Resolver.Port()))
}

// find returns the value of an attribute, nested in others of those kinds; nil if
// there is none.
func find(attrs []byte, kinds ...uint16) []byte {
	for _, kind := range kinds {
		all, err := nl.ParseRouteAttr(attrs)
		if err != nil {
			return nil
		}
		attrs = nil
		for _, a := range all {
			if a.Attr.Type&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER) == kind {
				attrs = a.Value
			}
		}
	}
	return attrs
}
