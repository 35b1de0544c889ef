package host

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What we read of the tables of legacy iptables. They come by getsockopt as C
// structures: an ipt_getinfo, and an ipt_get_entries with one ipt_entry per
// rule (linux/netfilter_ipv4/ip_tables.h, and the same for IPv6).
const (
	getInfo    = 64 // IPT_SO_GET_INFO, IP6T_SO_GET_INFO
	getEntries = 65 // IPT_SO_GET_ENTRIES, IP6T_SO_GET_ENTRIES

	infoLen         = 84
	infoUnderflow   = 64 // where FORWARD's policy is, from the first entry
	infoSize        = 80 // bytes of all entries
	entriesSize     = 32
	entriesStart    = 40
	targetName      = 2 // empty for a verdict or a jump
	targetVerdict   = 32
	verdictDrop     = -1
	verdictAccept   = -2
	maxLegacyLength = 16 << 20
)

// legacyLayout is where the fields of an entry are.
type legacyLayout struct {
	family, level int
	inName        int // and the names' masks after the two names
	targetOffset  int
	nextOffset    int
}

// legacyDrops tells whether legacy iptables drops bridged frames: it sees them,
// its policy for FORWARD is DROP, and it has no rule for our bridges.
func (f family) legacyDrops() (bool, error) {
	bridged, err := readSwitch(f.bridged)
	if err != nil || !bridged {
		return false, err
	}
	// Asking for a table would make one, so first look whether there is any.
	tables, err := os.ReadFile(f.legacyTables)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if !slices.ContainsFunc(bytes.Fields(tables), func(t []byte) bool { return string(t) == "filter" }) {
		return false, nil
	}
	entries, policy, err := f.layout.read()
	if err != nil {
		return false, fmt.Errorf("read legacy %s: %w", f.iptables, err)
	}
	return f.layout.drops(entries, policy), nil
}

// read returns the entries of the table filter, and where among them the
// policy of FORWARD is.
func (l legacyLayout) read() (entries []byte, policy int, err error) {
	s, err := unix.Socket(l.family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = unix.Close(s) }()
	info := make([]byte, infoLen)
	copy(info, "filter")
	if err := getsockopt(s, l.level, getInfo, info); err != nil {
		return nil, 0, err
	}
	size := binary.NativeEndian.Uint32(info[infoSize:])
	if size > maxLegacyLength {
		return nil, 0, fmt.Errorf("the table has %d bytes", size)
	}
	all := make([]byte, entriesStart+size)
	copy(all, "filter")
	binary.NativeEndian.PutUint32(all[entriesSize:], size)
	// EAGAIN: the table changed between the two calls. The next look will do.
	if err := getsockopt(s, l.level, getEntries, all); err != nil && !errors.Is(err, unix.EAGAIN) {
		return nil, 0, err
	}
	return all[entriesStart:], int(binary.NativeEndian.Uint32(info[infoUnderflow:])), nil
}

// drops reads the entries.
func (l legacyLayout) drops(entries []byte, policy int) bool {
	drop := false
	for at := 0; at+l.nextOffset+2 <= len(entries); {
		entry := entries[at:]
		next := int(binary.NativeEndian.Uint16(entry[l.nextOffset:]))
		if next < l.nextOffset+2 || next > len(entry) {
			return drop
		}
		verdict, ok := l.verdict(entry[:next])
		if ok && at == policy {
			drop = verdict == verdictDrop
		}
		if ok && verdict == verdictAccept && l.ours(entry) {
			return false
		}
		at += next
	}
	return drop
}

// verdict returns what an entry decides by itself.
func (l legacyLayout) verdict(entry []byte) (int32, bool) {
	target := int(binary.NativeEndian.Uint16(entry[l.targetOffset:]))
	if target+targetVerdict+4 > len(entry) || entry[target+targetName] != 0 {
		return 0, false
	}
	return int32(binary.NativeEndian.Uint32(entry[target+targetVerdict:])), true
}

// ours tells whether an entry matches links called wv+ on both sides.
func (l legacyLayout) ours(entry []byte) bool {
	names, masks := entry[l.inName:], entry[l.inName+2*unix.IFNAMSIZ:]
	for side := range 2 {
		name, mask := names[side*unix.IFNAMSIZ:], masks[side*unix.IFNAMSIZ:]
		if !bytes.HasPrefix(name, []byte(Prefix)) || !bytes.HasPrefix(mask, []byte{0xff, 0xff, 0}) {
			return false
		}
	}
	return true
}

func getsockopt(s, level, name int, buf []byte) error {
	size := uint32(len(buf))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
