package mesh

import (
	"testing"

	"weave/mesh/gossip"
)

// What a host published before it met others is told in a form that they take.
func TestRecordsAreAnnounced(t *testing.T) {
	const pool = "10.32.0.0/24"
	var nodes [2]*Node
	for i := range nodes {
		n, err := New(configure(t, "127.0.0.1"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = n.Close() }()
		nodes[i] = n
	}
	if err := nodes[0].SetFree(pool, 7); err != nil {
		t.Fatal(err)
	}
	var own gossip.Announcer = recordsReplica{nodes[0]}
	for _, delta := range own.Announcement(1000) {
		if err := (recordsReplica{nodes[1]}).Merge(nodes[0].cfg.Identity.ID, delta); err != nil {
			t.Fatal(err)
		}
	}
	if got := nodes[1].Free(pool)[nodes[0].cfg.Identity.ID]; got != 7 {
		t.Errorf("free space is %d, want 7", got)
	}
}
