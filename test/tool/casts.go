package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func listen(ctx context.Context, o options, args []string) error {
	addr, err := net.ResolveUDPAddr("udp", args[0])
	if err != nil {
		return err
	}
	var c *net.UDPConn
	if addr.IP.IsMulticast() {
		var iface *net.Interface
		if iface, err = net.InterfaceByName(o.iface); err != nil {
			return err
		}
		c, err = net.ListenMulticastUDP("udp", iface, addr)
	} else {
		c, err = net.ListenUDP("udp", addr)
	}
	if err != nil {
		return err
	}
	defer closeWith(ctx, c)()
	if err := c.SetReadDeadline(time.Now().Add(o.timeout)); err != nil {
		return err
	}
	fmt.Println("listening")
	buf := make([]byte, 65536)
	for range o.count {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return err
		}
		fmt.Printf("%s %s\n", from.Addr().Unmap(), buf[:n])
	}
	return nil
}

// cast sends by the named interface, whatever the routes say: containers have
// their default route on Docker's own bridge.
func cast(ctx context.Context, o options, args []string) error {
	to, err := netip.ParseAddrPort(args[0])
	if err != nil {
		return err
	}
	iface, err := net.InterfaceByName(o.iface)
	if err != nil {
		return err
	}
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var optErr error
		err := raw.Control(func(fd uintptr) { optErr = unix.BindToDevice(int(fd), iface.Name) })
		return errors.Join(err, optErr)
	}}
	network := "udp4"
	if to.Addr().Is6() {
		network = "udp6"
	}
	c, err := lc.ListenPacket(ctx, network, ":0")
	if err != nil {
		return err
	}
	defer c.Close()
	for range o.count {
		if _, err := c.WriteTo([]byte(o.text), net.UDPAddrFromAddrPort(to)); err != nil {
			return err
		}
	}
	return nil
}

// Interface is one entry of what the verb addrs prints.
type Interface struct {
	Name  string
	MAC   string
	MTU   int
	Addrs []string
}

func printAddrs(context.Context, options, []string) error {
	ifaces, err := net.Interfaces()
	if err != nil {
		return err
	}
	var out []Interface
	for _, i := range ifaces {
		addrs, err := i.Addrs()
		if err != nil {
			return err
		}
		entry := Interface{Name: i.Name, MAC: i.HardwareAddr.String(), MTU: i.MTU}
		for _, a := range addrs {
			entry.Addrs = append(entry.Addrs, a.String())
		}
		out = append(out, entry)
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}
