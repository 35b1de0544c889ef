package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Bounds of the settings for names.
const (
	maxDomain   = 64        // bytes: names before it need the rest of what DNS allows
	maxTTL      = time.Hour // what is older is wrong, most likely
	maxSegments = 256
	maxSegment  = 64 // bytes of a segment's name
	dnsPort     = 53
)

func (r *reader) dnsDomain() string {
	v, ok := r.get(DNSDomain)
	if !ok {
		return DefaultDNSDomain
	}
	domain := strings.ToLower(strings.Trim(v, "."))
	err := checkHostName(domain)
	if err == nil && len(domain) > maxDomain {
		err = fmt.Errorf("domain of %d bytes, want at most %d", len(domain), maxDomain)
	}
	for label := range strings.SplitSeq(domain, ".") {
		if err == nil && (label == "" || len(label) > 63) {
			err = fmt.Errorf("a part of the domain has %d bytes, want 1 to 63", len(label))
		}
	}
	if err != nil {
		r.bad(DNSDomain, v, err.Error(), "set a domain that is used for nothing else, or leave it out for "+DefaultDNSDomain)
		return DefaultDNSDomain
	}
	return domain
}

func (r *reader) dnsTTL() time.Duration {
	v, ok := r.get(DNSTTL)
	if !ok {
		return DefaultDNSTTL
	}
	ttl, err := time.ParseDuration(v)
	if err != nil || ttl < 0 || ttl > maxTTL || ttl%time.Second != 0 {
		r.bad(DNSTTL, v, "not whole seconds up to an hour", "set a time such as 10s, or leave it out for 1s")
		return DefaultDNSTTL
	}
	return ttl
}

// dnsListen wants one address: what answers on all of a host's would answer from
// another one than it was asked on.
func (r *reader) dnsListen() netip.AddrPort {
	v, ok := r.get(DNSListen)
	if !ok {
		return netip.AddrPort{}
	}
	listen, err := netip.ParseAddrPort(v)
	if addr, noPort := netip.ParseAddr(strings.Trim(v, "[]")); err != nil && noPort == nil {
		listen, err = netip.AddrPortFrom(addr, dnsPort), nil
	}
	if a := listen.Addr(); err != nil || a.IsUnspecified() || a.IsMulticast() || listen.Port() == 0 {
		r.bad(DNSListen, v, "not an IP address of this host, with or without a port", "set one such as 192.0.2.7 or 192.0.2.7:5353, or leave it out to answer containers only")
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(listen.Addr().Unmap(), listen.Port())
}

func (r *reader) dnsSegments() (segments []string) {
	v, ok := r.get(DNSSegments)
	if !ok {
		return nil
	}
	for _, s := range SplitPeers(v) {
		subnet, err := netip.ParsePrefix(s)
		switch {
		case err == nil && subnet == subnet.Masked():
		case len(segments) == maxSegments:
			r.bad(DNSSegments, v, fmt.Sprintf("more than %d segments", maxSegments), "name fewer, or leave it out for all of this host")
			return segments
		case err == nil, !isSegmentName(s):
			r.bad(DNSSegments, s, "neither a subnet nor the name of a segment", "name subnets like 10.32.0.0/16, or what weave.segment was set to, with a comma or a space between two")
			continue
		}
		if !slices.Contains(segments, s) {
			segments = append(segments, s)
		}
	}
	return segments
}

// isSegmentName tells whether a network can have a segment of that name.
func isSegmentName(s string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyz"
	return s != "" && len(s) <= maxSegment && strings.Trim(s, letters+strings.ToUpper(letters)+"0123456789._-") == ""
}
