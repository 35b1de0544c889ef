package udp

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sockaddr has room for an address of either family.
type sockaddr = unix.RawSockaddrInet6

// putAddr encodes to for a socket of the given family and returns its length.
func putAddr(sa *sockaddr, to netip.AddrPort, v6 bool) (uint32, error) {
	addr := to.Addr()
	if v6 && addr.IsValid() {
		sa.Family = unix.AF_INET6
		sa.Port = networkOrder(to.Port())
		sa.Flowinfo = 0
		sa.Addr = addr.As16()
		scope, err := scopeID(addr.Zone())
		sa.Scope_id = scope
		return unix.SizeofSockaddrInet6, err
	}
	addr = addr.Unmap()
	if !addr.Is4() {
		return 0, unix.EAFNOSUPPORT
	}
	sa4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
	*sa4 = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: networkOrder(to.Port()), Addr: addr.As4()}
	return unix.SizeofSockaddrInet4, nil
}

// getAddr decodes what the kernel wrote to sa. IPv4 comes out unmapped.
func getAddr(sa *sockaddr) netip.AddrPort {
	if sa.Family == unix.AF_INET {
		sa4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom4(sa4.Addr), networkOrder(sa4.Port))
	}
	addr := netip.AddrFrom16(sa.Addr).Unmap()
	// Only link-local addresses need their zone, and only those pay for it.
	if sa.Scope_id != 0 && addr.IsLinkLocalUnicast() {
		addr = addr.WithZone(strconv.FormatUint(uint64(sa.Scope_id), 10))
	}
	return netip.AddrPortFrom(addr, networkOrder(sa.Port))
}

// scopeID returns the number of a zone, which is a number or a link's name.
func scopeID(zone string) (uint32, error) {
	if zone == "" {
		return 0, nil
	}
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n), nil
	}
	link, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, err
	}
	return uint32(link.Index), nil
}

// networkOrder converts a port between the host's and the network's order.
func networkOrder(port uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], port)
	return binary.NativeEndian.Uint16(b[:])
}
