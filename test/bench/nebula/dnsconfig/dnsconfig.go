// Package dnsconfig stands in for a library by which nebula steers the name
// servers of macOS and Windows hosts. It does nothing: nebula uses it on Linux
// only to find that there is nothing to do.
package dnsconfig

import (
	"context"
	"log/slog"
	"net/netip"
)

// BackendKind says which of the host's services to use.
type BackendKind int

// BackendAuto is the only kind.
const BackendAuto BackendKind = 0

// Failure is an error that is never returned.
type Failure string

// Error implements error.
func (f Failure) Error() string { return string(f) }

// Errors that callers compare with.
const (
	ErrConfigurationDeclined = Failure("declined")
	ErrInterfaceRequired     = Failure("no interface")
)

// Config is what would be set.
type Config struct {
	Nameservers                 []netip.Addr
	MatchDomains, SearchDomains []string
}

// IsSplit reports whether only some domains are meant.
func (c Config) IsSplit() bool { return len(c.MatchDomains) > 0 }

// Validate accepts everything.
func (Config) Validate() error { return nil }

// Options make a Manager.
type Options struct {
	Identity, InterfaceName string
	Logger                  *slog.Logger
	ForceBackend            BackendKind
}

// Manager manages nothing.
type Manager struct{}

// New never fails.
func New(context.Context, Options) (*Manager, error) { return &Manager{}, nil }

// Clear does nothing.
func (*Manager) Clear() error { return nil }

// Set does nothing.
func (*Manager) Set(Config) error { return nil }

// Close does nothing.
func (*Manager) Close() error { return nil }

// ValidateIdentity accepts everything.
func ValidateIdentity(string) error { return nil }
