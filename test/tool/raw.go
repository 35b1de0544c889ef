package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	minFrame  = 60
)

// htons turns a number into the network's byte order.
func htons(v uint16) uint16 { return v<<8 | v>>8 }

// openRaw opens a socket for whole frames on the named interface.
func openRaw(name string) (*os.File, error) {
	iface, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	protocol := htons(unix.ETH_P_ALL)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(protocol))
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: iface.Index}); err != nil {
		return nil, errors.Join(os.NewSyscallError("bind", err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil
}

func sniff(ctx context.Context, o options, _ []string) error {
	f, err := openRaw(o.iface)
	if err != nil {
		return err
	}
	defer closeWith(ctx, f)()
	if err := f.SetReadDeadline(time.Now().Add(o.timeout)); err != nil {
		return err
	}
	fmt.Println("listening")
	buf := make([]byte, 128<<10)
	for seen := 0; ; seen++ {
		n, err := f.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) || ctx.Err() != nil {
			fmt.Printf("%d frames, none with the text\n", seen)
			return nil
		}
		if err != nil {
			return err
		}
		if bytes.Contains(buf[:n], []byte(o.text)) {
			return fmt.Errorf("a frame with the text arrived: %x", buf[:n])
		}
	}
}

func inject(o options, frame []byte) error {
	f, err := openRaw(o.iface)
	if err != nil {
		return err
	}
	defer f.Close()
	frame = append(frame, make([]byte, max(0, minFrame-len(frame)))...)
	for range o.count {
		if _, err := f.Write(frame); err != nil {
			return err
		}
	}
	return nil
}

func injectUDP(_ context.Context, o options, args []string) error {
	source, err1 := net.ParseMAC(args[0])
	target, err2 := net.ParseMAC(args[1])
	from, err3 := netip.ParseAddrPort(args[2])
	to, err4 := netip.ParseAddrPort(args[3])
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return err
	}
	if !from.Addr().Is4() || !to.Addr().Is4() {
		return errors.New("addresses must be IPv4")
	}
	return inject(o, udpFrame(source, target, from, to, o.text))
}

// udpFrame leaves the UDP checksum out, which IPv4 allows.
func udpFrame(source, target net.HardwareAddr, from, to netip.AddrPort, text string) []byte {
	const ipHeader, udpHeader = 20, 8
	frame := etherHeader(source, target, etherIPv4)
	ip := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	binary.BigEndian.PutUint16(ip[2:], uint16(ipHeader+udpHeader+len(text)))
	ip = append(append(ip, from.Addr().AsSlice()...), to.Addr().AsSlice()...)
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	frame = append(frame, ip...)
	frame = binary.BigEndian.AppendUint16(frame, from.Port())
	frame = binary.BigEndian.AppendUint16(frame, to.Port())
	frame = binary.BigEndian.AppendUint16(frame, uint16(udpHeader+len(text)))
	frame = append(frame, 0, 0)
	return append(frame, text...)
}

func injectARP(_ context.Context, o options, args []string) error {
	source, err1 := net.ParseMAC(args[0])
	from, err2 := netip.ParseAddr(args[1])
	target, err3 := net.ParseMAC(args[2])
	to, err4 := netip.ParseAddr(args[3])
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return err
	}
	frame := etherHeader(source, target, etherARP)
	frame = append(frame, 0, 1, 8, 0, 6, 4, 0, 2) // Ethernet, IPv4, sizes, reply
	frame = append(append(frame, source...), from.AsSlice()...)
	frame = append(append(frame, target...), to.AsSlice()...)
	return inject(o, frame)
}

func etherHeader(source, target net.HardwareAddr, kind uint16) []byte {
	header := append(append([]byte(nil), target...), source...)
	return binary.BigEndian.AppendUint16(header, kind)
}

// checksum is the Internet checksum (RFC 1071) of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
