package attach

import (
	"net/netip"
	"strings"
	"testing"
)

var defaultSubnet = netip.MustParsePrefix("10.32.0.0/16")

func TestParse(t *testing.T) {
	for word, want := range map[string]string{
		"192.168.0.2/24":      "192.168.0.2/24",
		"ip:192.168.0.2/24":   "192.168.0.2/24",
		"10.0.0.0/8":          "",
		"net:192.168.0.0/24":  "net:192.168.0.0/24",
		"net:default":         "net:10.32.0.0/16",
		"fd00::2/64":          "fd00::2/64",
		"FD00::2/64":          "fd00::2/64",
		"net:fd00::/64":       "net:fd00::/64",
		"fd00::ffff:ffff/96":  "fd00::ffff:ffff/96", // IPv6 has no broadcast address
		"192.168.0.1/30":      "192.168.0.1/30",
		"192.168.0.254/24":    "192.168.0.254/24",
		"ip:net:10.0.0.0/24":  "",
		"net:ip:10.0.0.2/24":  "",
		"ip:default":          "",
		"0.0.0.1/24":          "",
		"169.254.1.2/16":      "",
		"fe80::1/64":          "",
		"::ffff:10.0.0.2/120": "",
		"fd00::1%eth0/64":     "",
	} {
		got, err := Parse(word, defaultSubnet)
		switch {
		case err != nil && want != "":
			t.Errorf("%s: %v", word, err)
		case err == nil && got.String() != want:
			t.Errorf("%s is read as %s, want %q", word, got, want)
		}
		if err == nil {
			if again, err := Parse(got.String(), defaultSubnet); again != got || err != nil {
				t.Errorf("%s is read as %v, %v", got, again, err)
			}
		}
	}
}

// TestParseRefuses: each error says what is wrong and what would be right.
func TestParseRefuses(t *testing.T) {
	for word, words := range map[string]string{
		"192.168.0.0/24":     "192.168.0.0/24 own 192.168.0.1 net:192.168.0.0/24",
		"192.168.0.255/24":   "192.168.0.255/24 broadcast 192.168.0.1 192.168.0.254",
		"fd00::/64":          "own fd00::1",
		"192.168.0.2":        "192.168.0.2/24 net:default",
		"192.168.0.300/24":   "192.168.0.300/24 192.168.0.2/24",
		"192.168.0.2/33":     "192.168.0.2/33",
		"192.168.0.2/31":     "/8 /30",
		"10.0.0.2/7":         "/8 /30",
		"fd00::2/127":        "/16 /126",
		"net:192.168.0.2/24": "net:192.168.0.0/24 192.168.0.2/24",
		"net:":               "net:default",
		"net:weave":          "net:default",
		"":                   "192.168.0.2/24",
		"127.0.0.2/8":        "127.0.0.0/8",
		"224.0.0.2/8":        "224.0.0.0/8",
	} {
		_, err := Parse(word, defaultSubnet)
		if err == nil {
			t.Errorf("%s is taken", word)
			continue
		}
		for _, w := range strings.Fields(words) {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: the error does not say %q: %v", word, w, err)
			}
		}
	}
}

func TestIsWant(t *testing.T) {
	for word, want := range map[string]bool{
		"192.168.0.2/24": true, "192.168.0.300/24": true, "fd00::2/64": true, "::/0": true, "net:default": true, "ip:10.0.0.1/8": true,
		"nginx": false, "library/nginx": false, "registry.example.org/team/app:1.2": false, "10.0.0.1:5000/app": false,
		"-d": false, "--ip=10.0.0.2/8": false, "abc/1": false, "": false,
	} {
		if IsWant(word) != want {
			t.Errorf("IsWant(%q) is %t", word, !want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, word := range []string{"192.168.0.2/24", "net:fd00::/64", "ip:10.0.0.255/8", "net:default", "::ffff:1.2.3.4/96"} {
		f.Add(word)
	}
	f.Fuzz(func(t *testing.T, word string) {
		w, err := Parse(word, defaultSubnet)
		if err == nil && (w.Subnet != w.Subnet.Masked() || w.Addr.IsValid() && (!w.Subnet.Contains(w.Addr) || w.Addr == w.Subnet.Addr())) {
			t.Errorf("%q is read as %+v", word, w)
		}
	})
}
