package config

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
)

func env(pairs ...string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1], true
			}
		}
		return "", false
	}
}

func TestDefaults(t *testing.T) {
	all := []string{Password, PasswordFile, Peers, Port, TCPPort, Proxy, Discover, Networks, Address, Nickname, IPAllocRange, MTU, LogLevel, State, Run, DNSDomain, DNSTTL, DNSListen, DNSSegments}
	var empty []string
	for _, name := range all {
		empty = append(empty, name, "")
	}
	for name, lookup := range map[string]func(string) (string, bool){"unset": env(), "empty": env(empty...)} {
		c, problems := FromEnv(lookup)
		if len(problems) > 0 {
			t.Fatalf("%s: %v", name, problems)
		}
		hostname, _ := os.Hostname()
		want := Config{
			Port: 6783, Discover: DiscoverOn, Nickname: hostname, LogLevel: logrus.InfoLevel,
			IPAllocRange: netip.MustParsePrefix("10.32.0.0/12"), State: c.State, Run: c.Run, Managed: c.Run != "/run",
			DNSDomain: "weave.local", DNSTTL: time.Second,
		}
		if !reflect.DeepEqual(c, want) {
			t.Errorf("%s: got %+v, want %+v", name, c, want)
		}
		if !strings.HasSuffix(c.State, "/var/lib/weave") || !strings.HasSuffix(c.Run, "/run") {
			t.Errorf("%s: state %s, run %s", name, c.State, c.Run)
		}
	}
}

// TestHostRoot: a folder /host of somebody else's does not make a host a plugin.
func TestHostRoot(t *testing.T) {
	mounted := t.TempDir()
	for _, step := range []struct{ made, want string }{{"other", "/"}, {"run", "/"}, {"var/lib", mounted}} {
		if err := os.MkdirAll(filepath.Join(mounted, step.made), 0o755); err != nil {
			t.Fatal(err)
		}
		if got := hostRoot(mounted); got != step.want {
			t.Errorf("with %s: %s, want %s", step.made, got, step.want)
		}
	}
}

func TestPaths(t *testing.T) {
	plugin := Config{State: "/host/var/lib/weave", Run: "/host/run"}
	host := Config{State: "/var/lib/weave", Run: "/run"}
	for _, c := range []struct{ got, want string }{
		{plugin.StateFile(), "/host/var/lib/weave/weave.db"},
		{plugin.ControlSocket(), "/host/run/weave/weave.sock"},
		{plugin.EngineSocket(), "/host/run/docker.sock"},
		{strings.Join(plugin.PluginSockets(), " "), "/run/docker/plugins/weave.sock /host/run/docker/plugins/weave.sock"},
		{strings.Join(host.PluginSockets(), " "), "/run/docker/plugins/weave.sock"},
	} {
		if c.got != c.want {
			t.Errorf("got %s, want %s", c.got, c.want)
		}
	}
}

func TestVXLANPort(t *testing.T) {
	for port, want := range map[uint16]uint16{6783: 6784, 1: 2, 6784: 6783, 6786: 6787, 65534: 65535, 65535: 65534} {
		if got := (Config{Port: port}).VXLANPort(); got != want {
			t.Errorf("port %d: VXLAN on %d, want %d", port, got, want)
		}
	}
}

func TestGoodValues(t *testing.T) {
	c, problems := FromEnv(env(
		Password, " a secret with spaces ", Peers, "b, 192.0.2.7:7000\t[2001:db8::1]:6000,,2001:DB8::2 host-1.example.org:6784 b:06783 [fd00::3] fe80::4%eth0 [fe80::4%2]:5 ::ffff:192.0.2.8",
		Port, " 6790 ", TCPPort, "443", Proxy, "http://me:secret@proxy:3128", Discover, " LAN", Networks, "Everywhere", Address, "::ffff:192.0.2.1", Nickname, "left", IPAllocRange, "172.30.0.0/16",
		MTU, "1400", LogLevel, "DEBUG", State, "/srv/weave/", Run, "/srv/run",
		DNSDomain, ".Shop.Example.", DNSTTL, "1m", DNSListen, "::ffff:192.0.2.9", DNSSegments, "10.32.0.0/16, left,10.32.0.0/16",
	))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	want := Config{
		Password: []byte(" a secret with spaces "),
		Peers:    []string{"b:6790", "192.0.2.7:7000", "[2001:db8::1]:6000", "[2001:db8::2]:6790", "host-1.example.org:6784", "b:6783", "[fd00::3]:6790", "[fe80::4%eth0]:6790", "[fe80::4%2]:5", "192.0.2.8:6790"},
		Port:     6790, TCPPort: 443, Proxy: &url.URL{Scheme: "http", User: url.UserPassword("me", "secret"), Host: "proxy:3128"},
		Discover: DiscoverLAN, Everywhere: true, Address: netip.MustParseAddr("192.0.2.1"), Nickname: "left",
		IPAllocRange: netip.MustParsePrefix("172.30.0.0/16"), MTU: 1400, LogLevel: logrus.DebugLevel,
		State: "/srv/weave", Run: "/srv/run",
		DNSDomain: "shop.example", DNSTTL: time.Minute, DNSListen: netip.MustParseAddrPort("192.0.2.9:53"), DNSSegments: []string{"10.32.0.0/16", "left"},
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
}

// What is wrong with a proxy is told without it: there may be a password in it.
func TestBadProxy(t *testing.T) {
	for _, value := range []string{
		"proxy:3128", "https://proxy:3128", "http://proxy", "http://me:secret@proxy:0", "http://:3128", "http://me:secret@proxy:3128/path",
		"http://proxy:3128?secret", "http://me:sec ret@proxy:1", "http://[::1",
	} {
		c, problems := FromEnv(env(Proxy, value))
		if len(problems) != 1 || c.Proxy != nil {
			t.Errorf("%q: %v, problems %v", value, c.Proxy, problems)
			continue
		}
		if p := problems[0]; p.Setting != Proxy || p.WayOut == "" || strings.Contains(p.Error(), "sec") {
			t.Errorf("%q: problem %+v", value, p)
		}
	}
}

func TestBadValues(t *testing.T) {
	defaults, _ := FromEnv(env())
	for _, c := range []struct{ setting, value string }{
		{Port, "0"}, {Port, "6785"}, {Port, "65536"}, {Port, "-1"}, {Port, "+6783"}, {Port, "http"}, {Port, "6783 6784"}, {TCPPort, "0"}, {TCPPort, "https"},
		{Discover, "yes"}, {Networks, "some"}, {Discover, "lan,off"}, {Discover, "\x1b[31m"},
		{Address, "0.0.0.0"}, {Address, "::"}, {Address, "host"}, {Address, "192.0.2.1/24"}, {Address, "224.0.0.1"}, {Address, "fe80::1%eth0"}, {Address, "fe80::1"},
		{Nickname, "two words"}, {Nickname, "ünnamed"}, {Nickname, "a\x1b[31mb"}, {Nickname, strings.Repeat("n", 64)},
		{IPAllocRange, "10.32.0.0"}, {IPAllocRange, "10.32.1.0/12"}, {IPAllocRange, "10.32.0.0/33"}, {IPAllocRange, "10.0.0.0/29"},
		{IPAllocRange, "0.0.0.0/8"}, {IPAllocRange, "224.0.0.0/8"}, {IPAllocRange, "127.0.0.0/8"}, {IPAllocRange, "240.0.0.0/8"}, {IPAllocRange, "fd00::/64"}, {IPAllocRange, "0.0.0.0/0"},
		{MTU, "575"}, {MTU, "9001"}, {MTU, "-5"}, {MTU, "1,400"},
		{LogLevel, "loud"}, {LogLevel, "panic"}, {LogLevel, "trace"}, {LogLevel, "\x1b[31m"},
		{DNSDomain, "a..b"}, {DNSDomain, "a b"}, {DNSDomain, strings.Repeat("a.", 40) + "b"}, {DNSTTL, "1"}, {DNSTTL, "-1s"}, {DNSTTL, "1.5s"}, {DNSTTL, "2h"},
		{DNSListen, "0.0.0.0:53"}, {DNSListen, "host:53"}, {DNSListen, "192.0.2.7:0"}, {DNSSegments, "10.32.0.1/16"}, {DNSSegments, "left/right"},
		{State, "var/lib/weave"}, {Run, "."},
		{Peers, "a:0"}, {Peers, "a:b:c"}, {Peers, "[::1"}, {Peers, "http://a"}, {Peers, ":6783"}, {Peers, "a/b"}, {Peers, "0.0.0.0"},
		{Peers, "fe80::1"}, {Peers, "[fe80::1]:6783"}, {Peers, "fd00::1%eth0"}, {Peers, "::ffff:192.0.2.1%eth0"}, {Peers, "[fe80::1%]:1"},
		{Peers, "300.1.2.3"}, {Peers, "192.0.2.1:"}, {Peers, "[]:1"}, {Peers, "[]"}, {Peers, "[a:b]"}, {Peers, "::1]:5"}, {Peers, strings.Repeat("h", 254)}, {Peers, "héte"},
	} {
		t.Run(c.setting+"="+c.value, func(t *testing.T) {
			got, problems := FromEnv(env(c.setting, c.value))
			if len(problems) != 1 {
				t.Fatalf("problems: %v", problems)
			}
			p := problems[0]
			if p.Setting != c.setting || p.Value == "" || p.Why == "" || p.WayOut == "" {
				t.Errorf("problem lacks something: %+v", p)
			}
			if strings.ContainsAny(p.Error(), "\x1b\n") || len(p.Error()) > 600 {
				t.Errorf("not fit for a terminal: %q", p.Error())
			}
			if !reflect.DeepEqual(got, defaults) {
				t.Errorf("setting did not keep its default: %+v", got)
			}
		})
	}
}

func TestOneBadPeerKeepsTheOthers(t *testing.T) {
	c, problems := FromEnv(env(Peers, "a, b:x, c"))
	if len(problems) != 1 || problems[0].Value != "b:x" || !slices.Equal(c.Peers, []string{"a:6783", "c:6783"}) {
		t.Errorf("peers %v, problems %v", c.Peers, problems)
	}
	var many []string
	for i := range MaxPeers + 10 {
		many = append(many, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}).String())
	}
	c, problems = FromEnv(env(Peers, strings.Join(many, " ")))
	if len(problems) != 1 || len(c.Peers) != MaxPeers {
		t.Errorf("%d peers, problems %v", len(c.Peers), problems)
	}
}

func TestDefaultNickname(t *testing.T) {
	for _, c := range []struct {
		host string
		err  error
		want string
	}{
		{"box", nil, "box"},
		{"", errors.New("no"), "unnamed"},
		{"", nil, "unnamed"},
		{"my böx", nil, "mybx"},
		{strings.Repeat("h", 100), nil, strings.Repeat("h", MaxNickname)},
	} {
		if got := defaultNickname(func() (string, error) { return c.host, c.err }); got != c.want {
			t.Errorf("%q: got %q, want %q", c.host, got, c.want)
		}
	}
}

func TestPasswordFile(t *testing.T) {
	state := filepath.Join(t.TempDir(), "weave")
	write := func(name, content string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(state, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(state, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("password", "s3cret\n")
	write("sub/windows", "s3cret\r\n")
	write("two", "s3cret\n\n")
	write("empty", "\n")
	write("longest", strings.Repeat("x", MaxPassword)+"\r\n")
	write("long", strings.Repeat("x", MaxPassword+1))
	write("../outside", "s3cret")
	if err := errors.Join(os.Symlink("../outside", filepath.Join(state, "link")),
		os.Symlink("password", filepath.Join(state, "inner")),
		syscall.Mkfifo(filepath.Join(state, "fifo"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ file, want, why string }{
		{"password", "s3cret", ""},
		{state + "/password", "s3cret", ""},
		{HostState + "/password", "s3cret", ""},
		{"sub/windows", "s3cret", ""},
		{"inner", "s3cret", ""},
		{"two", "s3cret\n", ""},
		{"longest", strings.Repeat("x", MaxPassword), ""},
		{"empty", "", "the file is empty"},
		{"long", "", "password of at least 1025 bytes"},
		{"missing", "", "no such file"},
		{"sub", "", "not a regular file"},
		{"fifo", "", "not a regular file"},
		{"../outside", "", "not a file in the state folder"},
		{"/etc/passwd", "", "not a file in the state folder"},
		{HostState + "/../outside", "", "not a file in the state folder"},
		{"link", "", "escapes"},
	} {
		t.Run(c.file, func(t *testing.T) {
			got, problems := FromEnv(env(State, state, PasswordFile, c.file))
			if string(got.Password) != c.want {
				t.Errorf("password %q, want %q", got.Password, c.want)
			}
			if c.why == "" && len(problems) == 0 {
				return
			}
			if c.why == "" || len(problems) != 1 || problems[0].Setting != PasswordFile || !strings.Contains(problems[0].Why, c.why) {
				t.Errorf("problems %v, want one with %q", problems, c.why)
			}
		})
	}
}

func TestPasswordProblemsKeepItSecret(t *testing.T) {
	long := strings.Repeat("s3cret", 200)
	for _, lookup := range []func(string) (string, bool){
		env(Password, long),
		env(Password, "s3cret", PasswordFile, "password"),
	} {
		c, problems := FromEnv(lookup)
		if len(problems) != 1 || c.Password != nil {
			t.Fatalf("password %q, problems %v", c.Password, problems)
		}
		if strings.Contains(problems[0].Error(), "s3cret") {
			t.Errorf("password shown: %v", problems[0])
		}
	}
}

func FuzzFromEnv(f *testing.F) {
	f.Add("a,b c:1 [::1]:2", "6783", "192.0.2.1", "left", "10.32.0.0/12", "1400", "debug", "password")
	f.Add("\x00", "-", "::%1", "\xff", "::/0", "1e3", "", "../x")
	f.Fuzz(func(t *testing.T, peers, port, addr, nick, rng, mtu, level, file string) {
		c, problems := FromEnv(env(Peers, peers, Port, port, Address, addr, Nickname, nick,
			IPAllocRange, rng, MTU, mtu, LogLevel, level, PasswordFile, file, State, "/nonexistent/weave"))
		if c.Port == 0 || c.Nickname == "" || len(c.Nickname) > MaxNickname || !c.IPAllocRange.IsValid() ||
			c.IPAllocRange != c.IPAllocRange.Masked() || len(c.Peers) > MaxPeers {
			t.Fatalf("not usable: %+v", c)
		}
		for _, p := range c.Peers {
			again, err := ParsePeer(p, 1)
			if err != nil || again != p {
				t.Fatalf("peer %q reads back as %q, %v", p, again, err)
			}
		}
		for _, p := range problems {
			if p.Setting == "" || p.Why == "" || p.WayOut == "" {
				t.Fatalf("problem lacks something: %+v", p)
			}
		}
	})
}

// FuzzPassword: a password is what stands in the setting, or in the file but for
// its line end, or there is a problem that does not tell it.
func FuzzPassword(f *testing.F) {
	for _, content := range []string{"s3cret", "s3cret\r\n", "\n", "", "a\n\n", strings.Repeat("x", MaxPassword) + "\r\n", strings.Repeat("secret", MaxPassword)} {
		f.Add([]byte(content))
	}
	state := f.TempDir()
	f.Fuzz(func(t *testing.T, content []byte) {
		if err := os.WriteFile(filepath.Join(state, "password"), content, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, setting := range []string{Password, PasswordFile} {
			value, want := string(content), string(content)
			if setting == PasswordFile {
				value, want = "password", strings.TrimSuffix(strings.TrimSuffix(want, "\n"), "\r")
			}
			c, problems := FromEnv(env(State, state, setting, value))
			if len(problems) == 0 {
				if string(c.Password) != want || len(want) > MaxPassword {
					t.Errorf("%s: %q became %q", setting, content, c.Password)
				}
				continue
			}
			if c.Password != nil || len(want) > 0 && len(want) <= MaxPassword {
				t.Errorf("%s: %q became %q, with %v", setting, content, c.Password, problems)
			}
			if secret := string(content); len(secret) > MaxPassword && strings.Contains(fmt.Sprint(problems), secret[:16]) {
				t.Errorf("%s: the password is told: %v", setting, problems)
			}
		}
	})
}
