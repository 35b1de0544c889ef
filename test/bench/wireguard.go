package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

const (
	wireguardMTU = 1420 // WireGuard's own default
	wireguardEnv = "BENCH_WIREGUARD"
)

// runWireGuard is the daemon of one host, until ctx ends.
func runWireGuard(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: wireguard PREFIX, with %s set", wireguardEnv)
	}
	prefix, err := netip.ParsePrefix(args[0])
	if err != nil {
		return err
	}
	const name = "wg0"
	dev, err := tun.CreateTUN(name, wireguardMTU)
	if err != nil {
		return fmt.Errorf("make TUN: %w", err)
	}
	wg := device.NewDevice(dev, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, ""))
	defer wg.Close()
	if err := wg.IpcSet(os.Getenv(wireguardEnv)); err != nil {
		return fmt.Errorf("configure: %w", err)
	}
	if err := wg.Up(); err != nil {
		return fmt.Errorf("bring up: %w", err)
	}
	if err := bringUp(name, name, "", prefix, wireguardMTU); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case <-wg.Wait():
		return fmt.Errorf("device ended")
	}
}
