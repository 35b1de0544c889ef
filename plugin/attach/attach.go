// Package attach puts containers of the local Docker Engine on segments, and
// takes them off: it finds or makes the Docker network of a subnet, and connects
// and disconnects. So Docker keeps what it did, over all restarts.
//
// It asks Docker only. What it must know of the cluster, it is told.
package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"weave/plugin/engine"
)

// Docker goes on with a change that its caller gives up: so each is waited for,
// whatever becomes of the caller's context.
const (
	stepLimit = time.Minute
	undoLimit = time.Minute // for all that one command takes back
)

// Docker is one engine. Its methods may be called concurrently.
type Docker struct {
	host     string
	networks lister
	api      api
}

// lister reads networks: moby's client refuses what engine 20.10 says of some.
type lister interface {
	Networks(ctx context.Context) ([]engine.Network, error)
}

// api is the part of moby's client that is used.
type api interface {
	ContainerInspect(ctx context.Context, container string, o client.ContainerInspectOptions) (client.ContainerInspectResult, error)
	ContainerList(ctx context.Context, o client.ContainerListOptions) (client.ContainerListResult, error)
	ContainerStart(ctx context.Context, container string, o client.ContainerStartOptions) (client.ContainerStartResult, error)
	ContainerRemove(ctx context.Context, container string, o client.ContainerRemoveOptions) (client.ContainerRemoveResult, error)
	ContainerAttach(ctx context.Context, container string, o client.ContainerAttachOptions) (client.ContainerAttachResult, error)
	ContainerWait(ctx context.Context, container string, o client.ContainerWaitOptions) client.ContainerWaitResult
	ContainerKill(ctx context.Context, container string, o client.ContainerKillOptions) (client.ContainerKillResult, error)
	ContainerResize(ctx context.Context, container string, o client.ContainerResizeOptions) (client.ContainerResizeResult, error)
	NetworkCreate(ctx context.Context, name string, o client.NetworkCreateOptions) (client.NetworkCreateResult, error)
	NetworkConnect(ctx context.Context, network string, o client.NetworkConnectOptions) (client.NetworkConnectResult, error)
	NetworkDisconnect(ctx context.Context, network string, o client.NetworkDisconnectOptions) (client.NetworkDisconnectResult, error)
	NetworkRemove(ctx context.Context, network string, o client.NetworkRemoveOptions) (client.NetworkRemoveResult, error)
}

// New returns the engine that DOCKER_HOST names, or the usual one. It must be
// this host's, since the plugin is. It is connected to when it is used.
func New() (*Docker, error) {
	c, err := client.New(client.FromEnv)
	if err != nil {
		return nil, fmt.Errorf("DOCKER_HOST=%.200q: %w", os.Getenv(client.EnvOverrideHost), err)
	}
	path, ok := strings.CutPrefix(c.DaemonHost(), "unix://")
	if !ok {
		return nil, fmt.Errorf("DOCKER_HOST=%.200q: weave works with the Docker Engine of its own host; unset it, or give a unix:// socket", c.DaemonHost())
	}
	return &Docker{host: c.DaemonHost(), networks: engine.New(path), api: c}, nil
}

// Host returns the engine's address, as in DOCKER_HOST.
func (d *Docker) Host() string { return d.host }

// explain makes an error of the engine's fit for a person.
func (d *Docker) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled): // by the user, who need not know where it was
		return context.Canceled
	case errors.Is(err, fs.ErrPermission), client.IsErrConnectionFailed(err) && strings.Contains(err.Error(), "permission denied"):
		return fmt.Errorf("only root and the group docker may talk to the Docker Engine (%s): try again with sudo", d.host)
	case client.IsErrConnectionFailed(err), errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("the Docker Engine does not answer on %s: is it running? See it with: systemctl status docker", d.host)
	}
	text := strings.TrimPrefix(err.Error(), "Error response from daemon: ")
	// "remote: " and the like say by which call of the plugin the engine failed.
	for _, call := range pluginCalls {
		if _, said, ok := strings.Cut(text, call+": "); ok {
			text = said
		}
	}
	return errors.New(text)
}

// pluginCalls are those whose refusals users see.
var pluginCalls = []string{
	"IpamDriver.RequestPool", "IpamDriver.RequestAddress",
	"NetworkDriver.CreateNetwork", "NetworkDriver.CreateEndpoint", "NetworkDriver.Join",
}

func isNotFound(err error) bool { return errdefs.IsNotFound(err) }
