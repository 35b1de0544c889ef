package store

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
)

// patch returns a copy of data with one byte changed.
func patch(data []byte, at int, value byte) []byte {
	data = bytes.Clone(data)
	data[at] = value
	return data
}

// used returns where the pages in use begin.
func used(t testing.TB, data []byte) []int {
	t.Helper()
	m, err := newestMeta(data)
	if err != nil {
		t.Fatal(err)
	}
	p := &pages{data: data, pageSize: m.pageSize, seen: make([]bool, m.end)}
	if err := p.checkTree(m.root, nil, nil); err != nil {
		t.Fatal(err)
	}
	var starts []int
	for id, seen := range p.seen {
		if seen {
			starts = append(starts, id*int(m.pageSize))
		}
	}
	return append(starts, int(m.freelist*m.pageSize))
}

// pageOf returns where the first page in use with these flags begins.
func pageOf(t testing.TB, data []byte, flags uint16) int {
	t.Helper()
	for _, at := range used(t, data) {
		if order.Uint16(data[at+8:]) == flags {
			return at
		}
	}
	t.Fatalf("no page with flags %#x", flags)
	return 0
}

// fixMetas makes the sums over both descriptions of the file right.
func fixMetas(data []byte) {
	for _, at := range []int{0, os.Getpagesize()} {
		b := data[at+headerSize:][:metaSize]
		sum := fnv.New64a()
		_, _ = sum.Write(b[:metaSize-8])
		order.PutUint64(b[metaSize-8:], sum.Sum64())
	}
}

// openDamaged writes data to path and opens it as a store would; what is not refused,
// bbolt's own check must find sound.
func openDamaged(t *testing.T, path string, data []byte) error {
	t.Helper()
	if err := os.WriteFile(path, data, fileMode); err != nil {
		t.Fatal(err)
	}
	s, err := Open(path)
	if err != nil {
		return err
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	if got := load(t, s, "leases"); len(got) != 300 {
		t.Errorf("%d entries", len(got))
	}
	if err := s.db.View(bboltCheck); err != nil {
		t.Errorf("bbolt finds what we did not: %v", err)
	}
	return nil
}

func bboltCheck(tx *bbolt.Tx) error {
	var all error
	for err := range tx.Check() {
		all = errors.Join(all, err)
	}
	return all
}

// TestDamagedPages makes pages lie in ways that bbolt follows outside the file,
// in circles, or to memory that the machine does not have.
func TestDamagedPages(t *testing.T) {
	t.Parallel()
	good := filled(t)
	path := filepath.Join(t.TempDir(), "db")
	if err := openDamaged(t, path, good); err != nil {
		t.Fatal(err)
	}
	branch, leaf, list := pageOf(t, good, branchFlag), pageOf(t, good, leafFlag), pageOf(t, good, freelistFlag)
	child := headerSize + 8 // of a branch's first element
	for name, c := range map[string]struct {
		at    int
		value byte
	}{
		"branch is another page":       {branch, good[branch] + 1},
		"branch flows over for 4 TB":   {branch + 15, 0x40},
		"branch without elements":      {branch + 10, 0},
		"branch with 65,000 elements":  {branch + 11, 0xFE},
		"branch's key outside":         {branch + headerSize + 3, 0x40},
		"branch's key of 1 GB":         {branch + headerSize + 7, 0x40},
		"branch leads outside":         {branch + child + 7, 1},
		"branch leads to itself":       {branch + child, good[branch]},
		"branch leads to one twice":    {branch + child, good[branch+child+elementSize]},
		"branch leads to the list":     {branch + child, good[list]},
		"branch is a list":             {branch + 8, freelistFlag},
		"branch is a leaf":             {branch + 8, leafFlag},
		"leaf is a branch":             {leaf + 8, branchFlag},
		"leaf is two things":           {leaf + 8, leafFlag | branchFlag},
		"leaf flows over for 4 TB":     {leaf + 15, 0x40},
		"leaf with 65,000 elements":    {leaf + 11, 0xFE},
		"leaf's value becomes a tree":  {leaf + headerSize, bucketFlag},
		"leaf's key outside":           {leaf + headerSize + 7, 0x40},
		"leaf's key of no length":      {leaf + headerSize + 8, 0},
		"leaf's value of 1 GB":         {leaf + headerSize + 15, 0x40},
		"list flows over for 4 TB":     {list + 15, 0x40},
		"list with 65,000 pages":       {list + 11, 0xFE},
		"list is a leaf":               {list + 8, leafFlag},
		"list has a page outside":      {list + headerSize + 7, 1},
		"list has the list":            {list + headerSize, good[list]},
		"list has the branch":          {list + headerSize, good[branch]},
		"list has a page twice":        {list + headerSize, good[list+headerSize+8]},
		"list has one page too few":    {list + 10, good[list+10] - 1},
		"list is another page":         {list, good[list] + 1},
		"list of 2^63 and more pages":  {list + 10, 0xFF}, // see below
		"list has the file's first":    {list + headerSize, 0},
		"key before the one before it": {leaf + headerSize + elementSize + 4, good[leaf+headerSize+elementSize+4] - elementSize},
	} {
		t.Run(name, func(t *testing.T) {
			bad := patch(good, c.at, c.value)
			if strings.Contains(name, "2^63") {
				copy(bad[list+10:], []byte{0xFF, 0xFF})
				copy(bad[list+headerSize:], bytes.Repeat([]byte{0xFF}, 8))
			}
			if err := openDamaged(t, path, bad); !errors.Is(err, ErrCorrupt) {
				t.Errorf("got %v, want ErrCorrupt", err)
			}
			if err := checkPages(bad); !errors.Is(err, ErrCorrupt) {
				t.Errorf("found only by the sums of entries: %v", err)
			}
		})
	}
}

// TestTornMeta loses one of the two descriptions of the file, as a power cut
// during a commit does: the other one is whole, and what it describes is there.
func TestTornMeta(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	want := 0
	for want < 9 {
		apply(t, s, "b", map[string][]byte{strings.Repeat("k", want+1): {1}})
		want++
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := newestMeta(good)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		torn := patch(good, i*int(whole.pageSize)+headerSize+metaSize-1, good[i*int(whole.pageSize)+headerSize+metaSize-1]+1)
		if err := os.WriteFile(path, torn, fileMode); err != nil {
			t.Fatal(err)
		}
		s, err := Open(path)
		if err != nil {
			t.Fatalf("without meta %d: %v", i, err)
		}
		left := want
		if uint64(i) == whole.txid%2 { // the newest one
			left--
		}
		if got := load(t, s, "b"); len(got) != left {
			t.Errorf("without meta %d: %d entries, want %d", i, len(got), left)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLargeFiles has what small files have not: branches of branches, values over
// many pages, more free pages than a page's count can tell, pages of another size.
func TestLargeFiles(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	db, err := bbolt.Open(path, fileMode, &bbolt.Options{PageSize: minPageSize, NoSync: true, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	big := []byte("big")
	deepTree := func(b *bbolt.Bucket) error {
		for i := range uint64(20000) {
			key := order.AppendUint64(bytes.Repeat([]byte{'k'}, 100), i*0x9E3779B97F4A7C15) // in no order
			if err := b.Put(key, key); err != nil {
				return err
			}
		}
		return nil
	}
	for _, step := range []struct {
		name   string
		change func(*bbolt.Bucket) error
	}{
		{"a deep tree", deepTree},
		{"a value of 70 MB", func(b *bbolt.Bucket) error { return b.Put(big, make([]byte, 70<<20)) }},
		{"the value deleted", func(b *bbolt.Bucket) error { return b.Delete(big) }},
		{"a list of 70,000 pages", func(b *bbolt.Bucket) error { return b.Put(big, big) }},
		{"an inline bucket", func(b *bbolt.Bucket) error {
			inline, err := b.CreateBucket([]byte("inline"))
			if err != nil {
				return err
			}
			return inline.Put(big, big)
		}},
	} {
		err := db.Update(func(tx *bbolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists([]byte("b"))
			if err != nil {
				return err
			}
			return step.change(b)
		})
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkPages(data); err != nil {
			t.Errorf("%s: %v", step.name, err)
		}
	}
}

// TestRandomDamage flips bytes all over the file: Open refuses it or finds the
// data whole, and never panics. (Damage to free pages hurts nothing.)
func TestRandomDamage(t *testing.T) {
	t.Parallel()
	good := filled(t)
	rnd := rand.New(rand.NewPCG(1, 2))
	path := filepath.Join(t.TempDir(), "db")
	refused := 0
	for i := range 300 {
		bad := bytes.Clone(good)
		for range 1 + i%4 {
			bad[rnd.IntN(len(bad))] ^= byte(1 + rnd.IntN(255))
		}
		if err := openDamaged(t, path, bad); err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrFormat) {
				t.Fatalf("damage %d: %v", i, err)
			}
			refused++
		}
	}
	if refused == 0 {
		t.Error("no damage was noticed")
	}
}

// FuzzPages changes bytes anywhere, three of input for each, and then makes the
// sums over the file's descriptions right if the last byte is odd.
func FuzzPages(f *testing.F) {
	f.Add([]byte{0, 0x10, 0xFF})
	f.Add([]byte{0x10, 0x0A, 2, 1})
	good := filled(f)
	f.Fuzz(func(t *testing.T, input []byte) {
		bad := bytes.Clone(good)
		for ; len(input) > 2; input = input[3:] {
			at := int(input[0])<<8 | int(input[1])
			bad[at%len(bad)] = input[2]
		}
		if len(input) > 0 && input[0]%2 == 1 {
			fixMetas(bad)
		}
		for i := range 2 { // bbolt's check wants headers here, bbolt itself has no use for them
			copy(bad[i*os.Getpagesize():][:headerSize], good[i*os.Getpagesize():])
		}
		if checkPages(bad) != nil {
			return
		}
		path := filepath.Join(t.TempDir(), "db")
		if err := os.WriteFile(path, bad, fileMode); err != nil {
			t.Fatal(err)
		}
		db, err := openBolt(path, func(*os.File) error { return nil })
		if err != nil {
			t.Fatalf("bbolt refuses it: %v", err)
		}
		defer func() { _ = db.Close() }()
		if err := db.View(bboltCheck); err != nil {
			t.Errorf("bbolt finds what we did not: %v", err)
		}
	})
}

// FuzzOpen changes bytes anywhere, three of input for each, and cuts the file: it is
// refused, or all that was written is there, but for the last commit, whose
// description may be what was damaged.
func FuzzOpen(f *testing.F) {
	f.Add([]byte{0, 0x10, 0xFF}, uint32(1<<30))
	f.Add([]byte{0x30, 0x40, 1, 0x10, 0x0A, 2}, uint32(1<<30))
	f.Add([]byte{}, uint32(4096))
	good := filled(f)
	at := bytes.Index(good, bytes.Repeat([]byte{7}, 60)) // a value
	f.Add([]byte{byte(at >> 8), byte(at), 1}, uint32(1<<30))
	f.Fuzz(func(t *testing.T, input []byte, length uint32) {
		bad := bytes.Clone(good)
		for ; len(input) > 2; input = input[3:] {
			bad[(int(input[0])<<8|int(input[1]))%len(bad)] ^= input[2]
		}
		path := filepath.Join(t.TempDir(), "db")
		if err := os.WriteFile(path, bad[:min(len(bad), int(length))], fileMode); err != nil {
			t.Fatal(err)
		}
		s, err := Open(path)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrFormat) {
				t.Errorf("refused, but not as damaged: %v", err)
			}
			return
		}
		defer func() { _ = s.Close() }()
		leases := load(t, s, "leases")
		for i := range 300 {
			if !bytes.Equal(leases[fmt.Sprintf("key %d", i)], bytes.Repeat([]byte{byte(i)}, 60)) {
				t.Fatalf("lease %d is %x", i, leases[fmt.Sprintf("key %d", i)])
			}
		}
		if ring := load(t, s, "ring"); len(leases) != 300 || len(ring) > 0 && string(ring["token"]) != "owner" {
			t.Errorf("%d leases, ring %q", len(leases), ring)
		}
	})
}
