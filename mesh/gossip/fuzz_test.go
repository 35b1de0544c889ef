package gossip

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"weave/mesh/id"
)

// FuzzServe asks for what it likes: each request that is whole has one answer, and
// so has none that is not.
func FuzzServe(f *testing.F) {
	f.Add([]byte("\x07records\x00\x00\x00\x06digest"))
	f.Add([]byte("\x00\x00\x00\x00\x00"))
	f.Add([]byte("\x07records\x00\x00\x00\x01x\x07records\x00\x00\x00\x00\x07records\x00\x00\xff\xff"))
	g := &Gossip{cfg: Config{Replicas: map[string]Replica{"records": fixed("x")}}}
	f.Fuzz(func(t *testing.T, b []byte) {
		var out bytes.Buffer
		err := g.serve(struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(b), &out})
		in := bytes.NewReader(b)
		for {
			_, _, asked := readRequest(in)
			if asked != nil {
				if errors.Is(asked, io.EOF) != (err == nil) {
					t.Errorf("the stream ends with %v, serving it with %v", asked, err)
				}
				break
			}
			if _, err := readFrame(&out, maxDelta); err != nil {
				t.Fatalf("a request without an answer: %v", err)
			}
		}
		if out.Len() > 0 {
			t.Errorf("%d bytes were answered to nothing", out.Len())
		}
	})
}

// growing is a replica that takes any delta for news.
type growing struct{ merged [][]byte }

func (g *growing) Digest() []byte        { return binary.BigEndian.AppendUint32(nil, uint32(len(g.merged))) }
func (g *growing) Missing([]byte) []byte { return nil }
func (g *growing) Merge(_ id.PeerID, delta []byte) error {
	g.merged = append(g.merged, bytes.Clone(delta))
	return nil
}

// FuzzFetch pulls from a peer that answers what it likes: what is merged is what it
// sent, each delta once and whole, until one is empty.
func FuzzFetch(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x05delta\x00\x00\x00\x00"))
	f.Add([]byte("\x00\x00\x00\x01a\x00\x00\x00\x01b\x00\x00\x00\x09short"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var asked bytes.Buffer
		r := &growing{}
		merge, err := fetch(struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(b), &asked}, id.PeerID{2}, "records", r)
		if merge != nil {
			t.Fatal(merge)
		}
		var again bytes.Buffer
		for _, delta := range r.merged {
			if len(delta) == 0 {
				t.Error("nothing was merged")
			}
			_ = writeFrame(&again, nil, delta)
		}
		if !bytes.HasPrefix(b, again.Bytes()) {
			t.Errorf("merged %q of %q", r.merged, b)
		}
		if rest := b[again.Len():]; err == nil && len(r.merged) < maxPages && !bytes.HasPrefix(rest, make([]byte, frameHeader)) {
			t.Errorf("ends well before %q", rest)
		}
	})
}
