package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// closeWith closes c when ctx ends, so that a SIGTERM unblocks whatever waits
// on it; the returned function gives that up.
func closeWith(ctx context.Context, c io.Closer) (stop func() bool) {
	return context.AfterFunc(ctx, func() { c.Close() })
}

func serveHTTP(ctx context.Context, o options, args []string) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	server := &http.Server{Addr: args[0], Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s from %s to %s\n", o.text, host, r.RemoteAddr)
	})}
	defer closeWith(ctx, server)()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func get(ctx context.Context, o options, args []string) error {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, args[0], nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(os.Stdout, response.Body)
	return err
}

func echo(ctx context.Context, _ options, args []string) error {
	if args[0] == "udp" {
		return echoUDP(ctx, args[1])
	}
	return acceptAll(ctx, args[1], func(c net.Conn) { io.Copy(c, c) })
}

func echoUDP(ctx context.Context, addr string) error {
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		return err
	}
	defer closeWith(ctx, c)()
	buf := make([]byte, 65536)
	for {
		n, from, err := c.ReadFrom(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := c.WriteTo(buf[:n], from); err != nil {
			fmt.Fprintln(os.Stderr, "echo:", err)
		}
	}
}

// acceptAll serves each TCP connection in a goroutine that ends with it.
func acceptAll(ctx context.Context, addr string, serve func(net.Conn)) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	defer closeWith(ctx, l)()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			serve(c)
		}()
	}
}

func send(ctx context.Context, o options, args []string) error {
	answer, err := exchange(ctx, o, args[0], args[1])
	if err != nil {
		return err
	}
	if string(answer) != o.text {
		return fmt.Errorf("sent %q, got %q", o.text, answer)
	}
	fmt.Printf("%s\n", answer)
	return nil
}

// exchange sends the text and waits for as many bytes.
func exchange(ctx context.Context, o options, network, addr string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(c, o.text); err != nil {
		return nil, err
	}
	answer := make([]byte, len(o.text))
	_, err = io.ReadFull(c, answer)
	return answer, err
}

func unreachable(ctx context.Context, o options, args []string) error {
	for _, network := range []string{"udp", "tcp"} {
		if answer, err := exchange(ctx, o, network, args[0]); err == nil {
			return fmt.Errorf("%s %s answered %q", network, args[0], answer)
		}
	}
	return nil
}

// hold bounces one byte at a time over one connection and prints a line each
// time it came back.
func hold(ctx context.Context, _ options, args []string) error {
	c, err := net.Dial("tcp", args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	start, beats := time.Now(), 0
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		sent := byte(beats)
		answer := []byte{0}
		if _, err := c.Write([]byte{sent}); err != nil {
			return fmt.Errorf("after %d beats: %w", beats, err)
		}
		if _, err := io.ReadFull(c, answer); err != nil {
			return fmt.Errorf("after %d beats: %w", beats, err)
		}
		if answer[0] != sent {
			return fmt.Errorf("after %d beats: sent %d, got %d", beats, sent, answer[0])
		}
		beats++
		fmt.Printf("beat %d at %v\n", beats, time.Since(start).Round(time.Millisecond))
	}
}

const (
	pulseEvery = 10 * time.Millisecond
	pulseLine  = 100 * time.Millisecond // at least, between two lines
)

// pulse sends a datagram every 10 ms, answered or not, so that nothing but the
// path itself is in what it prints: the longest time without an answer since
// the line before.
func pulse(ctx context.Context, _ options, args []string) error {
	c, err := net.Dial("udp", args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	defer closeWith(ctx, c)()
	go func() {
		tick := time.NewTicker(pulseEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			_, _ = c.Write([]byte{0}) // what is refused is silence
		}
	}()
	var longest time.Duration
	answer, last := make([]byte, 1), time.Now()
	for printed := last; ; {
		if _, err := c.Read(answer); err != nil && ctx.Err() != nil {
			return nil
		} else if err != nil {
			continue
		}
		now := time.Now()
		longest, last = max(longest, now.Sub(last)), now
		if now.Sub(printed) >= pulseLine {
			fmt.Println("silent for", longest)
			longest, printed = 0, now
		}
	}
}

func sink(ctx context.Context, _ options, args []string) error {
	return acceptAll(ctx, args[0], func(c net.Conn) {
		io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 1<<20))
	})
}

// throughput counts what the socket took; the send buffer's few MB more than
// what arrived are noise over seconds. Congestion control is cubic, whatever
// the machine's default is; a container may choose it with NET_ADMIN only.
func throughput(ctx context.Context, o options, args []string) error {
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		var optErr error
		err := raw.Control(func(fd uintptr) {
			optErr = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic")
		})
		return errors.Join(err, optErr)
	}}
	c, err := d.DialContext(ctx, "tcp", args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(o.timeout + 5*time.Second)); err != nil {
		return err
	}
	buf := make([]byte, 256<<10)
	start, total := time.Now(), 0
	for time.Since(start) < o.timeout && ctx.Err() == nil {
		n, err := c.Write(buf)
		total += n
		if err != nil {
			return err
		}
	}
	fmt.Printf("%.2f Gbit/s\n", float64(total)*8/1e9/time.Since(start).Seconds())
	return nil
}
