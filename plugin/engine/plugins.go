package engine

import (
	"context"
	"fmt"
)

// Version is what an engine says of itself.
type Version struct {
	Version string `json:"version"`
	API     string `json:"apiVersion"`
	Kernel  string `json:"kernel"`
}

// Version asks the engine what it is.
func (c *Client) Version(ctx context.Context) (Version, error) {
	var raw struct{ Version, ApiVersion, KernelVersion string }
	if err := c.get(ctx, "/version", &raw); err != nil {
		return Version{}, fmt.Errorf("ask the engine for its version: %w", err)
	}
	return Version{raw.Version, raw.ApiVersion, raw.KernelVersion}, nil
}

// Plugin is a managed plugin.
type Plugin struct {
	ID         string
	Name       string
	Enabled    bool
	Entrypoint []string
	Env        []string // NAME=VALUE each; there may be passwords in it
}

// Plugins returns the engine's managed plugins.
func (c *Client) Plugins(ctx context.Context) ([]Plugin, error) {
	var raw []struct {
		ID       string `json:"Id"`
		Name     string
		Enabled  bool
		Settings struct{ Env []string }
		Config   struct{ Entrypoint []string }
	}
	if err := c.get(ctx, "/plugins", &raw); err != nil {
		return nil, fmt.Errorf("ask the engine for its plugins: %w", err)
	}
	var all []Plugin
	for _, p := range raw {
		all = append(all, Plugin{p.ID, p.Name, p.Enabled, p.Config.Entrypoint, p.Settings.Env})
	}
	return all, nil
}
