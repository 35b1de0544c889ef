package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"syscall"
	"time"
)

// Errors that a Client returns besides those that the plugin sends.
var (
	// ErrNotRunning says that nobody serves the socket.
	ErrNotRunning = errors.New("the weave plugin does not run on this host")
	// ErrPermission says that this user may not use the socket.
	ErrPermission = errors.New("only root may talk to the weave plugin")
	// ErrOld says that the plugin does not know the request.
	ErrOld = errors.New("the weave plugin is older than this command: `weave launch` upgrades it (a service: restart it)")
)

const (
	clientTimeout = serveTimeout + 10*time.Second
	maxAnswer     = 256 << 20 // a status has some 300 bytes for each endpoint of the cluster
)

// Client talks to the plugin. Its methods may be called concurrently.
type Client struct {
	path string
	http http.Client
}

// NewClient returns a client for the unix socket at path. It connects when it
// is used.
func NewClient(path string) *Client {
	dialer := &net.Dialer{}
	return &Client{path: path, http: http.Client{
		Timeout: clientTimeout,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, "unix", path)
			},
		},
	}}
}

// Status returns the plugin's status.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.call(ctx, http.MethodGet, statusPath, nil, &s)
	return s, err
}

// Connect has the plugin connect to the addresses, host or host:port each. There
// is a result for each; an error means that none was taken.
func (c *Client) Connect(ctx context.Context, addrs []string) ([]ConnectResult, error) {
	body, err := json.Marshal(addresses{addrs})
	if err != nil {
		return nil, err
	}
	var results []ConnectResult
	err = c.call(ctx, http.MethodPost, connectPath, body, &results)
	return results, err
}

// Forget has the plugin take back addresses that Connect was given. The error
// names those that it could not.
func (c *Client) Forget(ctx context.Context, addrs []string) error {
	body, err := json.Marshal(addresses{addrs})
	if err != nil {
		return err
	}
	return c.call(ctx, http.MethodPost, forgetPath, body, &struct{}{})
}

func (c *Client) call(ctx context.Context, method, path string, body []byte, result any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://weave"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.translate(err)
	}
	defer func() { _ = resp.Body.Close() }() // read only: nothing is lost
	dec := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer))
	if resp.StatusCode == http.StatusNotFound {
		return ErrOld
	}
	if resp.StatusCode != http.StatusOK {
		var e errorAnswer
		if err := dec.Decode(&e); err != nil || e.Error == "" {
			return fmt.Errorf("the weave plugin answered %s", resp.Status)
		}
		return errors.New(e.Error)
	}
	if err := dec.Decode(result); err != nil {
		return fmt.Errorf("malformed answer of the weave plugin: %w", err)
	}
	return nil
}

// translate tells the everyday reasons apart, why nobody answers.
func (c *Client) translate(err error) error {
	timeout, isTimeout := errors.AsType[net.Error](err)
	switch {
	case errors.Is(err, context.Canceled):
		return context.Canceled
	case isTimeout && timeout.Timeout():
		return fmt.Errorf("the weave plugin does not answer on %s in time: see its log, and try again", c.path)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w (nobody answers on %s)", ErrNotRunning, c.path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w (socket %s)", ErrPermission, c.path)
	}
	return fmt.Errorf("ask the weave plugin on %s: %w", c.path, err)
}
