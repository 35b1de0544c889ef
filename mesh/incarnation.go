package mesh

import (
	"encoding/binary"
	"fmt"
	"time"

	"weave/mesh/state"
)

// bucketMesh keeps the number of the current run under keyIncarnation.
const (
	bucketMesh     = "mesh"
	keyIncarnation = "incarnation"
)

// nextIncarnation begins a new run: its number is above those of all runs
// before, and on disk before it is used.
func nextIncarnation(store Store, now time.Time) (uint64, error) {
	values, err := store.Load(bucketMesh)
	if err != nil {
		return 0, fmt.Errorf("load incarnation: %w", err)
	}
	var last uint64
	if raw, ok := values[keyIncarnation]; ok {
		if len(raw) != 8 {
			return 0, fmt.Errorf("state bucket %q, key %q: %d bytes, want 8", bucketMesh, keyIncarnation, len(raw))
		}
		last = binary.BigEndian.Uint64(raw)
	}
	if last >= state.MaxIncarnation-1 {
		return 0, fmt.Errorf("state bucket %q, key %q: %d is beyond all runs", bucketMesh, keyIncarnation, last)
	}
	// The clock lifts us above runs that a restored backup does not know of.
	next := max(last+1, uint64(max(now.UnixNano(), 0)))
	return next, putIncarnation(store, next)
}

func putIncarnation(store Store, n uint64) error {
	raw := binary.BigEndian.AppendUint64(nil, n)
	if err := store.Apply(bucketMesh, map[string][]byte{keyIncarnation: raw}); err != nil {
		return fmt.Errorf("store incarnation: %w", err)
	}
	return nil
}
