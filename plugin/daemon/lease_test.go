package daemon

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"weave/ipam"
	"weave/ipam/ring"
	"weave/plugin/store"
)

// lone is the Cluster of a host without others.
type lone struct{ ipam.Cluster }

const loneSelf = "lone"

func (lone) Known() []ring.Peer                     { return []ring.Peer{loneSelf} }
func (lone) Alive() []ring.Peer                     { return []ring.Peer{loneSelf} }
func (lone) Unmet() []string                        { return nil }
func (lone) Broadcast([]byte)                       {}
func (lone) SetFree(netip.Prefix, uint64)           {}
func (lone) Name(ring.Peer) string                  { return loneSelf }
func (lone) Free(netip.Prefix) map[ring.Peer]uint64 { return nil }

// diskLeaser leases and releases on a pool of its own, on disk.
type diskLeaser struct {
	tb        testing.TB
	allocator *ipam.Allocator
	pool      string
}

// newDiskLeaser holds a number of leases already.
func newDiskLeaser(tb testing.TB, held int) diskLeaser {
	tb.Helper()
	s, err := store.Open(filepath.Join(tb.TempDir(), "weave.db"))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	log := logrus.New()
	log.SetOutput(io.Discard)
	a, err := ipam.New(ipam.Config{
		Self: loneSelf, Range: netip.MustParsePrefix("10.32.0.0/12"), Store: s, Cluster: lone{},
		Busy:  func() ([]netip.Prefix, error) { return nil, nil },
		InUse: func(netip.Prefix) bool { return false },
		Log:   logrus.NewEntry(log),
	})
	if err != nil {
		tb.Fatal(err)
	}
	reply, err := a.RequestPool(context.Background(), ipam.PoolRequest{Pool: netip.MustParsePrefix("10.40.0.0/16")})
	if err != nil {
		tb.Fatal(err)
	}
	l := diskLeaser{tb, a, reply.ID}
	for range held {
		l.lease()
	}
	return l
}

func (l diskLeaser) lease() netip.Addr {
	l.tb.Helper()
	p, err := l.allocator.RequestAddress(context.Background(), ipam.AddressRequest{PoolID: l.pool, Kind: ipam.KindLease})
	if err != nil {
		l.tb.Fatal(err)
	}
	return p.Addr()
}

// timed returns how long a lease takes, which it gives back.
func (l diskLeaser) timed() time.Duration {
	l.tb.Helper()
	begin := time.Now()
	addr := l.lease()
	took := time.Since(begin)
	if err := l.allocator.ReleaseAddress(context.Background(), l.pool, addr); err != nil {
		l.tb.Fatal(err)
	}
	return took
}

func percentile(times []time.Duration, p int) time.Duration {
	slices.Sort(times)
	return times[(len(times)-1)*p/100]
}

// baseline is what of a lease is the machine's alone: a commit of the store syncs
// its file twice, and a lease computes a tenth of a millisecond or so.
type baseline struct {
	tb   testing.TB
	file *os.File
}

func newBaseline(tb testing.TB) baseline {
	tb.Helper()
	f, err := os.Create(filepath.Join(tb.TempDir(), "syncs"))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = f.Close() })
	return baseline{tb, f}
}

func (b baseline) timed() time.Duration {
	b.tb.Helper()
	page := make([]byte, 4096)
	begin := time.Now()
	for range 2 {
		for range 16 {
			sum := sha256.Sum256(page)
			copy(page, sum[:])
		}
		if _, err := b.file.WriteAt(page, 0); err != nil {
			b.tb.Fatal(err)
		}
		if err := b.file.Sync(); err != nil {
			b.tb.Fatal(err)
		}
	}
	return time.Since(begin)
}

// TestLeaseLatency holds the promise: under 5 ms for 99 of 100, disk included,
// with 1,000 leases held as with 10. It holds for the median of many batches, in
// which leases of both kinds come by turns with the baseline: where that takes a
// quarter of it already, others are at work on disk or processor, and nothing can
// be said.
func TestLeaseLatency(t *testing.T) {
	const leases, batches, bound = 100, 15, 5 * time.Millisecond
	few, many := newDiskLeaser(t, 10), newDiskLeaser(t, 1000)
	what := []struct {
		name  string
		timed func() time.Duration
	}{{"two syncs, computing", newBaseline(t).timed}, {"a lease, 10 held", few.timed}, {"a lease, 1,000 held", many.timed}}
	typical, worst := make([][]time.Duration, len(what)), make([][]time.Duration, len(what))
	for range batches {
		times := make([][]time.Duration, len(what))
		for range leases {
			for i, w := range what {
				times[i] = append(times[i], w.timed())
			}
		}
		for i := range what {
			typical[i] = append(typical[i], percentile(times[i], 50))
			worst[i] = append(worst[i], percentile(times[i], 99))
		}
	}
	for i, w := range what {
		t.Logf("%-21s %d batches of %d: median %s; 99th percentile: median batch %s, best %s, worst %s", w.name, batches, leases,
			percentile(typical[i], 50), percentile(worst[i], 50), percentile(worst[i], 0), percentile(worst[i], 100))
	}
	if least := percentile(worst[0], 50); least > bound/4 {
		t.Skipf("this machine is too slow or too busy to tell: of two syncs of the disk and a little computing, one in a hundred takes %s", least)
	}
	for i, w := range what[1:] {
		if p99 := percentile(worst[i+1], 50); p99 > bound {
			t.Errorf("%s: one in a hundred takes %s or more, want less than %s", w.name, p99, bound)
		}
	}
}

// BenchmarkLease leases from own space, disk included; TMPDIR says which disk.
func BenchmarkLease(b *testing.B) {
	for _, held := range []int{10, 1000} {
		b.Run(fmt.Sprintf("held=%d", held), func(b *testing.B) {
			l := newDiskLeaser(b, held)
			var times []time.Duration
			for b.Loop() {
				times = append(times, l.timed())
			}
			for _, p := range []int{50, 99} {
				b.ReportMetric(float64(percentile(times, p).Microseconds())/1000, fmt.Sprintf("p%d-ms", p))
			}
			b.ReportMetric(0, "ns/op") // half of it would be the release
		})
	}
}
