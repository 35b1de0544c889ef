package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"weave/test/dockerlab"
)

// nebulaBinary is what prepare makes of the module in ./nebula.
func nebulaBinary() string { return filepath.Join(nebulaDir(), "nebula") }

// nebulaDir is where the go.mod in ./nebula expects the source.
func nebulaDir() string { return filepath.Join(dockerlab.ProjectDir(), "build", "bench") }

// nebulaMTU is what an underlay of 1500 bytes leaves: 28 of IP and UDP, 16 of
// nebula's header, 16 of the tag. Its default, 1300, would cost it.
const nebulaMTU = 1440

// nebulaSettings is the tuning that its documents offer: offloads on TUN and
// socket, full batches, large queues, AES. What more routines (pairs of threads)
// bring depends on the load, so both are measured, and the better counts.
const nebulaSettings = `pki: {ca: DIR/ca.crt, cert: DIR/hHOST.crt, key: DIR/hHOST.key}
static_host_map: {"10.40.0.PEER": ["10.99.0.PEER:4242"]}
lighthouse: {am_lighthouse: false}
listen: {host: 0.0.0.0, port: 4242, batch: 128, read_buffer: 8388608, write_buffer: 8388608, udp_offloads: true}
routines: ROUTINES
cipher: aes
tun: {dev: nebula1, mtu: 1440, tx_queue: 5000, use_offloads: true}
local_api: {control: {enabled: false}}
logging: {level: warning, format: text}
firewall: {outbound: [{port: any, proto: any, host: any}], inbound: [{port: any, proto: any, host: any}]}
`

// buildNebula starts its daemon on each host, with the load on the hosts
// themselves, since it is a layer-3 tunnel.
func buildNebula(ctx context.Context, p *pair, routines int) error {
	if _, err := os.Stat(nebulaBinary()); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: nebula could not be prepared, see the lines above", errLacks)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if out, err := exec.CommandContext(ctx, nebulaBinary(), "keys", p.dir, overlay(0).String(), overlay(1).String()).CombinedOutput(); err != nil {
		return fmt.Errorf("make nebula's keys: %w: %s", err, out)
	}
	p.mtu = nebulaMTU
	p.note = fmt.Sprintf("%s, use_offloads, udp_offloads, batch 128, buffers of 8 MiB, AES, routines %d", nebulaModule, routines)
	for i := range p.ends {
		e := &p.ends[i]
		e.addr = overlay(i).Addr()
		settings := strings.NewReplacer("DIR", p.dir, "HOST", fmt.Sprint(i+1), "PEER", fmt.Sprint(2-i), "ROUTINES", fmt.Sprint(routines)).Replace(nebulaSettings)
		file := filepath.Join(p.dir, fmt.Sprintf("h%d.yml", i+1))
		if err := os.WriteFile(file, []byte(settings), 0o600); err != nil {
			return err
		}
		daemon, err := p.starter.start(program{
			space: e.space, log: p.log("nebula", i), args: []string{nebulaBinary(), "run", file},
		})
		if err != nil {
			return err
		}
		p.daemons = append(p.daemons, daemon)
	}
	return nil
}
