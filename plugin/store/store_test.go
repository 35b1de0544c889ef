package store

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"go.etcd.io/bbolt"
	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(writerEnv); path != "" {
		writeForever(path)
	}
	goleak.VerifyTestMain(m)
}

func open(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func apply(t testing.TB, s *Store, bucket string, changes map[string][]byte) {
	t.Helper()
	if err := s.Apply(bucket, changes); err != nil {
		t.Fatal(err)
	}
}

func load(t *testing.T, s *Store, bucket string) map[string][]byte {
	t.Helper()
	entries, err := s.Load(bucket)
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

func equal(a, b map[string][]byte) bool { return maps.EqualFunc(a, b, bytes.Equal) }

func TestApplyLoadReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "weave.db")
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := load(t, s, "leases"); len(got) != 0 {
		t.Fatalf("new bucket holds %v", got)
	}
	apply(t, s, "leases", map[string][]byte{"a": []byte("1"), "b": []byte("2"), "empty": {}})
	apply(t, s, "leases", map[string][]byte{"a": nil, "c": []byte("3"), "never was": nil})
	apply(t, s, "ring", map[string][]byte{"a": []byte("other")})
	apply(t, s, "ring", nil)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = open(t, path)
	want := map[string][]byte{"b": []byte("2"), "c": []byte("3"), "empty": {}}
	if got := load(t, s, "leases"); !equal(got, want) {
		t.Errorf("leases: %q, want %q", got, want)
	}
	if got := load(t, s, "ring"); !equal(got, map[string][]byte{"a": []byte("other")}) {
		t.Errorf("ring: %q", got)
	}
	for name, want := range map[string]os.FileMode{path: fileMode, filepath.Dir(path): dirMode} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", name, got, want)
		}
	}
	if _, err := os.Stat(path + ".new"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("file made aside is still there: %v", err)
	}
}

func TestOpenTightensModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "weave")
	path := filepath.Join(dir, "weave.db")
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), os.Chmod(dir, 0o755), os.Chmod(path, 0o644)); err != nil {
		t.Fatal(err)
	}
	open(t, path)
	for name, want := range map[string]os.FileMode{path: fileMode, dir: dirMode} {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v %v, want mode %o", name, info.Mode(), err, want)
		}
	}
}

func TestLoadedValuesAreCopies(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "db"))
	apply(t, s, "b", map[string][]byte{"k": []byte("value")})
	load(t, s, "b")["k"][0] = 'X'
	if got := load(t, s, "b")["k"]; string(got) != "value" {
		t.Errorf("stored value changed to %q", got)
	}
}

func TestApplyRefusesBadChanges(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "db"))
	long := string(make([]byte, bbolt.MaxKeySize+1))
	for name, c := range map[string]struct {
		bucket string
		key    string
	}{
		"no bucket":   {"", "k"},
		"meta bucket": {metaBucket, "k"},
		"empty key":   {"b", ""},
		"long key":    {"b", long},
	} {
		t.Run(name, func(t *testing.T) {
			if err := s.Apply(c.bucket, map[string][]byte{c.key: {1}, "good": {2}}); err == nil {
				t.Error("no error")
			}
		})
	}
	if got := load(t, s, "b"); len(got) != 0 {
		t.Errorf("part of a refused change was written: %v", got)
	}
}

func TestLocked(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	open(t, path)
	if _, err := Open(path); !errors.Is(err, ErrLocked) {
		t.Errorf("got %v, want ErrLocked", err)
	}
}

func TestClosed(t *testing.T) {
	s, err := Open(filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Apply("b", map[string][]byte{"k": {1}}); !errors.Is(err, ErrClosed) {
		t.Errorf("Apply: %v", err)
	}
	if _, err := s.Load("b"); !errors.Is(err, ErrClosed) {
		t.Errorf("Load: %v", err)
	}
}

func TestParallelApply(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "db"))
	const writers, each = 16, 10
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				k := fmt.Sprintf("%d/%d", w, i)
				if err := s.Apply("b", map[string][]byte{k: []byte(k)}); err != nil {
					t.Error(err)
				}
				got, err := s.Load("b")
				if err != nil || string(got[k]) != k {
					t.Errorf("own write %s not seen: %q, %v", k, got[k], err)
				}
			}
		})
	}
	wg.Wait()
	if got := len(load(t, s, "b")); got != writers*each {
		t.Errorf("%d entries, want %d", got, writers*each)
	}
}

// TestModel compares the store with a map over random changes and restarts.
func TestModel(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	runs := 0
	rapid.Check(t, func(rt *rapid.T) {
		runs++
		path := fmt.Sprint(path, runs)
		s, err := Open(path)
		if err != nil {
			rt.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		model := map[string][]byte{}
		changes := rapid.MapOfN(rapid.StringN(1, 8, -1), rapid.Ptr(rapid.SliceOf(rapid.Byte()), true), 0, 5)
		for range rapid.IntRange(1, 8).Draw(rt, "steps") {
			c := map[string][]byte{}
			for k, v := range changes.Draw(rt, "changes") {
				if v == nil {
					c[k] = nil
					delete(model, k)
				} else {
					c[k] = append([]byte{}, *v...)
					model[k] = c[k]
				}
			}
			if err := s.Apply("b", c); err != nil {
				rt.Fatal(err)
			}
			if rapid.Bool().Draw(rt, "restart") {
				if err := s.Close(); err != nil {
					rt.Fatal(err)
				}
				if s, err = Open(path); err != nil {
					rt.Fatal(err)
				}
			}
			if got, err := s.Load("b"); err != nil || !equal(got, model) {
				rt.Fatalf("got %q, %v, want %q", got, err, model)
			}
		}
	})
}

// filled returns the bytes of a sound store with some hundred entries.
func filled(t testing.TB) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	entries := map[string][]byte{}
	for i := range 300 {
		entries[fmt.Sprintf("key %d", i)] = bytes.Repeat([]byte{byte(i)}, 60)
	}
	apply(t, s, "leases", entries)
	apply(t, s, "ring", map[string][]byte{"token": []byte("owner")})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCorruptFileIsRefusedAndKept(t *testing.T) {
	good := filled(t)
	for name, content := range map[string][]byte{
		"empty":                {},
		"text":                 []byte("not a database\n"),
		"zeros":                make([]byte, len(good)),
		"cut in half":          good[:len(good)/2],
		"two pages":            good[:2*os.Getpagesize()],
		"branch's key outside": patch(good, pageOf(t, good, branchFlag)+headerSize+3, 0x40),
		"value changed":        bytes.Replace(good, bytes.Repeat([]byte{7}, 60), bytes.Repeat([]byte{8}, 60), 1),
		"headers zeroed":       append(make([]byte, 2*os.Getpagesize()), good[2*os.Getpagesize():]...),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "db")
			if err := os.WriteFile(path, content, fileMode); err != nil {
				t.Fatal(err)
			}
			for range 2 { // the second finds no lock left behind
				_, err := Open(path)
				if !errors.Is(err, ErrCorrupt) || !bytes.Contains([]byte(err.Error()), []byte(path)) {
					t.Fatalf("got %v, want ErrCorrupt naming %s", err, path)
				}
			}
			if kept, err := os.ReadFile(path); err != nil || !bytes.Equal(kept, content) {
				t.Errorf("file was changed (%v)", err)
			}
		})
	}
}

// TestLossIsNoticed takes things away behind the store's back, as damaged pages do.
func TestLossIsNoticed(t *testing.T) {
	for name, damage := range map[string]func(*bbolt.Tx) error{
		"entry":  func(tx *bbolt.Tx) error { return tx.Bucket([]byte("leases")).Delete([]byte("a")) },
		"bucket": func(tx *bbolt.Tx) error { return tx.DeleteBucket([]byte("leases")) },
		"digest": func(tx *bbolt.Tx) error {
			return tx.Bucket([]byte(metaBucket)).Delete([]byte(digestPrefix + "leases"))
		},
		"meta": func(tx *bbolt.Tx) error { return tx.DeleteBucket([]byte(metaBucket)) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "db")
			s, err := Open(path)
			if err != nil {
				t.Fatal(err)
			}
			apply(t, s, "leases", map[string][]byte{"a": {1}, "b": {2}})
			if err := errors.Join(s.db.Update(damage), s.Close()); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(path); !errors.Is(err, ErrCorrupt) {
				t.Errorf("got %v, want ErrCorrupt", err)
			}
		})
	}
}

func TestOtherFormatIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	err = s.db.Update(func(tx *bbolt.Tx) error {
		k := []byte(formatKey)
		return tx.Bucket([]byte(metaBucket)).Put(k, seal(k, []byte("2")))
	})
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.Is(err, ErrFormat) {
		t.Errorf("got %v, want ErrFormat", err)
	}
}

func TestUnwritableFolder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, fileMode); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(filepath.Join(file, "weave.db")); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("below a file: %v", err)
	}
	if _, err := Open(t.TempDir()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a folder in place of the file: %v", err)
	}
}
