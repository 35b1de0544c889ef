// Package config turns the plugin's environment into one validated Config.
// Every setting, its default and its bounds live here.
//
// It never fails: a value that it cannot use becomes a Problem and the setting
// keeps its default, because a plugin that exits at start is disabled for good
// by dockerd. The package logs nothing and starts nothing; besides the
// environment it reads the host's name and the password file.
package config

import (
	"math"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/sirupsen/logrus"
)

// Names of the settings in the environment.
const (
	Password     = "WEAVE_PASSWORD"
	PasswordFile = "WEAVE_PASSWORD_FILE"
	Peers        = "WEAVE_PEERS"
	Port         = "WEAVE_PORT"
	TCPPort      = "WEAVE_TCP_PORT"
	Proxy        = "WEAVE_PROXY"
	Discover     = "WEAVE_DISCOVER"
	Networks     = "WEAVE_NETWORKS"
	Address      = "WEAVE_ADDRESS"
	Nickname     = "WEAVE_NICKNAME"
	IPAllocRange = "WEAVE_IPALLOC_RANGE"
	MTU          = "WEAVE_MTU"
	DNSDomain    = "WEAVE_DNS_DOMAIN"
	DNSTTL       = "WEAVE_DNS_TTL"
	DNSListen    = "WEAVE_DNS_LISTEN"
	DNSSegments  = "WEAVE_DNS_SEGMENTS"
	LogLevel     = "WEAVE_LOG_LEVEL"
	State        = "WEAVE_STATE"
	Run          = "WEAVE_RUN"
)

// Defaults of the settings that have a fixed one.
const (
	DefaultPort     = 6783
	LANPort         = 6785 // UDP, where hosts on one LAN find each other; fixed
	DefaultLogLevel = logrus.InfoLevel

	DefaultDNSDomain = "weave.local"
	DefaultDNSTTL    = time.Second
)

// Discovery tells which hosts the plugin connects to by itself, beside those that
// it is told of.
type Discovery string

// The values of Discover.
const (
	DiscoverOn  Discovery = "on"  // all hosts of the cluster
	DiscoverLAN Discovery = "lan" // these, and it finds hosts on the same LAN
	DiscoverOff Discovery = "off" // none
)

// DefaultIPAllocRange is where pools come from that name no subnet.
func DefaultIPAllocRange() netip.Prefix { return netip.MustParsePrefix("10.32.0.0/12") }

// HostState is the state folder as a person on the host names it.
const HostState = "/var/lib/weave"

// Config is what the daemon is built from. It is fit for use even where
// problems were found, but then the daemon must refuse work: a missing password
// would otherwise mean an open network.
type Config struct {
	Password     []byte       // nil: frames are not sealed with a secret
	Peers        []string     // host:port each, in the order given, no duplicates
	Port         uint16       // UDP and TCP
	TCPPort      uint16       // a further one for TCP; 0: none
	Proxy        *url.URL     // HTTP proxy, with host and port; nil: none
	Discover     Discovery    //
	Everywhere   bool         // networks of one host are to be on all
	Address      netip.Addr   // underlay address; the zero Addr means that of the default route
	Nickname     string       // 1 to MaxNickname bytes
	IPAllocRange netip.Prefix // IPv4, in canonical form
	MTU          int          // of the overlay's interfaces; 0 means what the underlay leaves
	LogLevel     logrus.Level //

	DNSDomain   string         // that containers' names may have behind them; lower case, no dots around it
	DNSTTL      time.Duration  // of answers; whole seconds
	DNSListen   netip.AddrPort // where names are answered to others than containers; zero: nowhere
	DNSSegments []string       // that are seen there: subnets, and names given by weave.segment; none means all of this host

	Managed bool // Docker runs it as a managed plugin, and has its settings

	State string // absolute path of the state folder
	Run   string // absolute path of the host's /run
}

// StateFile is the path of the durable state.
func (c Config) StateFile() string { return filepath.Join(c.State, "weave.db") }

// VXLANPort is the UDP port of the fast path: the one after Port, or before it
// if that is the last there is, or LANPort.
func (c Config) VXLANPort() uint16 {
	if c.Port == math.MaxUint16 || c.Port+1 == LANPort {
		return c.Port - 1
	}
	return c.Port + 1
}

// ControlSocket is the path of the socket that the command line talks to.
func (c Config) ControlSocket() string { return filepath.Join(c.Run, "weave", "weave.sock") }

// PluginSockets are the paths to serve dockerd on: first the one that config.json
// of the managed plugin names, then the one on the host by which dockerd finds
// the plugin as `-d weave`, whatever the managed plugin is called.
func (c Config) PluginSockets() []string {
	const name = "docker/plugins/weave.sock"
	managed, host := filepath.Join("/run", name), filepath.Join(c.Run, name)
	if managed == host {
		return []string{managed}
	}
	return []string{managed, host}
}

// EngineSocket is the path of the socket of the host's Docker Engine.
func (c Config) EngineSocket() string { return filepath.Join(c.Run, "docker.sock") }

// Problem is a setting whose value cannot be used.
type Problem struct {
	Setting string
	Value   string // as given, never that of the password
	Why     string // what is wrong with it
	WayOut  string // what to set instead, or how
}

// Error puts the problem in one sentence.
func (p Problem) Error() string {
	if p.Value == "" {
		return p.Setting + ": " + p.Why + "; " + p.WayOut
	}
	return p.Setting + "=" + p.Value + ": " + p.Why + "; " + p.WayOut
}

// FromEnv reads the settings through lookup, normally os.LookupEnv. A setting
// that is empty counts as not given: dockerd passes all that config.json
// declares.
func FromEnv(lookup func(string) (string, bool)) (Config, []Problem) {
	r := reader{lookup: lookup}
	root := hostRoot("/host")
	c := Config{
		State: r.dir(State, filepath.Join(root, HostState)),
		Run:   r.dir(Run, filepath.Join(root, "run")),
		Port:  r.port(),

		Managed: root != "/",
	}
	c.Peers = r.peers(c.Port)
	c.TCPPort = r.tcpPort()
	c.Proxy = r.proxy()
	c.Discover = r.discover()
	c.Everywhere = r.everywhere()
	c.Address = r.address()
	c.Nickname = r.nickname(os.Hostname)
	c.IPAllocRange = r.ipAllocRange()
	c.MTU = r.mtu()
	c.LogLevel = r.logLevel()
	c.DNSDomain = r.dnsDomain()
	c.DNSTTL = r.dnsTTL()
	c.DNSListen = r.dnsListen()
	c.DNSSegments = r.dnsSegments()
	c.Password = r.password(c.State)
	return c, r.problems
}

// hostRoot is where the host's folders are: below the folder in which a managed
// plugin has them mounted, or, on the host itself, where they always are.
func hostRoot(mounted string) string {
	for _, dir := range []string{"run", "var/lib"} {
		if info, err := os.Stat(filepath.Join(mounted, dir)); err != nil || !info.IsDir() {
			return "/"
		}
	}
	return mounted
}
