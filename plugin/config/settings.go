package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/sirupsen/logrus"
)

// Bounds of the settings.
const (
	MaxNickname = 63   // bytes
	MaxPeers    = 256  // addresses
	MinMTU      = 576  // what every IPv4 host must take
	MaxMTU      = 9000 // jumbo frames
	minRange    = 8    // prefix length of the largest WEAVE_IPALLOC_RANGE
	maxRange    = 28   // and of the smallest

	maxHostName = 253 // bytes, RFC 1035
	maxShown    = 200 // bytes of a bad value that are repeated to the user
)

// reader collects the problems of the settings it has read.
type reader struct {
	lookup   func(string) (string, bool)
	problems []Problem
}

// get returns the value without surrounding space, and false if it is empty.
func (r *reader) get(setting string) (string, bool) {
	v, _ := r.lookup(setting)
	v = strings.TrimSpace(v)
	return v, v != ""
}

func (r *reader) bad(setting, value, why, wayOut string) {
	value = strings.Map(func(c rune) rune {
		if unicode.IsPrint(c) {
			return c
		}
		return '?'
	}, value[:min(len(value), maxShown)])
	r.problems = append(r.problems, Problem{Setting: setting, Value: value, Why: why, WayOut: wayOut})
}

func (r *reader) dir(setting, fallback string) string {
	v, ok := r.get(setting)
	if !ok {
		return fallback
	}
	if !filepath.IsAbs(v) || strings.ContainsRune(v, 0) {
		r.bad(setting, v, "not an absolute path", "set a path like "+fallback)
		return fallback
	}
	return filepath.Clean(v)
}

func (r *reader) port() uint16 {
	v, ok := r.get(Port)
	if !ok {
		return DefaultPort
	}
	n, err := parsePort(v)
	if n == LANPort {
		err = errors.New("hosts on one LAN find each other by that port")
	}
	if err != nil {
		r.bad(Port, v, err.Error(), fmt.Sprintf("set a free port, the same for UDP and TCP, or leave it out for %d", DefaultPort))
		return DefaultPort
	}
	return n
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '+' {
		return 0, errors.New("port is not a number from 1 to 65535")
	}
	return uint16(n), nil
}

// tcpPort may be Port itself: then it says nothing new.
func (r *reader) tcpPort() uint16 {
	v, ok := r.get(TCPPort)
	if !ok {
		return 0
	}
	n, err := parsePort(v)
	if err != nil {
		r.bad(TCPPort, v, err.Error(), "set the port that firewalls let out, the same on all hosts, such as 443, or leave it out")
	}
	return n
}

// proxy does not show its value where it is bad: a password may be in it.
func (r *reader) proxy() *url.URL {
	v, ok := r.get(Proxy)
	if !ok {
		return nil
	}
	u, err := url.Parse(v)
	if err == nil {
		_, err = parsePort(u.Port())
	}
	if err != nil || u.Scheme != "http" || u.Hostname() == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		r.bad(Proxy, "", "not the address of an HTTP proxy", "set http://host:port, or http://user:password@host:port, or leave it out")
		return nil
	}
	return u
}

func (r *reader) discover() Discovery {
	v, ok := r.get(Discover)
	d := Discovery(strings.ToLower(v))
	switch {
	case !ok:
		return DiscoverOn
	case d != DiscoverOn && d != DiscoverLAN && d != DiscoverOff:
		r.bad(Discover, v, "not one of on, lan, off", "set lan to find hosts on the same LAN, off to connect to no hosts but those of "+Peers+" and `weave connect`, or leave it out")
		return DiscoverOn
	}
	return d
}

func (r *reader) everywhere() bool {
	v, ok := r.get(Networks)
	switch strings.ToLower(v) {
	case "everywhere":
		return true
	case "local":
	default:
		if ok {
			r.bad(Networks, v, "not one of local, everywhere", "set everywhere to have the networks of each host on all hosts, or leave it out")
		}
	}
	return false
}

// peers keeps the good addresses where some are bad.
func (r *reader) peers(port uint16) []string {
	v, ok := r.get(Peers)
	if !ok {
		return nil
	}
	var peers []string
	for _, s := range SplitPeers(v) {
		p, err := ParsePeer(s, port)
		switch {
		case err != nil:
			r.bad(Peers, s, err.Error(), "write host, host:port, or [IPv6]:port, with a comma or a space between two")
		case len(peers) == MaxPeers:
			r.bad(Peers, v, fmt.Sprintf("more than %d addresses", MaxPeers), "name a few peers only, the others are found through them")
			return peers
		case !slices.Contains(peers, p):
			peers = append(peers, p)
		}
	}
	return peers
}

// SplitPeers cuts a list of peers at commas and white space.
func SplitPeers(list string) []string {
	return strings.FieldsFunc(list, func(c rune) bool { return c == ',' || unicode.IsSpace(c) })
}

// ParsePeer reads host, host:port, [IPv6]:port or a bare IPv6 address, and
// returns host:port, with port where s has none.
func ParsePeer(s string, port uint16) (string, error) {
	host, p := s, strconv.Itoa(int(port))
	if inner, ok := strings.CutPrefix(s, "["); ok && strings.HasSuffix(inner, "]") {
		host = strings.TrimSuffix(inner, "]")
	} else if _, err := netip.ParseAddr(s); err != nil && strings.Contains(s, ":") {
		if host, p, err = net.SplitHostPort(s); err != nil {
			return "", errors.New("not of the form host:port")
		}
	}
	if _, err := parsePort(p); err != nil {
		return "", err
	}
	if a, err := netip.ParseAddr(host); err == nil {
		linkLocal := a.Is6() && a.IsLinkLocalUnicast()
		switch {
		case a.IsUnspecified() || a.IsMulticast():
			return "", errors.New("not the address of one host")
		case linkLocal && a.Zone() == "":
			return "", fmt.Errorf("link-local address without the link that leads there, as in %s%%eth0", a)
		case !linkLocal && a.Zone() != "":
			return "", errors.New("only link-local addresses, fe80:…, have a zone")
		}
		host = a.Unmap().String()
	} else if err := checkHostName(host); err != nil {
		return "", err
	}
	return net.JoinHostPort(host, strings.TrimLeft(p, "0")), nil
}

// checkHostName lets through what a resolver may be asked for.
func checkHostName(host string) error {
	if host == "" || len(host) > maxHostName {
		return fmt.Errorf("host name of %d bytes, want 1 to %d", len(host), maxHostName)
	}
	onlyDigits := true
	for _, c := range []byte(host) {
		letter := 'a' <= c|0x20 && c|0x20 <= 'z' || c == '-' || c == '_'
		digit := '0' <= c && c <= '9' || c == '.'
		if !letter && !digit {
			return fmt.Errorf("host name with %q", c)
		}
		onlyDigits = onlyDigits && digit
	}
	if onlyDigits {
		return errors.New("not an IPv4 address")
	}
	return nil
}

func (r *reader) address() netip.Addr {
	v, ok := r.get(Address)
	if !ok {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(v)
	if err != nil || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" || a.Is6() && a.IsLinkLocalUnicast() {
		r.bad(Address, v, "not the IP address of one host", "set an address of this host that the others reach, or leave it out for that of the default route")
		return netip.Addr{}
	}
	return a.Unmap()
}

func (r *reader) nickname(hostname func() (string, error)) string {
	v, ok := r.get(Nickname)
	if !ok {
		return defaultNickname(hostname)
	}
	if len(v) > MaxNickname || v != printable(v) {
		r.bad(Nickname, v, "too long, or has characters that do not print", fmt.Sprintf("set 1 to %d printable bytes without a space", MaxNickname))
		return defaultNickname(hostname)
	}
	return v
}

func defaultNickname(hostname func() (string, error)) string {
	name, err := hostname()
	name = printable(name)
	if err != nil || name == "" {
		return "unnamed"
	}
	return name[:min(len(name), MaxNickname)]
}

// printable drops what could disturb a terminal or a table. Only ASCII is left,
// so the result may be cut anywhere.
func printable(s string) string {
	return strings.Map(func(c rune) rune {
		if c <= ' ' || c >= 0x7f {
			return -1
		}
		return c
	}, s)
}

func (r *reader) ipAllocRange() netip.Prefix {
	v, ok := r.get(IPAllocRange)
	if !ok {
		return DefaultIPAllocRange()
	}
	const wayOut = "set an IPv4 subnet that no route of the hosts overlaps, like 10.32.0.0/12"
	p, err := netip.ParsePrefix(v)
	switch {
	case err != nil || !p.Addr().Is4():
		r.bad(IPAllocRange, v, "not an IPv4 subnet", wayOut)
	case p != p.Masked():
		r.bad(IPAllocRange, v, "has host bits set", "did you mean "+p.Masked().String()+"?")
	case p.Bits() < minRange || p.Bits() > maxRange:
		r.bad(IPAllocRange, v, fmt.Sprintf("prefix length not from %d to %d", minRange, maxRange), wayOut)
	case p.Addr().IsMulticast() || p.Addr().IsLoopback() || p.Addr().As4()[0] == 0 || p.Addr().As4()[0] >= 240:
		r.bad(IPAllocRange, v, "not a range that containers can use", wayOut)
	default:
		return p
	}
	return DefaultIPAllocRange()
}

func (r *reader) mtu() int {
	v, ok := r.get(MTU)
	if !ok {
		return 0
	}
	n, err := strconv.Atoi(v)
	if err != nil || n != 0 && (n < MinMTU || n > MaxMTU) {
		r.bad(MTU, v, fmt.Sprintf("not a number from %d to %d", MinMTU, MaxMTU), "leave it out for what the network between the hosts allows")
		return 0
	}
	return n
}

func (r *reader) logLevel() logrus.Level {
	v, ok := r.get(LogLevel)
	if !ok {
		return DefaultLogLevel
	}
	level, err := logrus.ParseLevel(v)
	if err != nil || level < logrus.ErrorLevel || level > logrus.DebugLevel {
		r.bad(LogLevel, v, "no such level", "set one of debug, info, warning, error")
		return DefaultLogLevel
	}
	return level
}
