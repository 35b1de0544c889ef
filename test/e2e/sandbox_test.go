package e2e

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"path"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"weave/plugin/sandbox"
)

// TestSandbox: on a network of Docker's own, what containers ask comes to us first
// and what we pass on is answered by Docker, by UDP and TCP, also where the user
// named another server, and from a second container in the same sandbox. When we
// leave, all is Docker's again.
func TestSandbox(t *testing.T) {
	beside(t)
	h := hosts(t, 1)[0]
	net := uniqueName("bridge")
	docker(t, h, "network", "create", net)
	t.Cleanup(func() {
		if err := removeNetwork(t, h, net); err != nil {
			t.Error(err)
		}
	})
	other := run(t, h, net, []string{"--network-alias", "other"})
	asker := run(t, h, net, []string{"--dns", "10.99.0.250"})
	beside := run(t, h, "container:"+asker.name, nil)

	s, err := sandbox.Open(h.Path(sandboxOf(t, asker)))
	if err != nil {
		t.Fatal(err)
	}
	ended := resolve(s)
	for _, c := range []container{asker, beside} {
		for _, protocol := range []string{"udp", "tcp"} {
			for name, want := range map[string]string{"ours": "192.0.2.7", "other": other.ip(), other.name: other.ip()} {
				if got := c.exec("tool", "lookup", protocol, name); got != want {
					t.Errorf("%s: %s by %s is %q, want %s", c.name, name, protocol, got, want)
				}
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	<-ended
	<-ended
	if got := asker.exec("tool", "lookup", "udp", "other"); got != other.ip() {
		t.Errorf("left to Docker, other is %q, want %s", got, other.ip())
	}
	if got, err := asker.try("tool", "lookup", "udp", "ours"); err == nil {
		t.Errorf("left to Docker, ours is %q", got)
	}
}

// sandboxOf returns the path of a container's network namespace on its host.
func sandboxOf(t *testing.T, c container) string {
	t.Helper()
	var known struct {
		NetworkSettings struct{ SandboxKey string }
	}
	if err := ask(c.host, "/containers/"+c.name+"/json", &known); err != nil {
		t.Fatal(err)
	}
	return path.Join("/run/docker/netns", path.Base(known.NetworkSettings.SandboxKey))
}

// resolve answers for the name "ours" and passes on the rest, until the sandbox is
// closed: then two values come.
func resolve(s *sandbox.Sandbox) <-chan struct{} {
	ended := make(chan struct{}, 2)
	go func() {
		defer func() { ended <- struct{}{} }()
		buf := make([]byte, 4096)
		for {
			n, from, err := s.UDP().ReadFrom(buf)
			if err != nil {
				return
			}
			if answer := resolveOne(s, "udp", buf[:n]); answer != nil {
				_, _ = s.UDP().WriteTo(answer, from)
			}
		}
	}()
	go func() {
		defer func() { ended <- struct{}{} }()
		for {
			c, err := s.TCP().Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(soon))
			if question, err := readFramed(c); err == nil {
				_ = writeFramed(c, resolveOne(s, "tcp", question))
			}
			_ = c.Close()
		}
	}()
	return ended
}

// resolveOne returns the answer to a question, nil if there is none.
func resolveOne(s *sandbox.Sandbox, protocol string, question []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(question) != nil || len(m.Questions) != 1 {
		return nil
	}
	if q := m.Questions[0]; q.Name.String() == "ours." {
		m = dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, RecursionAvailable: true}, Questions: m.Questions}
		if q.Type == dnsmessage.TypeA {
			m.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class},
				Body:   &dnsmessage.AResource{A: [4]byte{192, 0, 2, 7}},
			}}
		}
		answer, _ := m.Pack()
		return answer
	}
	c, err := s.Dial(context.Background(), protocol)
	if err != nil {
		return nil
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(soon))
	if protocol == "tcp" {
		_ = writeFramed(c, question)
		answer, _ := readFramed(c)
		return answer
	}
	_, _ = c.Write(question)
	answer := make([]byte, 4096)
	n, _ := c.Read(answer)
	return answer[:n]
}

// readFramed reads a message of DNS by TCP (RFC 1035, 4.2.2).
func readFramed(c net.Conn) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		return nil, err
	}
	message := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(c, message)
	return message, err
}

func writeFramed(c net.Conn, message []byte) error {
	_, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message...))
	return err
}
