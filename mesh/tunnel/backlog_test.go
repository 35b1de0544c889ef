package tunnel

import (
	"slices"
	"testing"
	"time"

	"weave/mesh/run"
)

// TestBacklog: a queue that is seen empty once in an interval costs nothing;
// one that stands costs a packet an interval, and more the longer it stands.
func TestBacklog(t *testing.T) {
	const steps = 50 // of an interval; all times are in steps
	for name, tc := range map[string]struct {
		empty func(at int) bool
		want  []int // when packets are lost within three intervals
	}{
		"empty":                    {func(int) bool { return true }, nil},
		"stands":                   {func(int) bool { return false }, []int{50, 100, 136}},
		"empty once in 4/5 of one": {func(at int) bool { return at%40 == 0 }, nil},
		"stands again":             {func(at int) bool { return at == 110 }, []int{50, 100}},
	} {
		t.Run(name, func(t *testing.T) {
			var b backlog
			var got []int
			for at := range 3*steps + 1 {
				now := time.Unix(1, 0).Add(time.Duration(at) * backlogInterval / steps)
				if b.stands(now, !tc.empty(at)) {
					got = append(got, at)
				}
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("lost at %v, want %v", got, tc.want)
			}
		})
	}
}

// TestStandingQueueSlowsStreamsDown: of a batch, one piece of one TCP run is
// lost, and nothing else is.
func TestStandingQueueSlowsStreamsDown(t *testing.T) {
	small, udp, tcp := plain(macB, macA, "small"), udpRun(make([]byte, 3000), 1000), tcpRun(make([]byte, 3000), 1000, 0)
	for name, tc := range map[string]struct {
		frames [][]byte
		left   bool // frames are left in the TAP
		want   uint64
	}{
		"streams":      {[][]byte{small, tcp, tcp}, true, 1},
		"none":         {[][]byte{small, udp}, true, 0},
		"queue empty":  {[][]byte{tcp, tcp}, false, 0},
		"single piece": {[][]byte{tcpRun(make([]byte, 900), 1000, 0)}, true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := loop(t, tc.frames, 1)
			s.device.(*steadyDevice).left = tc.left
			var clock fakeClock
			s.clock = clock.now
			o, pieces := s.outs[0], uint64(0)
			for _, f := range tc.frames {
				m, _ := run.DecodeVnet(f)
				n, err := o.splitter.Reset(f[run.VnetHdrLen:], m, o.maxFrame)
				if err != nil {
					t.Fatal(err)
				}
				pieces += uint64(n)
			}
			for range 2 {
				if err := o.turn(); err != nil {
					t.Fatal(err)
				}
				clock.advance(backlogInterval)
			}
			out := traffic(&o.counters)
			if lost := out.Drops["queue"]; lost != tc.want || out.Frames != 2*pieces-tc.want {
				t.Errorf("%d lost and %d of %d sent, want %d lost", lost, out.Frames, 2*pieces, tc.want)
			}
		})
	}
}
