package main

import (
	"context"
	"fmt"
	"net"
	"slices"
)

// lookup asks the servers of /etc/resolv.conf by the one protocol only.
func lookup(ctx context.Context, o options, args []string) error {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, server string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, args[0], server)
	}}
	addrs, err := resolver.LookupHost(ctx, args[1])
	slices.Sort(addrs)
	for _, a := range addrs {
		fmt.Println(a)
	}
	return err
}
