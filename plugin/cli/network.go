package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
)

// DockerCommand is Networks by the docker command.
type DockerCommand struct{}

// Network implements Networks.
func (DockerCommand) Network(ctx context.Context, subnet netip.Prefix, made string) (name string, created bool, err error) {
	name = "weave-" + strings.NewReplacer("/", "-", ":", "-").Replace(subnet.String())
	err = docker(ctx, "network", "create", "-d", "weave", "--ipam-driver", "weave", "--subnet", subnet.String(),
		"--label", "org.weave.made="+made, name)
	return name, err == nil, err
}

// Remove implements Networks.
func (DockerCommand) Remove(ctx context.Context, name string) error {
	return docker(ctx, "network", "rm", name)
}

func docker(ctx context.Context, args ...string) error {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Stderr = &stderr
	err := cmd.Run()
	switch text := strings.TrimSpace(stderr.String()); {
	case errors.Is(err, exec.ErrNotFound):
		return errors.New("there is no docker command on this host")
	case err != nil && text != "":
		return fmt.Errorf("docker %s: %s", args[1], text)
	}
	return err
}
