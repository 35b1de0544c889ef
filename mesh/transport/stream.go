package transport

import (
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"weave/mesh/id"
	"weave/mesh/session"
	"weave/mesh/wire"
)

// Sizes of the records of a stream, in bytes. A record is the length of what
// follows (2 bytes, authenticated), ciphertext, and a tag; its nonce is its
// number. An empty one is the end of the stream: so a cut one can be told from
// one that was closed.
const (
	recordHeader = 2
	maxPlain     = 16 << 10
	maxRecord    = recordHeader + maxPlain + wire.TagLen
)

// closeTimeout bounds how long Close may wait to send the end record.
const closeTimeout = time.Second

var errRecord = errors.New("stream: forged or damaged record")

// stream is a net.Conn of sealed records over another one. As with any
// net.Conn its methods may be called concurrently. Read returns io.EOF only
// where the other side closed, and io.ErrUnexpectedEOF where it was cut off.
// After a Write failed half-way, by its deadline too, every other one fails.
type stream struct {
	net.Conn
	peer    id.PeerID // at the other end, of a stream that we opened
	onClose func()

	closing sync.Once

	readMu sync.Mutex // guards what follows
	reader sealer
	in     []byte // the beginning of a record, as read so far
	plain  []byte // opened and not yet read
	readEr error  // sticky

	writeMu sync.Mutex // guards what follows
	writer  sealer
	out     []byte
	writeEr error // sticky
}

// sealer is one direction's cipher and its counter.
type sealer struct {
	aead    cipher.AEAD
	nonce   [12]byte
	counter uint64
}

// next returns the nonce of the next record.
func (s *sealer) next() []byte {
	binary.BigEndian.PutUint64(s.nonce[4:], s.counter)
	s.counter++
	return s.nonce[:]
}

// newStream wipes the keys.
func newStream(c net.Conn, send, receive *[32]byte, aes bool) (*stream, error) {
	defer clear(send[:])
	defer clear(receive[:])
	w, err := session.NewAEAD(send, aes)
	if err != nil {
		return nil, err
	}
	r, err := session.NewAEAD(receive, aes)
	if err != nil {
		return nil, err
	}
	return &stream{
		Conn:   c,
		reader: sealer{aead: r},
		writer: sealer{aead: w},
		in:     make([]byte, 0, maxRecord),
		out:    make([]byte, 0, maxRecord),
	}, nil
}

// Read implements net.Conn.
func (s *stream) Read(b []byte) (int, error) {
	s.readMu.Lock()
	defer s.readMu.Unlock()
	if len(b) == 0 {
		return 0, nil
	}
	if len(s.plain) == 0 {
		if s.readEr != nil {
			return 0, s.readEr
		}
		if err := s.nextRecord(); err != nil {
			if !isTimeout(err) { // what was read of the record is kept
				s.readEr = err
			}
			return 0, err
		}
	}
	n := copy(b, s.plain)
	s.plain = s.plain[n:]
	return n, nil
}

// nextRecord reads and opens one record.
func (s *stream) nextRecord() error {
	if err := s.fill(recordHeader); err != nil {
		return err
	}
	n := int(binary.BigEndian.Uint16(s.in))
	if n < wire.TagLen || n > maxPlain+wire.TagLen {
		return errRecord
	}
	if err := s.fill(recordHeader + n); err != nil {
		return err
	}
	text := s.in[recordHeader:]
	plain, err := s.reader.aead.Open(text[:0], s.reader.next(), text, s.in[:recordHeader])
	if err != nil {
		return errRecord
	}
	s.in = s.in[:0]
	if len(plain) == 0 {
		return io.EOF
	}
	s.plain = plain
	return nil
}

// fill reads until n bytes of the record are there.
func (s *stream) fill(n int) error {
	for len(s.in) < n {
		got, err := s.Conn.Read(s.in[len(s.in):n])
		s.in = s.in[:len(s.in)+got]
		if err == io.EOF && len(s.in) < n {
			return io.ErrUnexpectedEOF
		}
		if err != nil && len(s.in) < n {
			return err
		}
	}
	return nil
}

// Write implements net.Conn.
func (s *stream) Write(b []byte) (int, error) {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	done := 0
	for done < len(b) {
		n := min(len(b)-done, maxPlain)
		if err := s.writeRecord(b[done : done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

func (s *stream) writeRecord(plain []byte) error {
	if s.writeEr != nil {
		return s.writeEr
	}
	out := binary.BigEndian.AppendUint16(s.out[:0], uint16(len(plain)+wire.TagLen))
	out = s.writer.aead.Seal(out, s.writer.next(), plain, out)
	_, s.writeEr = s.Conn.Write(out)
	return s.writeEr
}

// Close sends the end record, unless a Write is under way, and closes the
// connection under it.
func (s *stream) Close() error {
	err := net.ErrClosed
	s.closing.Do(func() {
		if s.writeMu.TryLock() {
			_ = s.Conn.SetWriteDeadline(time.Now().Add(closeTimeout))
			_ = s.writeRecord(nil) // the other side sees a cut stream instead
			s.writeEr = net.ErrClosed
			s.writeMu.Unlock()
		}
		err = s.Conn.Close()
		if s.onClose != nil {
			s.onClose()
		}
	})
	return err
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
