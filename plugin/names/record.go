package names

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	"weave/mesh"
)

// Bounds on what one host tells.
const (
	maxNames     = 32  // of an endpoint
	maxAddresses = 64  // of a name that was made by hand
	maxName      = 180 // bytes; with the domain it must stay below the 255 of RFC 1035, 3.1
	maxLabel     = 63  // bytes, RFC 1035, 3.1
	maxSegment   = 72  // bytes of a segment's key; with a name it must fit the key of a note
)

// Canonical returns a name as it is compared: in lower case, without the domain and
// without a dot at its end. Letters, digits, dashes and underscores are allowed, as in
// Docker's names.
func Canonical(name, domain string) (string, error) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if domain != "" {
		name = strings.TrimSuffix(name, "."+strings.ToLower(domain))
	}
	if len(name) > maxName {
		return "", fmt.Errorf("name of %d bytes, want at most %d", len(name), maxName)
	}
	for label := range strings.SplitSeq(name, ".") {
		switch {
		case label == "":
			return "", fmt.Errorf("name %q: a part is empty", name)
		case len(label) > maxLabel:
			return "", fmt.Errorf("name %q: a part has %d bytes, want at most %d", name, len(label), maxLabel)
		case strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "":
			return "", fmt.Errorf("name %q: want letters, digits, dashes and underscores; for others its xn-- form", name)
		}
	}
	return name, nil
}

// isCanonical tells whether another host's name can be taken as it is.
func isCanonical(name string) bool {
	same, err := Canonical(name, "")
	return err == nil && same == name
}

// canonicalAll makes names canonical, in their order, and leaves out those that
// cannot be, that come twice, and that are too many.
func canonicalAll(all []string, domain string) (out []string) {
	for _, name := range all {
		if c, err := Canonical(name, domain); err == nil && !slices.Contains(out, c) && len(out) < maxNames {
			out = append(out, c)
		}
	}
	return out
}

// encodeNames makes the note of an endpoint's names, nil if it has none. Of names that
// are too many for a note the last are left out.
func encodeNames(all []string) []byte {
	for ; len(all) > 0; all = all[:len(all)-1] {
		if value := marshal(all); len(value) <= mesh.MaxNote {
			return value
		}
	}
	return nil
}

// decodeNames reads such a note.
func decodeNames(endpoint string, value []byte) ([]string, error) {
	var all []string
	if err := json.Unmarshal(value, &all); err != nil {
		return nil, fmt.Errorf("%w: names of endpoint %.64q: %w", errNoNote, endpoint, err)
	}
	if endpoint == "" || len(all) == 0 || len(all) > maxNames {
		return nil, fmt.Errorf("%w: %d names of endpoint %.64q", errNoNote, len(all), endpoint)
	}
	for i, name := range all {
		if !isCanonical(name) || slices.Contains(all[:i], name) {
			return nil, fmt.Errorf("%w: name %.64q of endpoint %.64q", errNoNote, name, endpoint)
		}
	}
	return all, nil
}

// Made is a name that somebody made by hand on one host.
type Made struct {
	Segment string // that it is seen on; empty: on all
	Name    string // canonical
	Addrs   []netip.Addr
}

// key is that of the note.
func (m Made) key() string { return m.Name + " " + m.Segment }

func (m Made) check() error {
	if !isCanonical(m.Name) {
		return fmt.Errorf("name %.64q", m.Name)
	}
	if len(m.Segment) > maxSegment || !utf8.ValidString(m.Segment) {
		return fmt.Errorf("segment %.64q", m.Segment)
	}
	if len(m.Addrs) == 0 || len(m.Addrs) > maxAddresses {
		return fmt.Errorf("name %s has %d addresses, want 1 to %d", m.Name, len(m.Addrs), maxAddresses)
	}
	for i, a := range m.Addrs {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
			return fmt.Errorf("name %s: %q is not the address of one host", m.Name, a)
		}
		if slices.Contains(m.Addrs[:i], a) {
			return fmt.Errorf("name %s has address %s twice", m.Name, a)
		}
	}
	return nil
}

// decodeMade reads the note of a name that was made by hand.
func decodeMade(key string, value []byte) (Made, error) {
	var m Made
	var ok bool
	if m.Name, m.Segment, ok = strings.Cut(key, " "); !ok {
		return Made{}, fmt.Errorf("%w: key %.64q", errNoNote, key)
	}
	if err := json.Unmarshal(value, &m.Addrs); err != nil {
		return Made{}, fmt.Errorf("%w: name %.64q: %w", errNoNote, m.Name, err)
	}
	if err := m.check(); err != nil {
		return Made{}, fmt.Errorf("%w: %w", errNoNote, err)
	}
	return m, nil
}

// marshal encodes what always can be.
func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("names: note does not marshal: " + err.Error())
	}
	return b
}
