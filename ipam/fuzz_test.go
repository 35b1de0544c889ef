package ipam

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/sirupsen/logrus"

	"weave/ipam/ring"
)

// liar is a Cluster of two peers, of which the other answers whatever it is asked
// the same.
type liar struct{ says []byte }

func (liar) Known() []ring.Peer                                       { return []ring.Peer{"a", "b"} }
func (liar) Alive() []ring.Peer                                       { return []ring.Peer{"a", "b"} }
func (liar) Unmet() []string                                          { return nil }
func (l liar) Ask(context.Context, ring.Peer, []byte) ([]byte, error) { return l.says, nil }
func (liar) Broadcast([]byte)                                         {}
func (liar) Name(ring.Peer) string                                    { return "" }
func (liar) SetFree(netip.Prefix, uint64)                             {}
func (liar) Free(netip.Prefix) map[ring.Peer]uint64                   { return map[ring.Peer]uint64{"b": 5} }

// startOn makes the Allocator of peer a.
func startOn(d *disk, c Cluster) (*host, error) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	a, err := New(Config{
		Self: "a", Range: netip.MustParsePrefix("10.32.0.0/12"), Store: d, Cluster: c, Log: logrus.NewEntry(log),
		Busy:  func() ([]netip.Prefix, error) { return nil, nil },
		InUse: func(netip.Prefix) bool { return false },
	})
	return &host{Allocator: a, self: "a", disk: d}, err
}

func (d *disk) clone() *disk {
	next := newDisk()
	for bucket, values := range d.buckets {
		next.buckets[bucket] = maps.Clone(values)
	}
	return next
}

// recorder is a Cluster that notes answers.
type recorder struct {
	Cluster
	note func([]byte)
}

func (r recorder) Ask(ctx context.Context, to ring.Peer, req []byte) ([]byte, error) {
	ans, err := r.Cluster.Ask(ctx, to, req)
	r.note(ans)
	return ans, err
}

// FuzzReply has a peer answer what it likes: no lease of ours is lost, none is
// given that is not ours, what is on disk can be loaded, and errors are short and
// fit to be shown.
func FuzzReply(f *testing.F) {
	_, hosts := newNet(f, "a", "b")
	a := hosts[0]
	id := a.pool(f, small, "")
	for range 7 { // all that it owns
		a.lease(f, id)
	}
	full := a.disk.clone()
	a.cfg.Cluster = recorder{a, func(b []byte) { f.Add(b) }}
	for _, r := range requests(id) {
		if _, err := a.RequestAddress(context.Background(), r); err != nil {
			f.Fatal(err)
		}
	}
	f.Add([]byte(`{"refusal":"failed","detail":"\u001b[2J"}`))
	f.Add([]byte(`{"refusal":"leased","holder":"\u001b[2J"}`))
	f.Add([]byte(`{"refusal":"failed","detail":"` + strings.Repeat("x", 1<<16) + `"}`))
	f.Add([]byte(`{"refusal":"leased","holder":"` + strings.Repeat("x", 1<<16) + `"}`))
	f.Add([]byte(`{"verdicts":[{"refusal":"leased","holder":"c"}]}`))
	f.Add([]byte(`{"removed":{"a":{"heir":"b","round":1}}}`))
	f.Fuzz(func(t *testing.T, says []byte) {
		h, err := startOn(full.clone(), liar{says})
		if err != nil {
			t.Fatal(err)
		}
		leases := h.Leases()
		for _, r := range requests(id) {
			addr, err := h.RequestAddress(t.Context(), r)
			if err != nil {
				checkError(t, err)
				continue
			}
			for _, l := range leases {
				if l.Addr == addr.Addr() {
					t.Errorf("%s was given out again", addr)
				}
			}
		}
		for _, l := range leases {
			if r := h.pools[l.Pool].records[l.Addr]; r.Kind != l.Kind {
				t.Errorf("the lease of %s is lost", l.Addr)
			}
		}
		if err := h.invariants(map[place]ring.Peer{}, false); err != nil {
			t.Error(err)
		}
		again, err := startOn(h.disk, liar{})
		if err != nil {
			t.Fatalf("cannot start again: %v", err)
		}
		if got, want := len(again.Leases()), len(h.Leases()); got != want {
			t.Errorf("%d leases after a start, %d before", got, want)
		}
	})
}

// requests ask another peer for space, for an address of its, and for a gateway.
func requests(id string) []AddressRequest {
	return []AddressRequest{
		{PoolID: id, Kind: KindLease},
		{PoolID: id, Kind: KindLease, Address: netip.MustParseAddr("10.40.0.14")},
		{PoolID: id, Kind: KindGateway, Address: netip.MustParseAddr("10.40.0.13")},
	}
}

func checkError(t *testing.T, err error) {
	t.Helper()
	text := err.Error()
	if len(text) > 8<<10 {
		t.Errorf("an error of %d bytes", len(text))
	}
	if strings.ContainsFunc(text, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) {
		t.Errorf("cannot be shown: %q", text)
	}
}

// FuzzLoad puts one value on a good disk: the disk is refused, or all is sound and
// the next start finds the same.
func FuzzLoad(f *testing.F) {
	_, hosts := newNet(f, "a", "b")
	a := hosts[0]
	id := a.pool(f, small, "")
	if _, err := a.RequestAddress(context.Background(), AddressRequest{PoolID: id, Kind: KindGateway}); err != nil {
		f.Fatal(err)
	}
	a.lease(f, id)
	buckets := []string{bucketSelf, bucketRemoved, bucketRings, bucketPaxos, bucketLeases, bucketPools}
	for i, bucket := range buckets {
		for key, value := range a.disk.buckets[bucket] {
			f.Add(byte(i), key, value)
		}
	}
	f.Add(byte(1), "b", []byte(`{"heir":"a","round":1}`))
	f.Add(byte(2), small+" 10.40.0.3", []byte(`["b"]`))
	f.Add(byte(4), small+" 10.40.0.99", []byte(`{"kind":"lease"}`))
	f.Add(byte(5), small, []byte(`{"refs":-1}`))
	good := a.disk.clone()
	f.Fuzz(func(t *testing.T, which byte, key string, value []byte) {
		d, bucket := good.clone(), buckets[int(which)%len(buckets)]
		if err := d.Apply(bucket, map[string][]byte{key: append([]byte{}, value...)}); err != nil {
			t.Fatal(err)
		}
		h, err := startOn(d, liar{})
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("refused, but not as corrupt: %v", err)
			}
			return
		}
		if err := h.invariants(map[place]ring.Peer{}, false); err != nil {
			t.Error(err)
		}
		again, err := startOn(d, liar{})
		if err != nil {
			t.Fatalf("cannot start again: %v", err)
		}
		if !reflect.DeepEqual(again.Status(), h.Status()) || !sameLeases(again.Leases(), h.Leases()) {
			t.Errorf("%+v, %+v became %+v, %+v", h.Status(), h.Leases(), again.Status(), again.Leases())
		}
	})
}

// sameLeases ignores when the leases were loaded.
func sameLeases(x, y []Lease) bool {
	for _, all := range [][]Lease{x, y} {
		for i := range all {
			all[i].Since = time.Time{}
		}
	}
	return reflect.DeepEqual(x, y)
}
