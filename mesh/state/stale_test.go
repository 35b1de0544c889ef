package state

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"weave/mesh/id"
)

// What a run before had counts until the new one has repeated, changed or
// deleted it, or for a while; however many runs that takes.
func TestStale(t *testing.T) {
	a, b := New(alice, 1), New(bob, 1)
	for _, key := range []string{"same", "other", "deleted", "gone", "later"} {
		set(t, a, key, "1")
	}
	pull(t, b, a)
	a = New(alice, 2)
	set(t, a, "same", "1")
	want(t, "nothing new", showChanges(pull(t, b, a).Changes), "")
	a = New(alice, 3) // it ended before it had told more
	want(t, "other", showChanges(merge(t, b, set(t, a, "other", "2")).Changes), "a1/other:1>2")
	want(t, "same", showChanges(merge(t, b, set(t, a, "same", "1")).Changes), "")
	set(t, a, "deleted", "1")
	a.Delete("k", "deleted", noon)
	res := pull(t, b, a)
	want(t, "deleted", showChanges(res.Changes), "a1/deleted:1>-")
	if _, ok := b.Get(alice, "k", "later"); !ok || len(b.All("k")) != 4 {
		t.Errorf("all records: %v", b.All("k"))
	}
	c := New(carol, 1)
	pull(t, c, b)
	want(t, "what is passed on", show(c), "a1/other=2 a1/same=1")
	want(t, "later", showChanges(merge(t, b, set(t, a, "later", "1")).Changes), "")
	want(t, "dropped too early", showChanges(b.DropStale(noon.Add(time.Second), time.Minute, anybody)), "")
	nobody := func(id.PeerID) bool { return false }
	want(t, "dropped without its owner", showChanges(b.DropStale(noon.Add(time.Hour), time.Minute, nobody)), "")
	want(t, "dropped", showDropped(b, noon.Add(time.Minute)), "a1/gone:1>-")
	want(t, "dropped again", showDropped(b, noon.Add(time.Hour)), "")
}

// Who starts anew again and again, each time with other records, does not fill
// the memory.
func TestStaleIsBounded(t *testing.T) {
	for _, value := range [][]byte{{}, bytes.Repeat([]byte("x"), 1000)} {
		b := New(bob, 1)
		for run := range uint64(4) {
			a := New(alice, run+1)
			for i := 0; i < MaxRecords/2+1 && a.owners[alice].size < MaxOwnerSize/2+1; i++ {
				if _, err := a.Set("k", fmt.Sprintf("%d/%d", run, i), value); err != nil {
					t.Fatal(err)
				}
			}
			before := len(b.All("k"))
			changes := pull(t, b, a).Changes
			for _, c := range changes {
				if before++; c.New == nil {
					before -= 2
				}
			}
			o := b.owners[alice]
			if len(o.stale.records) > MaxRecords || o.stale.size > MaxOwnerSize || before != len(b.All("k")) {
				t.Errorf("%d stale records, %d bytes; %d in all, %d by the changes", len(o.stale.records), o.stale.size, len(b.All("k")), before)
			}
		}
	}
}

func anybody(id.PeerID) bool { return true }

func showDropped(x *Table, now time.Time) string {
	return showChanges(x.DropStale(now, time.Second, anybody))
}
