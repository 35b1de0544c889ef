package main

import (
	"context"
	"encoding/hex"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestUDPFrame(t *testing.T) {
	source := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	target := net.HardwareAddr{2, 0, 0, 0, 0, 2}
	frame := udpFrame(source, target, netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2"), "hi")
	const want = "020000000002020000000001" + "0800" +
		"4500001e000000004011" + "66cd" + "0a0000010a000002" +
		"00010002000a0000" + "6869"
	if got := hex.EncodeToString(frame); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if sum := checksum(frame[14:34]); sum != 0 {
		t.Errorf("header with its checksum sums to %#x", sum)
	}
}

func TestEcho(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		t.Run(network, func(t *testing.T) {
			ctx, cancel := context.WithCancel(context.Background())
			addr := freeAddr(t)
			served := make(chan error, 1)
			go func() { served <- echo(ctx, options{}, []string{network, addr}) }()
			o := options{text: "there and back", timeout: time.Second}
			var err error
			for range 100 {
				if err = send(ctx, o, []string{network, addr}); err == nil {
					break
				}
				time.Sleep(10 * time.Millisecond) // the server is about to listen
			}
			if err != nil {
				t.Error(err)
			}
			cancel()
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
	}
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestBadArguments(t *testing.T) {
	for args, want := range map[string]string{
		"":                        "usage",
		"dance":                   `no verb "dance"`,
		"http":                    "usage: tool http",
		"http -count=x :1":        "invalid value",
		"inject-arp a b c d":      "invalid MAC",
		"unreachable -timeout=1s": "usage",
	} {
		if err := run(strings.Fields(args)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("tool %s: %v, want %q", args, err, want)
		}
	}
}
