package driver

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	api "github.com/docker/go-plugins-helpers/network"
)

// Keys of CreateNetwork's options. Docker puts the user's `-o` options into
// genericKey; what stands beside it is Docker's own.
const (
	genericKey    = "com.docker.network.generic"
	internalKey   = "com.docker.network.internal"
	enableIPv4Key = "com.docker.network.enable_ipv4"
	enableIPv6Key = "com.docker.network.enable_ipv6"
	dockerMTUKey  = "com.docker.network.driver.mtu"
	segmentKey    = "weave.segment"
	mtuKey        = "weave.mtu"
	dnsKey        = "weave.dns"
)

// DNS says how the containers of a network find others by name.
type DNS string

// The values of DNS.
const (
	DNSOn         DNS = ""            // on all hosts
	DNSLocalFirst DNS = "local-first" // as before, of several addresses those on the same host first
	DNSOff        DNS = "off"         // on the same host only, by Docker itself
)

// Limits of an MTU. Below minIPv6MTU a link carries no IPv6.
const (
	minMTU     = 68
	minIPv6MTU = 1280
	maxMTU     = 65000
)

// parseNetwork checks a request and returns the record that it asks for, still
// without the names of links.
func parseNetwork(req *api.CreateNetworkRequest) (networkRecord, error) {
	r := networkRecord{ID: req.NetworkID}
	if err := checkID("network", req.NetworkID); err != nil {
		return r, err
	}
	for _, family := range [][]*api.IPAMData{req.IPv4Data, req.IPv6Data} {
		subnet, ok, err := parsePool(family)
		if err != nil {
			return r, err
		}
		if ok {
			r.Subnets = append(r.Subnets, subnet)
		}
	}
	if len(r.Subnets) == 0 {
		return r, errors.New("the network has no address pool: create it with --ipam-driver weave")
	}
	r.Segment = r.Subnets[0].String()
	if err := r.parseOptions(req.Options); err != nil {
		return r, err
	}
	return r, r.checkMTU(r.WantMTU)
}

// parsePool returns the subnet of one family, if there is one.
func parsePool(data []*api.IPAMData) (netip.Prefix, bool, error) {
	if len(data) > 1 {
		return netip.Prefix{}, false, fmt.Errorf(
			"%d subnets of one family: a weave network has one; create a network for each", len(data))
	}
	if len(data) == 0 || data[0] == nil || data[0].Pool == "" {
		return netip.Prefix{}, false, nil
	}
	pool, err := netip.ParsePrefix(data[0].Pool)
	if err != nil {
		return netip.Prefix{}, false, fmt.Errorf("address pool %q: %w", data[0].Pool, err)
	}
	addr := pool.Addr()
	if pool.Bits() == 0 || addr.Is4In6() || addr.IsLoopback() || addr.IsMulticast() || addr.IsLinkLocalUnicast() {
		return netip.Prefix{}, false, fmt.Errorf("address pool %s is no subnet for containers: give one like --subnet 10.32.0.0/16", pool)
	}
	return pool.Masked(), true, nil
}

func (r *networkRecord) parseOptions(options map[string]any) error {
	var err error
	if r.Internal, err = parseFlag(options, internalKey); err != nil {
		return err
	}
	if options[genericKey] == nil {
		return nil
	}
	generic, ok := options[genericKey].(map[string]any)
	if !ok {
		return fmt.Errorf("option %s: want a map of options", genericKey)
	}
	for _, key := range slices.Sorted(maps.Keys(generic)) {
		if err := r.parseOption(key, generic); err != nil {
			return err
		}
	}
	return nil
}

func (r *networkRecord) parseOption(key string, generic map[string]any) error {
	switch key {
	case enableIPv4Key, enableIPv6Key: // the pools say so
		return nil
	case internalKey:
		internal, err := parseFlag(generic, key)
		r.Internal = r.Internal || internal
		return err
	}
	value, ok := generic[key].(string)
	if !ok {
		return fmt.Errorf("option %s: want text, not %v", key, generic[key])
	}
	switch key {
	case segmentKey:
		if !isSegmentName(value) {
			return fmt.Errorf("option %s=%.80q: want 1 to 64 letters, digits, dots, dashes and underscores", key, value)
		}
		r.Segment = "name:" + value
	case mtuKey, dockerMTUKey:
		mtu, err := strconv.Atoi(value)
		if err != nil || mtu < minMTU || mtu > maxMTU {
			return fmt.Errorf("option %s=%.80q: want a number from %d to %d", key, value, minMTU, maxMTU)
		}
		if r.WantMTU != 0 && r.WantMTU != mtu {
			return fmt.Errorf("options %s and %s differ: give one of them", mtuKey, dockerMTUKey)
		}
		r.WantMTU = mtu
	case dnsKey:
		switch dns := DNS(value); dns {
		case DNSLocalFirst, DNSOff:
			r.DNS = dns
		case "on":
		default:
			return fmt.Errorf("option %s=%.80q: want on, %s or %s", key, value, DNSLocalFirst, DNSOff)
		}
	default:
		known := []string{segmentKey, mtuKey, dnsKey, dockerMTUKey}
		return fmt.Errorf("unknown option %.80q: weave knows %s", key, strings.Join(known, ", "))
	}
	return nil
}

func isSegmentName(s string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyz"
	return s != "" && len(s) <= 64 && strings.Trim(s, letters+strings.ToUpper(letters)+"0123456789._-") == ""
}

// parseFlag reads a flag that is a boolean or the text of one; absent is
// false.
func parseFlag(options map[string]any, key string) (bool, error) {
	switch v := options[key].(type) {
	case nil:
		return false, nil
	case bool:
		return v, nil
	case string:
		if b, err := strconv.ParseBool(v); err == nil {
			return b, nil
		}
	}
	return false, fmt.Errorf("option %s: want true or false, not %v", key, options[key])
}

// checkMTU refuses an MTU (0: none yet) that the network's families cannot
// live with.
func (r *networkRecord) checkMTU(mtu int) error {
	is6 := func(p netip.Prefix) bool { return p.Addr().Is6() }
	if mtu != 0 && mtu < minIPv6MTU && slices.ContainsFunc(r.Subnets, is6) {
		return fmt.Errorf("MTU %d: IPv6 needs at least %d; set it with -o %s or leave IPv6 out", mtu, minIPv6MTU, mtuKey)
	}
	return nil
}
