package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"weave/plugin/config"
)

// TestConfigJSON holds that the managed plugin declares what the daemon counts
// on: each setting, its socket, and where the host's folders are mounted.
func TestConfigJSON(t *testing.T) {
	b, err := os.ReadFile("../config.json")
	if err != nil {
		t.Fatal(err)
	}
	var plugin struct {
		Entrypoint []string
		Interface  struct {
			Types  []string
			Socket string
		}
		Network struct{ Type string }
		Mounts  []struct{ Destination string }
		Env     []struct {
			Name, Description, Value string
			Settable                 []string
		}
	}
	if err := json.Unmarshal(b, &plugin); err != nil {
		t.Fatal(err)
	}
	var env []string
	for _, e := range plugin.Env {
		env = append(env, e.Name)
		if e.Description == "" || e.Value != "" || !slices.Equal(e.Settable, []string{"value"}) {
			t.Errorf("%s: want a description, no value (defaults are in package config), settable", e.Name)
		}
	}
	slices.Sort(env)
	settings := []string{
		config.Password, config.PasswordFile, config.Peers, config.Port, config.Address,
		config.TCPPort, config.Proxy, config.Discover, config.Networks, config.Nickname, config.IPAllocRange, config.MTU, config.LogLevel,
		config.DNSDomain, config.DNSTTL, config.DNSListen, config.DNSSegments,
	}
	slices.Sort(settings)
	if !slices.Equal(env, settings) {
		t.Errorf("settings %v, want %v", env, settings)
	}
	var mounts []string
	for _, m := range plugin.Mounts {
		mounts = append(mounts, m.Destination)
	}
	if want := []string{"/host/run", "/host/var/lib"}; !slices.Equal(mounts, want) {
		t.Errorf("mounts %v, want %v", mounts, want)
	}
	if want := []string{"docker.networkdriver/1.0", "docker.ipamdriver/1.0"}; !slices.Equal(plugin.Interface.Types, want) {
		t.Errorf("interface types %v, want %v", plugin.Interface.Types, want)
	}
	managed := (config.Config{Run: "/host/run"}).PluginSockets()[0]
	if filepath.Base(managed) != plugin.Interface.Socket {
		t.Errorf("socket %s, the daemon listens on %s", plugin.Interface.Socket, managed)
	}
	if plugin.Network.Type != "host" || !slices.Equal(plugin.Entrypoint, []string{"/weave", "daemon"}) {
		t.Errorf("network %q, entrypoint %v", plugin.Network.Type, plugin.Entrypoint)
	}
}
