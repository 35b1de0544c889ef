package engine

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// ErrNoContainer says that the engine answered and has no such container.
var ErrNoContainer = errors.New("no such container")

// Container is what the engine knows of a container that names follow from.
type Container struct {
	ID          string
	Name        string // without a slash
	Hostname    string // what its own program sees; the start of its ID unless its user gave one
	Domainname  string
	Attachments []Attachment // ordered by endpoint
}

// Attachment is a container's endpoint on a network.
type Attachment struct {
	Network  string   // ID
	Endpoint string   // ID; of no container that is stopped
	Aliases  []string // what else the container is called there, as by a compose file's service
}

// attachments is the engine's list of a container's networks, by their names.
type attachments map[string]*struct {
	NetworkID, EndpointID string
	Aliases               []string
}

func (all attachments) list() (out []Attachment) {
	for _, a := range all {
		if a != nil && a.EndpointID != "" {
			out = append(out, Attachment{a.NetworkID, a.EndpointID, a.Aliases})
		}
	}
	slices.SortFunc(out, func(a, b Attachment) int { return strings.Compare(a.Endpoint, b.Endpoint) })
	return out
}

// Containers returns the containers that run, paused ones too, by their IDs and
// attachments only, which lack aliases: the engine's list does not tell more.
func (c *Client) Containers(ctx context.Context) ([]Container, error) {
	var raw []struct {
		ID              string `json:"Id"`
		NetworkSettings struct{ Networks attachments }
	}
	if err := c.get(ctx, "/containers/json", &raw); err != nil {
		return nil, fmt.Errorf("ask the engine for its containers: %w", err)
	}
	var all []Container
	for _, r := range raw {
		all = append(all, Container{ID: r.ID, Attachments: r.NetworkSettings.Networks.list()})
	}
	return all, nil
}

// Container returns the container with exactly that ID, or ErrNoContainer. While
// it starts, the engine may not answer until it has.
func (c *Client) Container(ctx context.Context, id string) (Container, error) {
	var raw struct {
		ID              string `json:"Id"`
		Name            string
		Config          struct{ Hostname, Domainname string }
		NetworkSettings struct{ Networks attachments }
	}
	err := c.get(ctx, "/containers/"+url.PathEscape(id)+"/json", &raw)
	if errors.Is(err, ErrNotFound) || err == nil && raw.ID != id { // the engine also looks for a name, and for the start of an ID
		err = ErrNoContainer
	}
	if err != nil {
		return Container{}, fmt.Errorf("ask the engine for container %.64s: %w", id, err)
	}
	return Container{
		ID: raw.ID, Name: strings.TrimPrefix(raw.Name, "/"), Hostname: raw.Config.Hostname, Domainname: raw.Config.Domainname,
		Attachments: raw.NetworkSettings.Networks.list(),
	}, nil
}
