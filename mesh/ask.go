package mesh

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"weave/mesh/id"
	"weave/mesh/wire"
)

// Bounds in bytes.
const (
	maxAsk    = 8<<20 + 1 // a request, or an answer with its first byte
	maxReason = 1 << 10   // of a refusal
)

// askTimeout ends an exchange when the caller's context does not earlier.
const askTimeout = 5 * time.Second

// ErrRefused wraps what a peer answered instead of a result.
var ErrRefused = errors.New("peer refused")

// Ask sends one request to a peer's Answer function over a sealed stream and
// returns what that answers. The exchange may have happened even though Ask
// fails, so requests must bear repetition.
func (n *Node) Ask(ctx context.Context, to id.PeerID, request []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	answer, err := n.ask(ctx, to, request)
	if err != nil {
		return nil, fmt.Errorf("ask peer %s: %w", to.Short(), err)
	}
	return answer, nil
}

func (n *Node) ask(ctx context.Context, to id.PeerID, request []byte) ([]byte, error) {
	if len(request) > maxAsk {
		return nil, errTooLong(len(request))
	}
	c, err := n.transport.Dial(ctx, to, wire.StreamAsk)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }() // all was read
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := writeBlob(c, request); err != nil {
		return nil, hurried(ctx, err)
	}
	answer, err := readBlob(c)
	switch {
	case err != nil:
		return nil, hurried(ctx, err)
	case len(answer) == 0:
		return nil, io.ErrUnexpectedEOF
	case answer[0] != askOK:
		return nil, fmt.Errorf("%w: %s", ErrRefused, printable(string(answer[1:]), maxReason))
	}
	return answer[1:], nil
}

// hurried puts the end of the context in the place of what it did to a stream.
func hurried(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// An answer starts with one of these bytes; after askError comes a text.
const (
	askOK    = 0
	askError = 1
)

// serveAsk answers one request that a peer made.
func (n *Node) serveAsk(from id.PeerID, c net.Conn) error {
	defer func() { _ = c.Close() }() // the answer is on its way, or cannot be
	if err := c.SetDeadline(time.Now().Add(2 * askTimeout)); err != nil {
		return fmt.Errorf("serve request: %w", err)
	}
	request, err := readBlob(c)
	if err != nil {
		return fmt.Errorf("read request: %w", err)
	}
	ctx, cancel := context.WithTimeout(n.life, askTimeout)
	defer cancel()
	answer, err := n.cfg.Answer(ctx, from, request)
	reply := append([]byte{askOK}, answer...)
	if err == nil && len(reply) > maxAsk {
		err = errTooLong(len(answer))
	}
	if err != nil {
		reply = append([]byte{askError}, err.Error()...)
	}
	if err := writeBlob(c, reply); err != nil {
		return fmt.Errorf("write answer: %w", err)
	}
	return nil
}

func errTooLong(n int) error {
	return fmt.Errorf("message of %d bytes, at most %d are taken", n, maxAsk-1)
}

// writeBlob writes the length of b in four bytes, and b.
func writeBlob(w io.Writer, b []byte) error {
	buf := make([]byte, 4, 4+len(b))
	binary.BigEndian.PutUint32(buf, uint32(len(b)))
	_, err := w.Write(append(buf, b...))
	return err
}

func readBlob(r io.Reader) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > maxAsk {
		return nil, errTooLong(int(n))
	}
	// Grow with what arrives, not with what is promised.
	b, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err == nil && len(b) < int(n) {
		err = io.ErrUnexpectedEOF
	}
	return b, err
}
