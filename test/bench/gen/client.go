package gen

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"net/rpc"
	"time"
)

// callMargin is what a call may take beyond what it was asked for.
const callMargin = 15 * time.Second

// Client steers an agent in another process. It is safe for concurrent use.
type Client struct{ rpc *rpc.Client }

// NewClient takes over the pipe to an agent.
func NewClient(c io.ReadWriteCloser) *Client { return &Client{rpc.NewClient(c)} }

// Close ends the agent.
func (c *Client) Close() error { return c.rpc.Close() }

func (c *Client) call(ctx context.Context, method string, limit time.Duration, args, reply any) error {
	ctx, cancel := context.WithTimeout(ctx, limit+callMargin)
	defer cancel()
	call := c.rpc.Go("Agent."+method, args, reply, make(chan *rpc.Call, 1))
	select {
	case <-call.Done:
		if call.Error != nil {
			return fmt.Errorf("load generator: %w", call.Error)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("load generator: %s: %w", method, ctx.Err())
	}
}

// Counts returns what the agent has received.
func (c *Client) Counts(ctx context.Context) (Counts, error) {
	var out Counts
	err := c.call(ctx, "Counts", 0, 0, &out)
	return out, err
}

// TCP streams to another agent; see Agent.TCP.
func (c *Client) TCP(ctx context.Context, args TCPArgs) error {
	return c.call(ctx, "TCP", args.For, args, new(int))
}

// UDP floods another agent; see Agent.UDP.
func (c *Client) UDP(ctx context.Context, args UDPArgs) (sent uint64, err error) {
	err = c.call(ctx, "UDP", args.For, args, &sent)
	return sent, err
}

// Ping measures round trips to another agent; see Agent.Ping.
func (c *Client) Ping(ctx context.Context, args PingArgs) (PingReply, error) {
	var out PingReply
	err := c.call(ctx, "Ping", args.For, args, &out)
	return out, err
}

// Await waits until another agent answers.
func (c *Client) Await(ctx context.Context, to netip.Addr, limit time.Duration) error {
	for end := time.Now().Add(limit); ; {
		reply, err := c.Ping(ctx, PingArgs{To: to, For: time.Millisecond})
		switch {
		case err != nil || len(reply.Nanos) > reply.Lost:
			return err
		case time.Now().After(end):
			return fmt.Errorf("no answer from %s within %s", to, limit)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
