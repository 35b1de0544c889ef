package transport

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"weave/mesh/wire"
)

// script is a connection whose other side says what was written down before.
type script struct {
	net.Conn
	in  io.Reader
	out bytes.Buffer
}

func (s *script) Read(b []byte) (int, error)       { return s.in.Read(b) }
func (s *script) Write(b []byte) (int, error)      { return s.out.Write(b) }
func (*script) Close() error                       { return nil }
func (*script) RemoteAddr() net.Addr               { return nil }
func (*script) SetDeadline(time.Time) error        { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// FuzzStream writes a stream in parts, damages and cuts what goes over the wire, and
// reads it: what comes out is the beginning of what went in, and who reads to the
// end knows whether it is all.
func FuzzStream(f *testing.F) {
	f.Add([]byte("some text"), uint16(3), uint32(0), byte(0), uint32(1000), true)
	f.Add(make([]byte, maxPlain+1), uint16(0), uint32(maxRecord), byte(1), uint32(maxRecord+20), false)
	f.Add([]byte("cut"), uint16(1), uint32(7), byte(0), uint32(19), true)
	f.Add([]byte{}, uint16(1), uint32(1), byte(0xff), uint32(18), false)
	f.Fuzz(func(t *testing.T, plain []byte, part uint16, at uint32, flip byte, keep uint32, aes bool) {
		key := func() *[32]byte { return &[32]byte{1} } // for both ways, and wiped by each end
		sent := &script{}
		w, err := newStream(sent, key(), key(), aes)
		if err != nil {
			t.Fatal(err)
		}
		for rest := plain; len(rest) > 0; {
			n := min(len(rest), int(part)+1)
			if _, err := w.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		came := bytes.Clone(sent.out.Bytes())
		if int(at) < len(came) {
			came[at] ^= flip
		}
		came = came[:min(len(came), int(keep))]
		whole := bytes.Equal(came, sent.out.Bytes())
		r, err := newStream(&script{in: iotest.HalfReader(bytes.NewReader(came))}, key(), key(), aes)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if !bytes.HasPrefix(plain, got) {
			t.Fatalf("%d bytes came that were not sent", len(got))
		}
		if whole && (err != nil || len(got) != len(plain)) {
			t.Fatalf("%d of %d bytes came, %v", len(got), len(plain), err)
		}
		if !whole && err == nil {
			t.Fatalf("of a damaged stream %d of %d bytes came without an error", len(got), len(plain))
		}
	})
}

// FuzzPipe sends junk through a pipe: each datagram that is whole is looked at once,
// and none that is not.
func FuzzPipe(f *testing.F) {
	a := start(f, "127.0.0.1")
	a.stop()
	f.Add([]byte{0, 3, 1, 2, 3, 0, 0, 0, 1, 9})
	f.Add(append([]byte{0xff, 0xff}, make([]byte, 0xffff)...))
	f.Add(bytes.Repeat([]byte{0, 1, 7}, 3*batch))
	f.Add([]byte{0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, in []byte) {
		before := a.droppedAll()
		a.readPipe(newPipe(&script{in: bytes.NewReader(in)}, a.self))
		want := uint64(0)
		for len(in) >= lengthLen {
			n := lengthLen + int(binary.BigEndian.Uint16(in))
			if n > len(in) {
				break
			}
			if h, err := wire.ParseHeader(in[lengthLen:n]); err != nil || h.Type != wire.TypeReject { // they are not counted
				want++
			}
			in = in[n:]
		}
		if got := a.droppedAll() - before; got != want {
			t.Errorf("%d datagrams came, %d were dropped", want, got)
		}
	})
}

func (n *node) droppedAll() (sum uint64) {
	for _, count := range n.Drops() {
		sum += count
	}
	return sum
}

// FuzzProxy: a proxy's answer lets us go on only if it is "200", and nothing of
// what comes behind it is lost.
func FuzzProxy(f *testing.F) {
	to := netip.MustParseAddrPort("[2001:db8::1]:443")
	for _, answer := range []string{
		"HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.0 200\r\nVia: x\r\n\r\nrest", "HTTP/1.1 407 No\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
		"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("y", maxAnswer), "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", "",
	} {
		f.Add([]byte(answer), "user", "pass\r\nX: y")
	}
	f.Fuzz(func(t *testing.T, answer []byte, user, password string) {
		in := bytes.NewReader(answer)
		c := &script{in: in}
		err := askProxy(c, url.UserPassword(user, password), to)
		if asked := c.out.String(); !strings.HasPrefix(asked, "CONNECT [2001:db8::1]:443 HTTP/1.1\r\n") || strings.Count(asked, "\n") > 6 {
			t.Errorf("asked %q", asked)
		}
		if read := len(answer) - in.Len(); read > maxAnswer+4<<10 {
			t.Errorf("read %d bytes of an answer", read)
		}
		if err != nil {
			return
		}
		line, _, _ := bytes.Cut(answer, []byte("\n"))
		if !bytes.HasPrefix(line, []byte("HTTP/")) || !bytes.Contains(line, []byte("200")) {
			t.Errorf("%q is taken for a way through", line)
		}
		if head := answer[:len(answer)-in.Len()]; !bytes.HasSuffix(head, []byte("\n\r\n")) && !bytes.HasSuffix(head, []byte("\n\n")) {
			t.Errorf("read %q, which is less or more than the head of an answer", head)
		}
	})
}
