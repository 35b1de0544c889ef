package run

import (
	"encoding/binary"

	"pgregory.net/rapid"
)

// runSpec describes a run that a kernel could hand over, for tests to build.
type runSpec struct {
	v6, udp bool
	tags    int    // VLAN tags
	options []byte // IPv4 or TCP options, IPv6 extension headers: see build
	exts    int    // IPv6 destination option headers of 8*(1+k) bytes
	flags   byte
	id      uint16
	seq     uint32
	payload []byte
	gsoSize int
}

func drawSpec(t *rapid.T) runSpec {
	s := runSpec{
		v6:      rapid.Bool().Draw(t, "v6"),
		udp:     rapid.Bool().Draw(t, "udp"),
		tags:    rapid.IntRange(0, 2).Draw(t, "tags"),
		options: rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "options"),
		exts:    rapid.SampledFrom([]int{0, 0, 1, 2, 3}).Draw(t, "exts"),
		flags:   rapid.SampledFrom([]byte{0x10, 0x18, 0x11, 0x19, 0x90, 0xd8}).Draw(t, "flags"),
		id:      rapid.Uint16().Draw(t, "id"),
		seq:     rapid.Uint32().Draw(t, "seq"),
		gsoSize: rapid.SampledFrom([]int{1, 7, 100, 536, 1348, 1448}).Draw(t, "gsoSize"),
	}
	s.options = s.options[:len(s.options)&^3]
	whole := rapid.SampledFrom([]int{0, 1, 2, 3, 17, 40}).Draw(t, "whole")
	n := whole*s.gsoSize + rapid.IntRange(1, s.gsoSize).Draw(t, "tail")
	seed := rapid.Uint64().Draw(t, "seed")
	s.payload = make([]byte, n)
	for i := range s.payload {
		seed = seed*6364136223846793005 + 1442695040888963407
		s.payload[i] = byte(seed >> 56)
	}
	return s
}

// build returns the frame of the run as a TAP would hand it over.
func (s runSpec) build() ([]byte, Meta) {
	f := []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}
	for i := range s.tags {
		f = append(f, 0x81, 0x00, 0, byte(i+1))
	}
	transport := s.transport()
	size := len(transport) + len(s.payload)
	var pseudo []byte
	if s.v6 {
		f, pseudo = s.appendIPv6(f, size)
	} else {
		f, pseudo = s.appendIPv4(f, size)
	}
	m := Meta{NeedsCsum: true, CsumStart: uint16(len(f)), GSOSize: uint16(s.gsoSize)}
	at := 16
	switch {
	case s.udp:
		m.GSO, at = GSOUDP, 6
		binary.BigEndian.PutUint16(transport[4:], uint16(size))
	case s.v6:
		m.GSO = GSOTCPv6
	default:
		m.GSO = GSOTCPv4
	}
	m.ECN = !s.udp && s.flags&0x80 != 0
	m.CsumOffset = uint16(at)
	binary.BigEndian.PutUint16(transport[at:], dumbSum(pseudo))
	f = append(f, transport...)
	m.HdrLen = uint16(len(f))
	return append(f, s.payload...), m
}

func (s runSpec) transport() []byte {
	if s.udp {
		return []byte{0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0}
	}
	t := make([]byte, 20, 60)
	binary.BigEndian.PutUint16(t, 4242)
	binary.BigEndian.PutUint16(t[2:], 80)
	binary.BigEndian.PutUint32(t[4:], s.seq)
	binary.BigEndian.PutUint32(t[8:], 0xfeedbeef)
	binary.BigEndian.PutUint16(t[14:], 0x7210)
	t[13] = s.flags
	t = append(t, s.options...)
	t[12] = byte(len(t) / 4 << 4)
	return t
}

func (s runSpec) proto() byte {
	if s.udp {
		return 17
	}
	return 6
}

func (s runSpec) appendIPv4(f []byte, size int) (frame, pseudo []byte) {
	ip := make([]byte, 20, 60)
	if s.udp {
		ip = append(ip, s.options...)
	}
	ip[0] = 0x40 | byte(len(ip)/4)
	ip[1] = 0x02
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+size))
	binary.BigEndian.PutUint16(ip[4:], s.id)
	ip[6] = 0x40
	ip[8], ip[9] = 63, s.proto()
	copy(ip[12:], []byte{10, 32, 0, 1, 10, 32, 0, 2})
	binary.BigEndian.PutUint16(ip[10:], ^dumbSum(ip))
	pseudo = append(append(pseudo, ip[12:20]...), 0, s.proto(), byte(size>>8), byte(size))
	return append(append(f, 0x08, 0x00), ip...), pseudo
}

func (s runSpec) appendIPv6(f []byte, size int) (frame, pseudo []byte) {
	ip := make([]byte, 40)
	ip[0], ip[6], ip[7] = 0x60, s.proto(), 64
	ip[8], ip[23], ip[24], ip[39] = 0xfd, 1, 0xfd, 2
	at := 6
	for k := range s.exts {
		ext := make([]byte, 8+8*k*20)
		ext[0], ext[1] = s.proto(), byte(k*20)
		ip[at] = 60
		at = len(ip)
		ip = append(ip, ext...)
	}
	binary.BigEndian.PutUint16(ip[4:], uint16(len(ip)-40+size))
	pseudo = append(append(pseudo, ip[8:40]...), 0, 0, byte(size>>8), byte(size), 0, 0, 0, s.proto())
	return append(append(f, 0x86, 0xdd), ip...), pseudo
}

// dumbSum is the Internet checksum's sum as RFC 1071 has it, word by word.
func dumbSum(b []byte) uint16 {
	var acc uint32
	for i, v := range b {
		if i%2 == 0 {
			acc += uint32(v) << 8
		} else {
			acc += uint32(v)
		}
		acc = acc>>16 + acc&0xffff
	}
	return uint16(acc)
}

// packet is what dissect finds in a frame.
type packet struct {
	proto   byte
	flags   byte
	id      uint16
	seq     uint32
	payload []byte
	// Reasons why a receiver would drop it; empty if it is correct.
	wrong string
}

// dissect reads a frame that has finished checksums, in the simplest way, and
// knows nothing of the code under test.
func dissect(f []byte) (p packet) {
	at := 12
	for f[at] == 0x81 && f[at+1] == 0 {
		at += 4
	}
	ip := f[at+2:]
	var pseudo, l4 []byte
	if f[at] == 0x08 {
		ihl := int(ip[0]&15) * 4
		if dumbSum(ip[:ihl]) != 0xffff {
			p.wrong += "IPv4 checksum; "
		}
		if int(binary.BigEndian.Uint16(ip[2:])) != len(ip) {
			p.wrong += "IPv4 length; "
		}
		p.id, p.proto, l4 = binary.BigEndian.Uint16(ip[4:]), ip[9], ip[ihl:]
		pseudo = append(pseudo, ip[12:20]...)
	} else {
		if int(binary.BigEndian.Uint16(ip[4:])) != len(ip)-40 {
			p.wrong += "IPv6 length; "
		}
		p.proto, l4 = ip[6], ip[40:]
		for p.proto == 60 {
			p.proto, l4 = l4[0], l4[8+8*int(l4[1]):]
		}
		pseudo = append(pseudo, ip[8:40]...)
	}
	pseudo = append(pseudo, 0, p.proto, byte(len(l4)>>8), byte(len(l4)))
	if dumbSum(append(pseudo, l4...)) != 0xffff {
		p.wrong += "transport checksum; "
	}
	if p.proto == 17 {
		if int(binary.BigEndian.Uint16(l4[4:])) != len(l4) {
			p.wrong += "UDP length; "
		}
		p.payload = l4[8:]
		return p
	}
	p.seq, p.flags = binary.BigEndian.Uint32(l4[4:]), l4[13]
	p.payload = l4[l4[12]>>4*4:]
	return p
}
