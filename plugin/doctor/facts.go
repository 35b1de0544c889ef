package doctor

import (
	"context"
	"fmt"
	"net/url"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"weave/driver/host"
	"weave/plugin/config"
	"weave/plugin/engine"
)

const hidden = "(set, not shown)"

// Facts is what of the plugin is seen from the host, for a report. There are no
// secrets in it.
type Facts struct {
	Kernel  string          `json:"kernel"`
	Arch    string          `json:"arch"`
	Engine  *engine.Version `json:"engine,omitempty"`
	Plugins []Plugin        `json:"plugins"` // those that are weave
	Links   []host.Link     `json:"links"`
	Rules   []host.Rule     `json:"rules"`
	Missing []string        `json:"missing"` // what could not be had

	secrets []string
}

// Hide takes out of a text what the plugin's settings keep secret.
func (f Facts) Hide(text string) string {
	longest := func(a, b string) int { return len(b) - len(a) } // first: one may be part of another
	for _, s := range slices.SortedFunc(slices.Values(f.secrets), longest) {
		text = strings.ReplaceAll(text, s, "***")
	}
	return text
}

// Plugin is a managed plugin with those of its settings that are set.
type Plugin struct {
	ID       string            `json:"id"`
	Name     string            `json:"name"`
	Enabled  bool              `json:"enabled"`
	Settings map[string]string `json:"settings"`
}

// Facts collects what there is. What cannot be had is named in Missing.
func (h *Host) Facts(ctx context.Context) Facts {
	f := Facts{Kernel: kernel(), Arch: runtime.GOARCH, Plugins: []Plugin{}, Missing: []string{}}
	miss := func(what string, err error) {
		if err != nil {
			f.Missing = append(f.Missing, fmt.Sprintf("%s: %v", what, err))
		}
	}
	if h.engine == nil {
		miss("engine", errRemote)
	} else {
		v, err := h.engine.Version(ctx)
		if miss("engine", err); err == nil {
			f.Engine = &v
		}
		plugins, err := h.weaves(ctx)
		miss("plugin", err)
		for _, p := range plugins {
			settings, hide := public(p.Env)
			f.secrets = append(f.secrets, hide...)
			f.Plugins = append(f.Plugins, Plugin{p.ID, p.Name, p.Enabled, settings})
		}
	}
	var err error
	f.Links, f.Rules, err = host.New().Own()
	miss("links and rules", err)
	return f
}

func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// shown are the settings that hold no secret; of any other it is only told that
// it is set.
func shown() []string {
	return []string{
		config.PasswordFile, config.Peers, config.Networks, config.Port, config.TCPPort, config.Discover, config.Address, config.Nickname,
		config.IPAllocRange, config.MTU, config.DNSDomain, config.DNSTTL, config.DNSListen, config.DNSSegments, config.LogLevel, config.State, config.Run,
	}
}

// public returns the settings as they may be shown, and what must not be.
func public(env []string) (settings map[string]string, secrets []string) {
	settings = map[string]string{}
	for _, e := range env {
		name, value, _ := strings.Cut(e, "=")
		switch {
		case value == "":
		case slices.Contains(shown(), name):
			settings[name] = value
		default:
			settings[name] = hidden
			secrets = append(secrets, value)
			if u, err := url.Parse(value); name == config.Proxy && err == nil && u.Host != "" {
				settings[name] = (&url.URL{Scheme: u.Scheme, Host: u.Host}).String()
				secrets = append(secrets, userinfo(value, u)...)
			}
		}
	}
	return settings, secrets
}

// userinfo are the secrets of an address, as they stand in it and as they are sent.
func userinfo(value string, u *url.URL) []string {
	_, rest, _ := strings.Cut(value, "://")
	raw := rest[:max(0, strings.LastIndexByte(rest, '@'))]
	user, password, _ := strings.Cut(raw, ":")
	sent, _ := u.User.Password()
	all := []string{raw, user, password, u.User.Username(), sent}
	return slices.DeleteFunc(all, func(s string) bool { return s == "" })
}
