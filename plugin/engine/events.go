package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// maxEvent is the length of the longest event that is read, in bytes: labels of
// its container are in it.
const maxEvent = 1 << 20

// eventFilter is what Events asks for: all that changes what a container is
// called, or whether it is there.
const eventFilter = `{"type":["container","network"],"event":["start","die","rename","connect","disconnect"]}`

// Events tells of the containers whose names or networks change, by their IDs,
// until ctx ends or the engine does; it always returns an error. Ready is called
// once the engine has said that it will tell: what happened before is not told. Both
// functions are called from the goroutine of the caller.
func (c *Client) Events(ctx context.Context, ready func(), changed func(container string)) error {
	if err := c.events(ctx, ready, changed); err != nil {
		return fmt.Errorf("follow the engine's events: %w", err)
	}
	return fmt.Errorf("follow the engine's events: %w", io.ErrUnexpectedEOF)
}

func (c *Client) events(ctx context.Context, ready func(), changed func(container string)) error {
	asked := time.Now().Add(-time.Second) // the engine answers before it listens; it keeps the latest
	version, err := c.version(ctx)
	if err != nil {
		return err
	}
	query := url.Values{"filters": {eventFilter}, "since": {strconv.FormatInt(asked.Unix(), 10)}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/v"+version+"/events?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	endless := http.Client{Transport: c.endless()}
	resp, err := endless.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // read only: nothing is lost
	if resp.StatusCode != http.StatusOK {
		return refusal(resp.StatusCode, io.LimitReader(resp.Body, maxAnswer))
	}
	ready()
	return readEvents(resp.Body, changed)
}

// endless is the transport of an answer that does not end.
func (c *Client) endless() http.RoundTripper {
	if t, ok := c.http.Transport.(*http.Transport); ok {
		t = t.Clone()
		t.ResponseHeaderTimeout = callTimeout
		return t
	}
	return c.http.Transport
}

// readEvents reads JSON values until there are no more.
func readEvents(r io.Reader, changed func(container string)) error {
	bounded := &io.LimitedReader{R: r}
	dec := json.NewDecoder(bounded)
	for {
		bounded.N = maxEvent
		var e struct {
			Type  string
			Actor struct {
				ID         string
				Attributes struct {
					Container string `json:"container"`
				}
			}
		}
		if err := dec.Decode(&e); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("malformed event: %w", err)
		}
		id := e.Actor.ID
		if e.Type == "network" {
			id = e.Actor.Attributes.Container
		}
		if id != "" {
			changed(id)
		}
	}
}
