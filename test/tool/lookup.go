package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// lookup asks the servers of /etc/resolv.conf by the one protocol only, for the
// addresses of a name or the names of an address.
func lookup(ctx context.Context, o options, args []string) error {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, server string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, args[0], server)
	}}
	ask := resolver.LookupHost
	if _, err := netip.ParseAddr(args[1]); err == nil {
		ask = resolver.LookupAddr
	}
	found, err := ask(ctx, args[1])
	slices.Sort(found)
	for _, x := range found {
		fmt.Println(x)
	}
	return err
}
