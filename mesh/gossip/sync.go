package gossip

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"time"

	"weave/mesh/id"
	"weave/mesh/wire"
)

// Limits of the sync streams.
const (
	maxDigest   = 4 << 20  // bytes
	maxDelta    = 64 << 20 // bytes
	maxPages    = 1000     // deltas for one replica in one pull
	syncTime    = 2 * time.Minute
	chunk       = 64 << 10 // bytes written in one step
	frameHeader = 4
)

var errFrame = errors.New("gossip: malformed sync stream")

// pull fetches all that a peer has and we have not. On the stream we ask for
// one replica after the other,
//
//	length(1) name length(4, big-endian) digest
//
// and each request is answered by
//
//	length(4) delta
//
// which is empty if nothing is missing. As long as deltas bring something new,
// there may be more.
func (g *Gossip) pull(from id.PeerID) error {
	c, err := g.life.dial(g.cfg.Carrier, from, wire.StreamSync, g.cfg.Timing.IO)
	if err != nil {
		return fmt.Errorf("pull from peer %s: %w", from.Short(), err)
	}
	defer func() { _ = c.Close() }()
	s := newPatient(c, g.cfg.Timing.IO)
	var refused []error
	for _, name := range slices.Sorted(maps.Keys(g.cfg.Replicas)) {
		merge, err := fetch(s, from, name, g.cfg.Replicas[name])
		if err != nil {
			return fmt.Errorf("pull %s from peer %s: %w", name, from.Short(), err)
		}
		if merge != nil {
			refused = append(refused, fmt.Errorf("%w: %s of peer %s: %w", errRefused, name, from.Short(), merge))
		}
	}
	return errors.Join(refused...)
}

// fetch pulls one replica. It tells errors of the stream from those of merging.
func fetch(s io.ReadWriter, from id.PeerID, name string, r Replica) (merge, err error) {
	for range maxPages {
		digest := r.Digest()
		if err := writeRequest(s, name, digest); err != nil {
			return nil, err
		}
		delta, err := readFrame(s, maxDelta)
		if err != nil || len(delta) == 0 {
			return nil, err
		}
		if err := r.Merge(from, delta); err != nil && !errors.Is(err, ErrGap) {
			return err, nil
		}
		if bytes.Equal(digest, r.Digest()) {
			return nil, nil
		}
	}
	return nil, nil
}

// serve answers the requests of a sync stream until its end.
func (g *Gossip) serve(s io.ReadWriter) error {
	for {
		name, digest, err := readRequest(s)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var delta []byte
		if r := g.cfg.Replicas[name]; r != nil {
			delta = r.Missing(digest)
		}
		if len(delta) > maxDelta {
			return fmt.Errorf("delta of %d bytes of replica %s: %w", len(delta), name, errFrame)
		}
		if err := writeFrame(s, nil, delta); err != nil {
			return err
		}
	}
}

func writeRequest(w io.Writer, name string, digest []byte) error {
	return writeFrame(w, append([]byte{byte(len(name))}, name...), digest)
}

func readRequest(r io.Reader) (name string, digest []byte, err error) {
	var length [1]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return "", nil, err
	}
	if length[0] > maxReplicaName {
		return "", nil, errFrame
	}
	b := make([]byte, length[0])
	if _, err := io.ReadFull(r, b); err != nil {
		return "", nil, whole(err)
	}
	digest, err = readFrame(r, maxDigest)
	return string(b), digest, err
}

// writeFrame writes a head, the length of the body and the body.
func writeFrame(w io.Writer, head, body []byte) error {
	out := make([]byte, 0, len(head)+frameHeader+len(body))
	out = binary.BigEndian.AppendUint32(append(out, head...), uint32(len(body)))
	_, err := w.Write(append(out, body...))
	return err
}

// readFrame reads a length and a body, and takes memory only for what comes.
func readFrame(r io.Reader, limit int) ([]byte, error) {
	var length [frameHeader]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, whole(err)
	}
	n := binary.BigEndian.Uint32(length[:])
	if n > uint32(limit) {
		return nil, fmt.Errorf("frame of %d bytes: %w", n, errFrame)
	}
	var body bytes.Buffer
	if _, err := io.CopyN(&body, r, int64(n)); err != nil {
		return nil, whole(err)
	}
	return body.Bytes(), nil
}

// whole turns an end in the middle of something into an error.
func whole(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// patient waits for a stream as long as it moves: each step has a deadline, and
// so has the whole.
type patient struct {
	conn net.Conn
	step time.Duration
	end  time.Time
}

func newPatient(c net.Conn, step time.Duration) *patient {
	return &patient{conn: c, step: step, end: time.Now().Add(syncTime)}
}

// extend moves the deadline for the next step.
func (p *patient) extend() error {
	next := time.Now().Add(p.step)
	if next.After(p.end) {
		next = p.end
	}
	return p.conn.SetDeadline(next)
}

func (p *patient) Read(b []byte) (int, error) {
	if err := p.extend(); err != nil {
		return 0, err
	}
	return p.conn.Read(b)
}

func (p *patient) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		if err := p.extend(); err != nil {
			return done, err
		}
		n, err := p.conn.Write(b[done:min(done+chunk, len(b))])
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}
