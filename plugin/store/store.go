// Package store keeps the plugin's durable state in one bbolt file: named
// buckets of key and value. A change is on disk when Apply returns, and a file
// that is damaged or held by another process is refused, never repaired or
// replaced.
//
// The package gives no meaning to what it stores, watches nothing and has no
// goroutine of its own.
package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// Errors that Open, Load and Apply return, wrapped with the path or the bucket.
var (
	// ErrCorrupt says that the file is not a sound store. It is left as it is.
	ErrCorrupt = errors.New("corrupt state")
	// ErrLocked says that another process has the file open.
	ErrLocked = errors.New("state is in use by another process")
	// ErrFormat says that the file was written by a version with another layout.
	ErrFormat = errors.New("state has another format")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("store is closed")
)

const (
	dirMode  = 0o700
	fileMode = 0o600

	// lockTimeout is how long Open waits for a predecessor that is on its way out.
	lockTimeout = 2 * time.Second
	lockRetry   = 50 * time.Millisecond

	// room is more than a usual change needs of the disk, in bytes.
	room = 128 << 10
)

// Store is one open state file. Its methods may be called concurrently.
type Store struct {
	path string
	db   *bbolt.DB

	// committing is held by the caller of Apply that writes for all who wait.
	committing sync.Mutex
	failure    error // of a commit, until the disk takes writes again; guarded by committing

	mu      sync.Mutex
	waiting []*change // guarded by mu
}

// change is one call of Apply. The committer fills in done and err; the caller
// reads them while it holds Store.committing.
type change struct {
	bucket  string
	entries map[string][]byte
	done    bool
	err     error
}

// Open opens the state file at path. If there is none it makes one, and the
// folder that it is in, readable by root only. It checks the whole file first:
// the error is ErrCorrupt for one that is damaged (an empty one included),
// ErrLocked for one in use, ErrFormat for one of another version.
func Open(path string) (*Store, error) {
	if err := makeDir(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("open state %s: %w", path, err)
	}
	if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
		if err := create(path); err != nil {
			return nil, fmt.Errorf("create state %s: %w", path, err)
		}
	}
	db, err := openChecked(path)
	if err != nil {
		return nil, fmt.Errorf("open state %s: %w", path, err)
	}
	return &Store{path: path, db: db}, nil
}

// Close waits for the transactions under way and lets go of the file.
func (s *Store) Close() error {
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("close state %s: %w", s.path, err)
	}
	return nil
}

// Load returns all entries of a bucket; the caller owns the map and the values.
// A bucket that was never written is empty.
func (s *Store) Load(bucket string) (map[string][]byte, error) {
	entries := map[string][]byte{}
	err := s.db.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(bucket))
		if b == nil {
			return nil
		}
		return b.ForEach(func(k, sealed []byte) error {
			v, err := unseal(k, sealed)
			if err != nil {
				return err
			}
			entries[string(k)] = v
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("load bucket %q of state %s: %w", bucket, s.path, translate(err))
	}
	return entries, nil
}

// Apply writes the entries of changes to the bucket and deletes those whose
// value is nil: all or none. When it returns nil they are on disk. Calls that
// come while the disk is busy share the next commit, in the order they came.
// The maps' values must not be changed until Apply returns.
func (s *Store) Apply(bucket string, changes map[string][]byte) error {
	if len(changes) == 0 {
		return nil
	}
	if err := validate(bucket, changes); err != nil {
		return fmt.Errorf("write bucket %q of state %s: %w", bucket, s.path, err)
	}
	c := &change{bucket: bucket, entries: changes}
	s.mu.Lock()
	s.waiting = append(s.waiting, c)
	s.mu.Unlock()

	s.committing.Lock()
	defer s.committing.Unlock()
	if !c.done {
		s.commitWaiting()
	}
	if c.err != nil {
		return fmt.Errorf("write bucket %q of state %s: %w", bucket, s.path, c.err)
	}
	return nil
}

// commitWaiting writes every waiting change in one transaction. The caller holds
// committing. Changes were validated, so only the disk can fail them, and it
// fails all of them.
func (s *Store) commitWaiting() {
	s.mu.Lock()
	batch := s.waiting
	s.waiting = nil
	s.mu.Unlock()

	err := errors.New("commit broke off") // unless Update returns
	defer func() {
		err := translate(err)
		for _, c := range batch {
			c.done, c.err = true, err
		}
		if err != nil {
			s.failure = err
		}
	}()
	err = s.db.Update(func(tx *bbolt.Tx) error {
		for _, c := range batch {
			if err := c.write(tx); err != nil {
				return err
			}
		}
		return nil
	})
}

// Check returns nil unless a call of Apply has failed, and then why, until the
// disk has room for more than a usual change. That a smaller one succeeds
// meanwhile tells nothing: the next lease may not fit.
func (s *Store) Check() error {
	s.committing.Lock()
	defer s.committing.Unlock()
	if s.failure == nil {
		return nil
	}
	if err := tryRoom(s.path + ".try"); err != nil {
		return fmt.Errorf("write state %s: %w", s.path, s.failure)
	}
	s.failure = nil
	return nil
}

func (c *change) write(tx *bbolt.Tx) error {
	b, err := tx.CreateBucketIfNotExists([]byte(c.bucket))
	if err != nil {
		return err
	}
	d, err := loadDigest(tx, c.bucket)
	if err != nil {
		return err
	}
	for k, v := range c.entries {
		key := []byte(k)
		if old := b.Get(key); old != nil {
			d.remove(old)
		}
		if v == nil {
			err = b.Delete(key)
		} else {
			sealed := seal(key, v)
			d.add(sealed)
			err = b.Put(key, sealed)
		}
		if err != nil {
			return err
		}
	}
	return d.save(tx, c.bucket)
}

// validate finds what bbolt would refuse, so that one bad change cannot fail
// the others of its commit.
func validate(bucket string, changes map[string][]byte) error {
	if bucket == "" || bucket == metaBucket {
		return fmt.Errorf("bucket name %q is not allowed", bucket)
	}
	for k, v := range changes {
		if len(k) == 0 || len(k) > bbolt.MaxKeySize {
			return fmt.Errorf("key of %d bytes: want 1 to %d", len(k), bbolt.MaxKeySize)
		}
		if len(v) > bbolt.MaxValueSize-sumSize {
			return fmt.Errorf("value of %d bytes: want at most %d", len(v), bbolt.MaxValueSize-sumSize)
		}
	}
	return nil
}

// translate puts the package's errors in front of those of bbolt.
func translate(err error) error {
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return ErrLocked
	case errors.Is(err, bolterrors.ErrDatabaseNotOpen):
		return ErrClosed
	}
	return err
}
