package managed

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"weave"
	"weave/plugin/config"
)

// sourceSuffix makes a mount's name that of its setting, as `docker plugin set`
// takes it.
const sourceSuffix = ".source"

// stateSource is the setting for the folder that holds weave/ with the state.
const stateSource = "state" + sourceSuffix

// PasswordFile is the name of the file in the state folder that a password is
// written to.
const PasswordFile = "password"

// Settings are values by name, as `docker plugin set` takes them. A setting that
// is empty has its default.
type Settings map[string]string

// Declared is a setting that config.json declares.
type Declared struct {
	Name        string // WEAVE_PORT, state.source
	Description string
	Default     string // of mounts only; those of the others are in package config
}

// AllSettings lists the settings that config.json declares, in its order.
func AllSettings() []Declared {
	var c struct {
		Env    []struct{ Name, Description string }
		Mounts []struct {
			Name, Description, Source string
			Settable                  []string
		}
	}
	if err := json.Unmarshal(weave.ConfigJSON, &c); err != nil {
		panic("config.json: " + err.Error()) // it is part of the binary, and tested
	}
	var all []Declared
	for _, e := range c.Env {
		all = append(all, Declared{Name: e.Name, Description: e.Description})
	}
	for _, m := range c.Mounts {
		if slices.Contains(m.Settable, "source") {
			all = append(all, Declared{m.Name + sourceSuffix, m.Description, m.Source})
		}
	}
	return all
}

// ParseSettings reads NAME=VALUE words with white space between them. What a
// word says is not repeated in an error: it may be half a password.
func ParseSettings(words string) (Settings, error) {
	s := Settings{}
	known := map[string]bool{}
	for _, d := range AllSettings() {
		known[d.Name] = true
	}
	for i, word := range strings.Fields(words) {
		name, value, ok := strings.Cut(word, "=")
		if !ok || !known[name] {
			return nil, fmt.Errorf("nothing was changed: word %d of the settings is not NAME=VALUE with a setting of the plugin. "+
				"Write several peers with commas, WEAVE_PEERS=host1,host2, and a password that has spaces into a file, WEAVE_PASSWORD_FILE", i+1)
		}
		s[name] = value
	}
	return s, nil
}

// stateDir is the host's folder where a plugin with these settings keeps its
// state.
func (s Settings) stateDir() string {
	source := s[stateSource]
	if source == "" {
		source = filepath.Dir(config.HostState)
	}
	return filepath.Join(source, filepath.Base(config.HostState))
}

// with returns the settings with others in their place.
func (s Settings) with(changes Settings) Settings {
	out := Settings{}
	maps.Copy(out, s)
	maps.Copy(out, changes)
	for _, d := range AllSettings() {
		if out[d.Name] == "" && d.Default != "" {
			out[d.Name] = d.Default
		}
	}
	maps.DeleteFunc(out, func(_, value string) bool { return value == "" })
	return out
}

// check refuses what the plugin would not work with. The password is the one
// that is to be written; nil means that the settings say where it is.
func (s Settings) check(password *string) error {
	known := map[string]bool{}
	for _, d := range AllSettings() {
		known[d.Name] = true
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(s)) {
		if !known[name] {
			errs = append(errs, fmt.Errorf("%s is set, and this version does not have it: take it back with `docker plugin disable -f %[2]s` and `docker plugin set %[2]s %[1]s=`", name, Name))
		}
	}
	if source := s[stateSource]; !filepath.IsAbs(source) {
		errs = append(errs, fmt.Errorf("%s is no absolute path", stateSource))
	}
	_, problems := config.FromEnv(func(name string) (string, bool) {
		switch {
		case name == config.State:
			return s.stateDir(), true
		case password != nil && name == config.PasswordFile:
			return "", false
		case password != nil && name == config.Password:
			return *password, true
		}
		value, ok := s[name]
		return value, ok
	})
	for _, p := range problems {
		errs = append(errs, p)
	}
	return errors.Join(errs...)
}

// difference lists what turns one into the other, as arguments of `docker plugin
// set`: settings that are no longer there become empty.
func (s Settings) difference(to Settings) (args []string) {
	names := map[string]bool{}
	for _, x := range []Settings{s, to} {
		for name := range x {
			names[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if s[name] != to[name] {
			args = append(args, name+"="+to[name])
		}
	}
	return args
}
