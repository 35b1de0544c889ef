package udp

import (
	"math/bits"

	"golang.org/x/sys/unix"
)

// Shed tells which datagrams the kernel is to drop before anybody wakes up for them:
// those that begin with the byte First, unless they have the four bytes of Mark,
// big-endian, at the offset At; and of these all but one in OneIn, a power of two,
// at random. The zero value drops none.
type Shed struct {
	First byte
	At    int
	Mark  uint32
	OneIn int
}

const (
	udpHeaderLen = 8 // a socket's filter sees it
	takeAll      = 1 << 18
	// randomAt is where a filter loads a random number from: SKF_AD_OFF + SKF_AD_RANDOM.
	randomAt = 0xfffff000 + 56
)

// Shed replaces what was to be dropped before.
func (c *Conn) Shed(s Shed) error {
	return control(c.raw, func(fd int) error {
		if s == (Shed{}) {
			return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
		}
		prog := s.program()
		return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]})
	})
}

// program is s for the kernel. What is too short to be judged is dropped.
func (s Shed) program() []unix.SockFilter {
	const load, jumpIf, and, end = unix.BPF_LD | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	mask := uint32(1)<<(bits.Len(uint(max(s.OneIn, 1)))-1) - 1
	return []unix.SockFilter{
		{Code: load | unix.BPF_B, K: udpHeaderLen},
		{Code: jumpIf, K: uint32(s.First), Jf: 5}, // another: take
		{Code: load | unix.BPF_W, K: uint32(udpHeaderLen + s.At)},
		{Code: jumpIf, K: s.Mark, Jf: 4}, // a stranger's: drop
		{Code: load | unix.BPF_W, K: randomAt},
		{Code: and, K: mask},
		{Code: jumpIf, K: 0, Jf: 1},
		{Code: end, K: takeAll},
		{Code: end},
	}
}
