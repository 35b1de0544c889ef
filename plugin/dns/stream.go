package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"syscall"
	"time"
)

// connections serves each connection until it is closed, or idle for too long.
func (o *door) connections(ctx context.Context) error {
	for {
		c, err := o.TCP.Accept()
		if err != nil {
			if passes(err) {
				select { // there are too many files; some will be closed
				case <-time.After(acceptPause):
				case <-ctx.Done():
				}
				continue
			}
			return err
		}
		select {
		case o.conns <- struct{}{}:
			o.tasks.Go(func() {
				defer func() { <-o.conns }()
				o.connection(ctx, c)
			})
		default:
			o.counts.dropped.Add(1)
			_ = c.Close()
		}
	}
}

// acceptPause is how long no connection is accepted when there was no room for one.
const acceptPause = 50 * time.Millisecond

// passes tells of errors of Accept that are not the listener's.
func passes(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// isRefused tells of the error that a datagram before has left.
func isRefused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// connection answers the messages of one connection in their order, however many
// come at once.
func (o *door) connection(ctx context.Context, c net.Conn) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })() // wakes it up
	var in, out []byte
	for {
		if c.SetDeadline(time.Now().Add(idleTime)) != nil || ctx.Err() != nil {
			return
		}
		msg, err := readMessage(c, in)
		if err != nil {
			return
		}
		in = msg
		reply, pass := o.reply(out[:0], msg, true)
		if pass != nil {
			if reply = o.ask(ctx, "tcp", msg, *pass); reply == nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(idleTime)) // the others took their time
		} else if cap(reply) > 0 {
			out = reply
		}
		if len(reply) == 0 || writeMessage(c, reply) != nil {
			return
		}
	}
}

// readMessage reads a message behind its length (RFC 1035, 4.2.2), into buf if it
// is large enough.
func readMessage(r io.Reader, buf []byte) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	_, err := io.ReadFull(r, buf[:n])
	return buf[:n], err
}

// writeMessage writes both at once: some servers want them in one segment.
func writeMessage(w io.Writer, msg []byte) error {
	b := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(msg)), uint16(len(msg)))
	_, err := w.Write(append(b, msg...))
	return err
}
