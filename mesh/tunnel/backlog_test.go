package tunnel

import (
	"slices"
	"testing"
	"time"

	"weave/mesh/run"
)

const ms = time.Millisecond

// TestBacklog: a queue that is seen empty once in an interval costs nothing;
// one that stands costs a packet an interval, and more the longer it stands.
func TestBacklog(t *testing.T) {
	for name, tc := range map[string]struct {
		empty func(at time.Duration) bool
		want  []time.Duration // when packets are lost within 15 ms
	}{
		"empty": {func(time.Duration) bool { return true }, nil},
		"stands": {
			func(time.Duration) bool { return false },
			[]time.Duration{5 * ms, 10 * ms, 13600 * time.Microsecond},
		},
		"empty once in 4 ms":    {func(at time.Duration) bool { return at%(4*ms) == 0 }, nil},
		"stands again at 11 ms": {func(at time.Duration) bool { return at == 11*ms }, []time.Duration{5 * ms, 10 * ms}},
	} {
		t.Run(name, func(t *testing.T) {
			var b backlog
			var got []time.Duration
			for at := time.Duration(0); at <= 15*ms; at += ms / 10 {
				if b.stands(time.Unix(1, 0).Add(at), !tc.empty(at)) {
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
			s := loop(t, tc.frames)
			s.device.(*steadyDevice).left = tc.left
			var clock fakeClock
			s.out.clock = clock.now
			pieces := uint64(0)
			for _, f := range tc.frames {
				m, _ := run.DecodeVnet(f)
				n, err := s.out.splitter.Reset(f[run.VnetHdrLen:], m, s.out.maxFrame)
				if err != nil {
					t.Fatal(err)
				}
				pieces += uint64(n)
			}
			for range 2 {
				if err := s.out.turn(); err != nil {
					t.Fatal(err)
				}
				clock.advance(backlogInterval)
			}
			out := s.out.counters.traffic()
			if lost := out.Drops["queue"]; lost != tc.want || out.Frames != 2*pieces-tc.want {
				t.Errorf("%d lost and %d of %d sent, want %d lost", lost, out.Frames, 2*pieces, tc.want)
			}
		})
	}
}
