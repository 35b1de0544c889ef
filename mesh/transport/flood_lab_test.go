package transport

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weave/mesh/handshake"
	"weave/mesh/id"
	"weave/mesh/wire"
)

// victim is a Transport in a process of its own, so that what it costs to receive
// is not mixed with what it costs to send.
type victim struct {
	t       *testing.T
	process *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Scanner
	self    id.PeerID
	addr    netip.AddrPort
}

// victimReport is what it tells when it is asked.
type victimReport struct {
	Self  string
	Addr  netip.AddrPort
	CPU   time.Duration // of all its threads, in the kernel too
	Drops map[string]uint64
}

const victimEnv = "WEAVE_TEST_VICTIM"

func startVictim(t *testing.T) *victim {
	t.Helper()
	v := &victim{t: t, process: exec.Command("/proc/self/exe", "-test.run=^TestVictimProcess$", "-test.timeout=5m")}
	v.process.Env = append(os.Environ(), victimEnv+"=1")
	v.process.Stderr = os.Stderr
	var err error
	if v.in, err = v.process.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := v.process.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	v.out = bufio.NewScanner(out)
	if err := v.process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // it ends with its input
		_ = v.in.Close()
		_ = v.process.Wait()
	})
	r := v.report()
	if v.self, err = id.Parse(r.Self); err != nil {
		t.Fatal(err)
	}
	v.addr = r.Addr
	return v
}

func (v *victim) report() (r victimReport) {
	v.t.Helper()
	if _, err := fmt.Fprintln(v.in); err != nil {
		v.t.Fatal(err)
	}
	for v.out.Scan() {
		if text, ok := bytes.CutPrefix(v.out.Bytes(), []byte("> ")); ok {
			if err := json.Unmarshal(text, &r); err != nil {
				v.t.Fatal(err)
			}
			return r
		}
	}
	v.t.Fatal("the process ended")
	return r
}

// judged counts the first messages that were dropped, for whatever reason.
func (r victimReport) judged() uint64 {
	return r.Drops[dropNames[dropPassword]] + r.Drops[dropNames[dropReplay]] + r.Drops[dropNames[dropRate]] + r.Drops[dropNames[dropBusy]]
}

// TestVictimProcess is the process. It sends back each item that it gets.
func TestVictimProcess(t *testing.T) {
	if os.Getenv(victimEnv) == "" {
		return
	}
	var tr *Transport
	cfg := Config{
		Identity: testIdentity(t), Nickname: "victim", Incarnation: 1, Log: quiet(),
		Listen: netip.MustParseAddrPort("127.0.0.1:0"),
		Packet: func(from id.PeerID, kind wire.Kind, body []byte) { _ = tr.Send(from, kind, body) },
	}
	cfg.Keys = &rightKeys
	tr, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- tr.Run(ctx) }()
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var use unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &use); err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(victimReport{
			Self: cfg.Identity.ID.String(), Addr: netip.AddrPortFrom(cfg.Listen.Addr(), tr.Port()),
			CPU:   time.Duration(use.Utime.Nano() + use.Stime.Nano()),
			Drops: tr.Drops(),
		})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("\n> %s\n", text) // the testing package writes lines of its own
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

const ownNetworkEnv = "WEAVE_TEST_OWN_NETWORK"

// ownNetwork reports whether the test runs in a network namespace of its own. If not,
// it has run it again in one, in a new process. In this machine's the packet filter may
// note each source of a flood, until it has no room and drops what others send.
func ownNetwork(t *testing.T) bool {
	t.Helper()
	if os.Getenv(ownNetworkEnv) != "" {
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			t.Fatal(err)
		}
		return true
	}
	if os.Geteuid() != 0 {
		if os.Getenv("WEAVE_REQUIRE_ROOT") == "1" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	again := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=5m")
	again.Env = append(os.Environ(), ownNetworkEnv+"=1")
	again.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	out, err := again.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
	return false
}

// flood sends datagrams to an address as a stranger does, from sources of the
// loopback network, each of which may be another.
type flood struct {
	fd   int
	to   unix.SockaddrInet4
	from func(i int) [4]byte
	next func(i int) []byte
}

func newFlood(t *testing.T, to netip.AddrPort, from func(i int) [4]byte, next func(i int) []byte) *flood {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{}); err != nil {
		t.Fatal(err)
	}
	return &flood{fd: fd, to: unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}, from: from, next: next}
}

// run sends so many in a second for so long, or as many as it can; it returns how
// many that were.
func (f *flood) run(rate int, long time.Duration) (sent int, err error) {
	for began := time.Now(); time.Since(began) < long; {
		for due := int(time.Since(began).Seconds() * float64(rate)); sent < due; sent++ {
			source := unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: f.from(sent)})
			if _, err := unix.SendmsgN(f.fd, f.next(sent), source, &f.to, 0); err != nil && err != unix.ENOBUFS {
				return sent, os.NewSyscallError("sendmsg", err)
			}
			if sent%256 == 0 && time.Since(began) > long {
				return sent, nil
			}
		}
		time.Sleep(time.Millisecond)
	}
	return sent, nil
}

// one is a source for all; each, another for each.
func one(int) [4]byte    { return [4]byte{127, 66, 0, 1} }
func each(i int) [4]byte { return [4]byte{127, byte(67 + i>>16&63), byte(i >> 8), byte(i)} }

// firstMessages are true ones of one stranger or insider.
func firstMessages(t *testing.T, keys handshake.Keys, n int) (out [][]byte) {
	t.Helper()
	who := testIdentity(t)
	for i := range n {
		_, msg, err := handshake.Initiate(handshake.Config{Identity: who, Keys: keys, Medium: handshake.Datagrams, Index: uint32(i)})
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, msg)
	}
	return out
}

// junk looks like first messages.
func junk(t *testing.T, n int) (out [][]byte) {
	t.Helper()
	for i := range n {
		msg := make([]byte, handshake.Len1)
		if _, err := rand.Read(msg); err != nil {
			t.Fatal(err)
		}
		wire.Header{Type: wire.TypeHandshake1, Version: wire.Version, Counter: uint64(i)}.Put(msg)
		out = append(out, msg)
	}
	return out
}

func cycle(msgs [][]byte) func(int) []byte { return func(i int) []byte { return msgs[i%len(msgs)] } }

const (
	floodRate  = 100_000 // first messages in a second
	floodTime  = 3 * time.Second
	floodShare = 0.2 // of a processor
)

// TestLabStrangers holds that a flood of forged first messages costs less than a
// fifth of a processor, that a link loses next to nothing meanwhile, and that a
// newcomer gets in.
func TestLabStrangers(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	for _, c := range []struct {
		name string
		from func(int) [4]byte
		msgs [][]byte
	}{
		{"junk", one, junk(t, 1000)},
		{"junk, each from another address", each, junk(t, 1000)},
		{"a wrong password", one, firstMessages(t, wrongKeys, 100)},
		{"a wrong password, each from another address", each, firstMessages(t, wrongKeys, 100)},
		{"recorded", one, firstMessages(t, rightKeys, 1000)},
		{"recorded, each from another address", each, firstMessages(t, rightKeys, 1000)},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := startVictim(t)
			peer := start(t, "127.0.0.2")
			if _, err := peer.Connect(within(t, 10*time.Second), v.addr); err != nil {
				t.Fatal(err)
			}
			f := newFlood(t, v.addr, c.from, cycle(c.msgs))
			before := v.report()
			began := time.Now()
			sent := make(chan int, 1)
			go func() {
				n, err := f.run(floodRate, floodTime)
				if err != nil {
					t.Error(err)
				}
				sent <- n
			}()
			newcomer := start(t, "127.0.0.9")
			var joined time.Duration
			met := make(chan error, 1)
			go func() {
				time.Sleep(floodTime / 6) // the flood is in full flow
				from := time.Now()
				_, err := newcomer.Connect(within(t, 20*time.Second), v.addr)
				joined = time.Since(from)
				met <- err
			}()
			asked, answered := echoes(peer, v.self, floodTime)
			n := <-sent
			took := time.Since(began)
			after := v.report()
			if err := <-met; err != nil {
				t.Errorf("a newcomer does not get in: %v", err)
			}
			judged := after.judged() - before.judged()
			cpu := after.CPU - before.CPU
			t.Logf("%.0f a second, one in %d of them seen, take %.1f %% of a processor, %s each; %d of %d items echoed; a newcomer was in after %s",
				float64(n)/took.Seconds(), n/int(max(judged, 1)), 100*float64(cpu)/float64(took), cpu/time.Duration(max(n, 1)),
				answered, asked, joined.Round(time.Millisecond))
			if share := float64(cpu) / float64(took); share > floodShare {
				t.Errorf("the flood takes %.0f %% of a processor, want %.0f %%", 100*share, 100*floodShare)
			}
			if answered < asked*3/4 {
				t.Errorf("%d of %d items echoed", answered, asked)
			}
		})
	}
}

// echoes sends items to a peer that sends them back, and counts both.
func echoes(n *node, to id.PeerID, long time.Duration) (asked, answered int) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.After(long)
	for {
		select {
		case <-tick.C:
			if n.Send(to, wire.KindGossip, []byte("item")) == nil {
				asked++
			}
		case <-n.packets:
			answered++
		case <-end:
			for last := time.After(time.Second); answered < asked; {
				select {
				case <-n.packets:
					answered++
				case <-last:
					return asked, answered
				}
			}
			return asked, answered
		}
	}
}
