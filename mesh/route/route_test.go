package route

import (
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"weave/mesh/id"
)

// peer returns the ID number n.
func peer(n int) id.PeerID { return id.PeerID{byte(n >> 8), byte(n)} }

// graph is who says that it reaches whom: graph[i][j].
type graph [][]bool

func drawGraph(t *rapid.T) graph {
	n := rapid.IntRange(1, 12).Draw(t, "peers")
	density := rapid.Float64Range(0, 1).Draw(t, "density")
	r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
	g := make(graph, n)
	for i := range g {
		g[i] = make([]bool, n)
		for j := range g[i] {
			g[i][j] = i != j && r.Float64() < density
		}
	}
	return g
}

func (g graph) reached(i int) (out []id.PeerID) {
	for j, ok := range g[i] {
		if ok {
			out = append(out, peer(j))
		}
	}
	return out
}

func (g graph) others(i int) (out []id.PeerID) {
	for j := range g {
		if j != i {
			out = append(out, peer(j))
		}
	}
	return out
}

func (g graph) told() map[id.PeerID]Links {
	told := map[id.PeerID]Links{}
	for i := range g {
		told[peer(i)] = Describe(g.reached(i), g.others(i))
	}
	return told
}

// distances is Floyd and Warshall's over links that both ends have.
func (g graph) distances() [][]int {
	const far = 1000
	d := make([][]int, len(g))
	for i := range g {
		d[i] = make([]int, len(g))
		for j := range g {
			switch {
			case i == j:
			case g[i][j] && g[j][i]:
				d[i][j] = 1
			default:
				d[i][j] = far
			}
		}
	}
	for k := range g {
		for i := range g {
			for j := range g {
				d[i][j] = min(d[i][j], d[i][k]+d[k][j])
			}
		}
	}
	return d
}

// All tables together carry everything by a shortest way, which ends.
func TestShortestWays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := drawGraph(t)
		told, want := g.told(), g.distances()
		tables := make([]*Table, len(g))
		for i := range g {
			tables[i] = Compute(peer(i), g.reached(i), told, nil)
		}
		for i := range g {
			for j := range g {
				if i == j {
					continue
				}
				way, ok := tables[i].Way(peer(j))
				oneSided := g[i][j] && !g[j][i] // self's own word is enough for a direct way
				switch {
				case oneSided:
					if !ok || way.Hops != 1 || way.Next != peer(j) {
						t.Fatalf("%d to %d: %v %v, self says it is direct", i, j, way, ok)
					}
				case want[i][j] >= 1000:
					if ok {
						t.Fatalf("%d to %d: %v, but there is none", i, j, way)
					}
				case !ok || way.Hops != want[i][j]:
					t.Fatalf("%d to %d: %v %v, want %d hops", i, j, way, ok, want[i][j])
				case way.Hops > 1:
					next := slices.IndexFunc(g.others(-1), func(p id.PeerID) bool { return p == way.Next })
					if want[next][j] != way.Hops-1 || want[i][next] != 1 {
						t.Fatalf("%d to %d goes by %d, which is no nearer", i, j, next)
					}
				}
			}
		}
	})
}

// A way does not move to another one that is no shorter.
func TestWaysStay(t *testing.T) {
	// 0 reaches 1 and 2, and both reach 3.
	g := graph{{false, false, true, false}, {false, false, false, true}, {true, false, false, true}, {false, true, true, false}}
	before := Compute(peer(0), g.reached(0), g.told(), nil)
	if w, _ := before.Way(peer(3)); w != (Way{peer(2), 2}) {
		t.Fatal(w)
	}
	g[0][1], g[1][0] = true, true
	after := Compute(peer(0), g.reached(0), g.told(), before)
	if w, _ := after.Way(peer(3)); w != (Way{peer(2), 2}) {
		t.Errorf("moved to %v", w)
	}
	if w, _ := Compute(peer(0), g.reached(0), g.told(), nil).Way(peer(3)); w != (Way{peer(1), 2}) {
		t.Errorf("not by the lowest ID: %v", w)
	}
	var none *Table
	if _, ok := none.Way(peer(3)); ok {
		t.Error("a way without a table")
	}
}

// Who has not told of its links yet passes nothing on.
func TestSilentPeers(t *testing.T) {
	g := graph{{false, true, false}, {true, false, true}, {false, true, false}}
	told := g.told()
	delete(told, peer(1))
	table := Compute(peer(0), g.reached(0), told, nil)
	if _, ok := table.Way(peer(2)); ok {
		t.Error("a way through a peer that told nothing")
	}
	if w, ok := table.Way(peer(1)); !ok || w.Hops != 1 {
		t.Error("a direct way is missing")
	}
}

func TestDescribe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := drawGraph(t)
		for i := range g {
			l := Describe(g.reached(i), g.others(i))
			if len(l.Peers) > len(g)/2 {
				t.Fatalf("not the shorter form: %d of %d", len(l.Peers), len(g))
			}
			raw, err := l.Encode()
			if err != nil {
				t.Fatal(err)
			}
			again, err := Decode(raw)
			if err != nil || !again.Equal(l) {
				t.Fatalf("%v became %v, %v", l, again, err)
			}
			for j := range g {
				if j != i && l.Reaches(peer(j)) != g[i][j] {
					t.Fatalf("%d reaches %d: %v", i, j, !g[i][j])
				}
			}
		}
	})
}

// What does not fit a record is not told of, so that nobody relies on it.
func TestDescribeMany(t *testing.T) {
	var all []id.PeerID
	for i := range 4 * MaxListed {
		all = append(all, peer(i))
	}
	half := all[:2*MaxListed]
	l := Describe(half, all)
	if l.AllBut || len(l.Peers) != MaxListed {
		t.Fatal(l.AllBut, len(l.Peers))
	}
	raw, err := l.Encode()
	if err != nil || len(raw) > 4<<10 {
		t.Errorf("%d bytes, %v", len(raw), err)
	}
	if l.Reaches(all[3*MaxListed]) {
		t.Error("tells of what is not there")
	}
}

func FuzzDecode(f *testing.F) {
	for _, l := range []Links{{}, {AllBut: true}, {Peers: []id.PeerID{peer(1)}}, {AllBut: true, Peers: []id.PeerID{peer(1), peer(2)}}} {
		raw, err := l.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add([]byte(`{"only":["x"]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := Decode(b)
		if err != nil {
			return
		}
		raw, err := l.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if again, err := Decode(raw); err != nil || !again.Equal(l) {
			t.Fatalf("%v became %v, %v", l, again, err)
		}
		_ = l.Reaches(peer(1))
	})
}

func BenchmarkCompute(b *testing.B) {
	// A thousand peers that reach each other, but for ten of each.
	const n = 1000
	g := make(graph, n)
	for i := range g {
		g[i] = make([]bool, n)
		for j := range g[i] {
			g[i][j] = i != j && (i+j)%100 != 0
		}
	}
	told, reached := g.told(), g.reached(0)
	for b.Loop() {
		Compute(peer(0), reached, told, nil)
	}
}
