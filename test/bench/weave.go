package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weave/test/dockerlab"
)

// weaveKind is how the daemon is made to carry frames.
type weaveKind int

const (
	weaveAES    weaveKind = iota
	weaveChaCha           // as on a CPU without AES
	weaveFast             // without a password, through the kernel
	weaveHosts            // as weaveAES, the load on the hosts themselves, by weave expose
)

// errLacks means that a system is not there to be measured; the run goes on
// without it.
var errLacks = errors.New("left out")

// noAES makes the daemon see a CPU without AES-GCM: the same switch that
// golang.org/x/sys/cpu offers to every program.
func noAES() string {
	if runtime.GOARCH == "arm64" {
		return "GODEBUG=cpu.pmull=off"
	}
	return "GODEBUG=cpu.pclmulqdq=off"
}

const weavePassword = "only for the benchmark"

func weaveBinary() string { return filepath.Join(dockerlab.BuildDir(), "weave") }

// buildWeave starts a binary of the plugin on each host, and plays
// Docker's part: a network and an endpoint by the plugin's own socket, and the
// namespace that the endpoint's link goes to.
func buildWeave(ctx context.Context, p *pair, kind weaveKind, binary string) error {
	p.note = "bridge, veth and container on each host"
	if kind == weaveHosts {
		p.note = "bridge on each host, with an address of the host's own"
	}
	for i := range p.ends {
		if kind != weaveHosts {
			if err := p.addContainer(i, overlay(i).Addr()); err != nil {
				return err
			}
		}
		if err := p.startWeave(i, kind, binary); err != nil {
			return err
		}
	}
	for i := range p.ends {
		join := p.joinWeave
		if kind == weaveHosts {
			join = p.exposeWeave
		}
		if err := join(ctx, i); err != nil {
			return err
		}
	}
	if kind == weaveFast {
		p.ready = p.awaitFast
	}
	return nil
}

func (p *pair) weaveDir(i int) string { return filepath.Join(p.dir, fmt.Sprintf("h%d", i+1)) }

func (p *pair) startWeave(i int, kind weaveKind, binary string) error {
	dir, e := p.weaveDir(i), p.ends[i]
	for _, sub := range []string{"state", "run/docker/plugins", "run/weave"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return err
		}
	}
	env := []string{
		"WEAVE_STATE=" + filepath.Join(dir, "state"), "WEAVE_RUN=" + filepath.Join(dir, "run"),
		"WEAVE_ADDRESS=" + e.host.IP4().String(), "WEAVE_NICKNAME=" + e.host.Name(), "WEAVE_LOG_LEVEL=info",
	}
	if i > 0 {
		env = append(env, "WEAVE_PEERS="+p.ends[0].host.IP4().String())
	}
	switch kind {
	case weaveAES, weaveHosts:
		env = append(env, "WEAVE_PASSWORD="+weavePassword)
	case weaveChaCha:
		env = append(env, "WEAVE_PASSWORD="+weavePassword, noAES())
	}
	daemon, err := p.starter.start(program{
		space: e.host.Namespace(), log: p.log("weave", i), env: env, cloneflags: unix.CLONE_NEWNS,
		args: []string{self(), "weave", binary},
	})
	if err == nil {
		p.daemons = append(p.daemons, daemon)
	}
	return err
}

// runWeave hides the host's /run, where the daemon would make a socket for a
// Docker Engine that is not meant, and becomes the daemon. It is called in a
// mount namespace of its own.
func runWeave(_ context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("usage: weave BINARY")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "size=16m"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	if err := os.MkdirAll("/run/docker/plugins", 0o755); err != nil {
		return err
	}
	// The signal is a thread's, and need not be set on this one.
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("end with the benchmark: %w", err)
	}
	return syscall.Exec(args[0], []string{"weave", "daemon"}, os.Environ())
}

// createWeave does what dockerd does for `docker network create`. It returns the
// network's ID, and how to call the plugin.
func (p *pair) createWeave(ctx context.Context, i int) (string, pluginCall, error) {
	call := pluginCaller(filepath.Join(p.weaveDir(i), "run/docker/plugins/weave.sock"))
	network, pool := strings.Repeat("b", 64), overlay(i).Masked().String()
	err := p.retry(ctx, func() error {
		return call(ctx, "IpamDriver.RequestPool", map[string]any{"AddressSpace": "LocalDefault", "Pool": pool}, nil)
	})
	if err != nil {
		return "", nil, err
	}
	return network, call, call(ctx, "NetworkDriver.CreateNetwork", map[string]any{
		"NetworkID": network, "Options": map[string]any{"com.docker.network.generic": map[string]any{}},
		"IPv4Data": []any{map[string]any{"AddressSpace": "LocalDefault", "Pool": pool}},
	}, nil)
}

// exposeWeave does what `weave expose` does after `docker network create`.
func (p *pair) exposeWeave(ctx context.Context, i int) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if _, _, err := p.createWeave(ctx, i); err != nil {
		return err
	}
	var exposed []struct{ Bridge string }
	call := pluginCaller(filepath.Join(p.weaveDir(i), "run/weave/weave.sock"))
	err := call(ctx, "v1/expose", map[string]any{
		"targets": []any{map[string]any{"subnet": overlay(i).Masked(), "address": overlay(i).Addr()}},
	}, &exposed)
	if err != nil {
		return err
	}
	if len(exposed) != 1 {
		return fmt.Errorf("%d addresses are exposed", len(exposed))
	}
	p.ends[i].addr = overlay(i).Addr()
	return p.ends[i].host.Do(func() error {
		l, err := netlink.LinkByName(exposed[0].Bridge)
		if err == nil {
			p.mtu = l.Attrs().MTU
		}
		return err
	})
}

// joinWeave does what dockerd does for `docker network create` and `docker run`.
func (p *pair) joinWeave(ctx context.Context, i int) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	network, call, err := p.createWeave(ctx, i)
	if err != nil {
		return err
	}
	e, endpoint := &p.ends[i], strings.Repeat(fmt.Sprint(i+1), 64)
	var made struct{ Interface struct{ MacAddress string } }
	err = call(ctx, "NetworkDriver.CreateEndpoint", map[string]any{
		"NetworkID": network, "EndpointID": endpoint, "Interface": map[string]any{"Address": overlay(i).String()},
	}, &made)
	if err != nil {
		return err
	}
	var joined struct{ InterfaceName struct{ SrcName string } }
	err = call(ctx, "NetworkDriver.Join", map[string]any{
		"NetworkID": network, "EndpointID": endpoint, "SandboxKey": "/var/run/docker/netns/" + e.space,
	}, &joined)
	if err != nil {
		return err
	}
	link := joined.InterfaceName.SrcName
	err = e.host.Do(func() error {
		l, err := netlink.LinkByName(link)
		if err == nil {
			p.mtu = l.Attrs().MTU
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("link %s: %w", link, err)
	}
	return e.plugIn(link, made.Interface.MacAddress, overlay(i), p.mtu)
}

// retry repeats what fails while the daemon is still starting.
func (p *pair) retry(ctx context.Context, f func() error) error {
	for {
		err := f()
		if err == nil {
			return nil
		}
		if dead := p.alive(); dead != nil {
			return dead
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", err, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// pluginCall calls a method of a plugin, and decodes the answer into reply.
type pluginCall func(ctx context.Context, method string, args, reply any) error

// pluginCaller returns how to call a plugin as dockerd does.
func pluginCaller(socket string) pluginCall {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}}
	return func(ctx context.Context, method string, args, reply any) error {
		body, err := json.Marshal(args)
		if err != nil {
			return err
		}
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://plugin/"+method, bytes.NewReader(body))
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err != nil {
			return fmt.Errorf("%s: %w", method, err)
		}
		defer response.Body.Close()
		answer, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
		if err == nil && response.StatusCode != http.StatusOK {
			err = errors.New(strings.TrimSpace(string(answer)))
		}
		if err == nil && reply != nil {
			err = json.Unmarshal(answer, reply)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", method, err)
		}
		return nil
	}
}

// fastLimit is how long the hosts may take to find the fast path.
const fastLimit = 20 * time.Second

// awaitFast waits until both hosts send frames through a VXLAN device. Whatever
// the daemon says of its path, this is what the fast path is.
func (p *pair) awaitFast(ctx context.Context) error {
	for end := time.Now().Add(fastLimit); ; {
		used := 0
		for i := range p.ends {
			devices, sent, err := vxlanTraffic(&p.ends[i])
			if err != nil {
				return err
			}
			if devices == 0 && time.Now().After(end.Add(-fastLimit/2)) {
				return fmt.Errorf("%w: this build of Weave has no fast path (no VXLAN device on %s)", errLacks, p.ends[i].host.Name())
			}
			if sent > 0 {
				used++
			}
		}
		if used == len(p.ends) {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%w: no frame took the fast path within %s", errLacks, fastLimit)
		}
		if err := p.awaitFrames(ctx); err != nil {
			return err
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// vxlanTraffic counts the VXLAN devices of a host and the packets they sent.
func vxlanTraffic(e *end) (devices int, sent uint64, err error) {
	err = e.host.Do(func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			if l.Type() == "vxlan" {
				devices++
				sent += l.Attrs().Statistics.TxPackets
			}
		}
		return err
	})
	return devices, sent, err
}
