//go:build !race

package tap

import (
	"testing"

	"weave/mesh/run"
)

// Under the race detector a sync.Pool forgets at random.
func TestWriteAllocatesNothing(t *testing.T) {
	d := newNamespace(t).open(t, "wvt0")
	frame := make([]byte, run.VnetHdrLen+64)
	copy(frame[run.VnetHdrLen:], []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5})
	if n := testing.AllocsPerRun(100, func() {
		if err := d.Write(frame); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
