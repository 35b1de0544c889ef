package daemon

import (
	"bytes"
	"context"

	"weave/ipam/ring"
	"weave/mesh/id"
)

// answer serves what a peer asks. What is for none of the others is for the
// allocator.
func (p *parts) answer(ctx context.Context, from id.PeerID, request []byte) ([]byte, error) {
	switch {
	case bytes.Equal(request, leaveRequest):
		return nil, p.departures.add(from)
	case bytes.Equal(request, examineRequest):
		return p.examiner.answer(ctx, from)
	}
	return p.allocator.Answer(ctx, ring.Peer(from.String()), request)
}
