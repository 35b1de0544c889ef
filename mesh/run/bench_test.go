package run

import "testing"

// benchRun is a full run of TCP as it stands between two containers.
func benchRun() ([]byte, Meta) {
	return runSpec{flags: 0x10, options: make([]byte, 12), payload: make([]byte, 46*1348), gsoSize: 1348}.build()
}

func perPiece(b *testing.B, pieces int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*pieces), "ns/piece")
}

func BenchmarkSplitter(b *testing.B) {
	frame, m := benchRun()
	dst := make([]byte, 2048)
	var s Splitter
	pieces := 0
	b.ReportAllocs()
	b.SetBytes(int64(len(frame)))
	for b.Loop() {
		n, err := s.Reset(frame, m, 1414)
		if err != nil {
			b.Fatal(err)
		}
		for range n {
			s.Next(dst)
		}
		pieces = n
	}
	perPiece(b, pieces)
}

func BenchmarkJoiner(b *testing.B) {
	frame, m := benchRun()
	pieces := split(b, frame, m, 1414)
	var j Joiner
	b.ReportAllocs()
	b.SetBytes(int64(len(frame)))
	for b.Loop() {
		for i := range pieces {
			if !j.Add(pieces[i].h, pieces[i].frame) {
				b.Fatal("refused")
			}
		}
		j.Frame()
		j.Reset()
	}
	perPiece(b, len(pieces))
}
