// Package names measures the product's name server beside the smallest server
// that miekg/dns makes, over loopback and in the same minutes. It has no code but
// its test, and does not measure the upstream path or TCP.
package names

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	miekg "github.com/miekg/dns"

	"weave/plugin/dns"
)

var (
	doc    = flag.String("names.doc", "", "the document whose section \"How fast\" is written")
	rounds = flag.Int("names.rounds", 15, "how often each server is measured, in turn")
	window = flag.Duration("names.window", time.Second, "how long each time")
)

const (
	hosts, perHost = 20, 500 // 10,000 records
	clients        = 8       // sockets that ask at once
	burst          = 16      // queries that each has under way
)

// figures of one server: a value for each round.
type figures struct {
	rate   []float64       // queries answered per second
	median []time.Duration // from a lone query to its answer
}

func TestNames(t *testing.T) {
	if testing.Short() {
		t.Skip("measures for half a minute")
	}
	addresses := [2]string{weave(t), minimal(t)}
	var all [2]figures
	for range *rounds {
		for i, address := range addresses {
			all[i].median = append(all[i].median, lone(t, address))
			all[i].rate = append(all[i].rate, flood(t, address))
		}
	}
	text := section(all[0], all[1])
	t.Log("\n" + text)
	if *doc != "" {
		must(t, write(*doc, text))
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func name(i int) string { return fmt.Sprintf("web-%d.", i%(hosts*perHost)) }

func address(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 32, byte(i >> 8), byte(i)}) }

// weave is the product's server, as in a container on one segment.
func weave(t *testing.T) string {
	var table dns.Table
	for h := range hosts {
		var records []dns.Record
		for i := h * perHost; i < (h+1)*perHost; i++ {
			records = append(records, dns.Record{Segment: "s", Name: strings.TrimSuffix(name(i), "."), Addr: address(i)})
		}
		table.Set(fmt.Sprint("host", h), records)
	}
	s := dns.New(dns.Config{Table: &table, Domain: "weave.local", TTL: time.Second})
	scopes := []dns.Scope{{Segment: "s"}}
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() {
		served <- s.Serve(ctx, dns.Door{UDP: udp, TCP: tcp, Scopes: func() []dns.Scope { return scopes }})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return udp.LocalAddr().String()
}

// minimal is a server by miekg/dns that looks names up in a map.
func minimal(t *testing.T) string {
	records := map[string]net.IP{}
	for i := range hosts * perHost {
		records[name(i)] = address(i).AsSlice()
	}
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	s := &miekg.Server{PacketConn: conn, Handler: miekg.HandlerFunc(func(w miekg.ResponseWriter, q *miekg.Msg) {
		m := new(miekg.Msg).SetReply(q)
		m.Authoritative = true
		if ip, ok := records[q.Question[0].Name]; ok {
			h := miekg.RR_Header{Name: q.Question[0].Name, Rrtype: miekg.TypeA, Class: miekg.ClassINET, Ttl: 1}
			m.Answer = append(m.Answer, &miekg.A{Hdr: h, A: ip})
		}
		_ = w.WriteMsg(m)
	})}
	started, served := make(chan struct{}), make(chan error, 1)
	s.NotifyStartedFunc = func() { close(started) }
	go func() { served <- s.ActivateAndServe() }()
	<-started
	t.Cleanup(func() {
		must(t, s.Shutdown())
		<-served
	})
	return conn.LocalAddr().String()
}

// asker is a socket with queries for all names, and room for answers.
type asker struct {
	conn    net.Conn
	queries [][]byte
	buf     []byte
	next    int
}

func newAsker(t *testing.T, server string, from int) *asker {
	conn, err := net.Dial("udp", server)
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	a := &asker{conn: conn, buf: make([]byte, 1500), next: from}
	for i := range hosts * perHost {
		msg, err := new(miekg.Msg).SetQuestion(name(i), miekg.TypeA).Pack()
		must(t, err)
		a.queries = append(a.queries, msg)
	}
	return a
}

// ask sends n queries and waits for as many answers, each with one record.
func (a *asker) ask(n int) error {
	if err := a.conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	for range n {
		if _, err := a.conn.Write(a.queries[a.next%len(a.queries)]); err != nil {
			return err
		}
		a.next++
	}
	for range n {
		got, err := a.conn.Read(a.buf)
		if err != nil {
			return err
		}
		if got < 12 || a.buf[7] != 1 {
			return fmt.Errorf("an answer without a record: %x", a.buf[:got])
		}
	}
	return nil
}

// flood returns how many queries a second are answered.
func flood(t *testing.T, server string) float64 {
	var group sync.WaitGroup
	var done atomic.Int64
	askers := make([]*asker, clients)
	for i := range askers {
		askers[i] = newAsker(t, server, i*1000)
	}
	start := time.Now()
	for _, a := range askers {
		group.Go(func() {
			for time.Since(start) < *window {
				if err := a.ask(burst); err != nil {
					t.Error(err)
					return
				}
				done.Add(burst)
			}
		})
	}
	group.Wait()
	return float64(done.Load()) / time.Since(start).Seconds()
}

// lone returns the median time of a query that is alone, with the way there and back.
func lone(t *testing.T, server string) time.Duration {
	a := newAsker(t, server, 0)
	took := make([]time.Duration, 5000)
	for i := range took {
		start := time.Now()
		must(t, a.ask(1))
		took[i] = time.Since(start)
	}
	return middle(took)
}

func middle[T float64 | time.Duration](all []T) T {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[len(sorted)/2]
}

// ratios of two servers, round by round: the middle one, the lowest, the highest.
func ratios[T float64 | time.Duration](a, b []T) string {
	all := make([]float64, len(a))
	for i := range a {
		all[i] = float64(a[i]) / float64(b[i])
	}
	return fmt.Sprintf("%.2f (%.2f to %.2f)", middle(all), slices.Min(all), slices.Max(all))
}

const title = "## How fast\n"

// section is what the document says of the figures.
func section(weave, minimal figures) string {
	return fmt.Sprintf(title+`
With 10,000 records of 20 hosts, over loopback, with the clients on the same %d processors: Weave's server beside the smallest
one that miekg/dns makes, a handler that looks a name up in a map. Each was measured %d times, in turn; `+"`make bench-names`"+` does it again.

| | Weave | miekg/dns | ratio, middle (range) |
|---|---|---|---|
| queries answered per second, %d clients with %d under way each | %s | %s | %s |
| time of a lone query, there and back, median | %s | %s | %s |
`, runtime.NumCPU(), len(weave.rate), clients, burst,
		rate(weave), rate(minimal), ratios(weave.rate, minimal.rate),
		micro(weave), micro(minimal), ratios(weave.median, minimal.median))
}

func rate(f figures) string { return fmt.Sprintf("%.0f,000", middle(f.rate)/1000) }

func micro(f figures) string {
	return fmt.Sprintf("%.0f µs", float64(middle(f.median))/float64(time.Microsecond))
}

// write puts the section in the place of the one that the document has, or at its end.
func write(file, text string) error {
	old, err := os.ReadFile(file)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	before, rest, found := strings.Cut(string(old), title)
	if _, after, more := strings.Cut(rest, "\n## "); found && more {
		text += "\n## " + after
	}
	if !found && before != "" {
		before = strings.TrimRight(before, "\n") + "\n\n"
	}
	return os.WriteFile(file, []byte(before+text), 0o644)
}
