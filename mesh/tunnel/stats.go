package tunnel

import "sync/atomic"

// Reasons why a frame was dropped, as they appear in Stats.
const (
	dropMalformed = iota // of the frame, its offload state, or a question in it
	dropSpoofed          // the source lives elsewhere
	dropUnknown          // nobody has the destination
	dropRate             // too many questions for unknown addresses
	dropQueue            // to slow down a stream that keeps the queue full
	dropNoPath           // no way to the peer, or no session yet
	dropTooBig           // for a datagram
	dropSend             // the underlay did not take it
	dropWrite            // the TAP did not take it
	dropReasons
)

func reasonName(reason int) string {
	return [dropReasons]string{
		"malformed", "spoofed source", "unknown destination", "rate limit", "queue", "no session", "too big", "send failed", "TAP write failed",
	}[reason]
}

// counters are those of one direction.
type counters struct {
	frames, bytes atomic.Uint64
	drops         [dropReasons]atomic.Uint64
}

func (c *counters) pass(l load) {
	c.frames.Add(l.frames)
	c.bytes.Add(l.bytes)
}

func (c *counters) drop(reason int, frames uint64) { c.drops[reason].Add(frames) }

// Traffic counts the frames of one direction. A run counts as its pieces.
type Traffic struct {
	Frames, Bytes uint64
	Drops         map[string]uint64 // frames by reason, zeros left out
}

// traffic sums up counters.
func traffic(all ...*counters) Traffic {
	t := Traffic{Drops: map[string]uint64{}}
	for _, c := range all {
		t.Frames += c.frames.Load()
		t.Bytes += c.bytes.Load()
		for reason := range c.drops {
			if n := c.drops[reason].Load(); n > 0 {
				t.Drops[reasonName(reason)] += n
			}
		}
	}
	return t
}

// Stats is what happened on a segment since it was added.
type Stats struct {
	Out, In   Traffic // to the mesh, from the mesh
	Answered  uint64  // ARP and neighbour requests answered here
	Strangers uint64  // frames and runs from peers not, or not yet, known as members
	Learned   int     // MAC addresses learned from traffic
	Endpoints int
	Members   int
	Failure   string // why nothing is read from the TAP any more; empty if all is well
}

// Stats returns the counters of a segment; false if it is not here.
func (t *Tunnel) Stats(key string) (Stats, bool) {
	s := t.segment(key)
	if s == nil {
		return Stats{}, false
	}
	stats := Stats{
		In:        traffic(&s.in),
		Strangers: s.strangers.Load(),
		Members:   len(s.members.Load().list),
	}
	out := make([]*counters, len(s.outs))
	for i, o := range s.outs {
		out[i] = &o.counters
		stats.Answered += o.answered.Load()
	}
	stats.Out = traffic(out...)
	if err := s.failure.Load(); err != nil {
		stats.Failure = (*err).Error()
	}
	s.mu.RLock()
	stats.Learned, stats.Endpoints = s.table.Learned(), s.table.Static()
	s.mu.RUnlock()
	return stats, true
}

// Homeless counts the frames from the mesh for segments that are not here.
func (t *Tunnel) Homeless() uint64 { return t.homeless.Load() }
