package store

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// Names in the bucket that describes the file.
const (
	metaBucket   = "meta"
	formatKey    = "format"
	digestPrefix = "digest/" // followed by the name of a bucket

	format = "1"
)

// makeDir makes the state folder and sees to its mode.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() == dirMode {
		return err
	}
	return os.Chmod(dir, dirMode)
}

// create makes a new store aside and then links it to its name, which fails if
// the name is taken meanwhile. So a file at path is either whole or damaged,
// never half made.
func create(path string) error {
	aside := path + ".new"
	if err := os.Remove(aside); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	db, err := openBolt(aside, func(*os.File) error { return nil })
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucket([]byte(metaBucket))
		if err != nil {
			return err
		}
		return b.Put([]byte(formatKey), seal([]byte(formatKey), []byte(format)))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return errors.Join(err, os.Remove(aside))
	}
	if err := os.Link(aside, path); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := os.Remove(aside); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir puts the names in dir on disk.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// tryRoom writes a file of some size to the disk, and removes it.
func tryRoom(path string) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, fileMode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(path)) }()
	if _, err := f.Write(make([]byte, room)); err != nil {
		return err
	}
	return f.Sync()
}

// openBolt opens path and locks it. opened gets the file before bbolt reads it,
// and may refuse it.
func openBolt(path string, opened func(*os.File) error) (*bbolt.DB, error) {
	db, err := bbolt.Open(path, fileMode, &bbolt.Options{
		Timeout:      lockTimeout,
		FreelistType: bbolt.FreelistMapType,
		OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
			f, err := os.OpenFile(name, flag, mode)
			if err != nil {
				return nil, err
			}
			if err := opened(f); err != nil {
				return nil, errors.Join(err, f.Close())
			}
			return f, nil
		},
	})
	if err != nil {
		return nil, translate(err)
	}
	return db, nil
}

// openChecked opens an existing file and reads all of it. What bbolt's pages and
// this package's sums do not show may still make bbolt panic, as does a disk
// that cannot be read: here that ends as ErrCorrupt, with the lock released.
func openChecked(path string) (db *bbolt.DB, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	var file *os.File
	defer func() {
		if r := recover(); r != nil {
			db, err = nil, fmt.Errorf("%w: %v", ErrCorrupt, r)
			if file != nil {
				err = errors.Join(err, abandon(file))
			}
		}
	}()
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() == 0 {
		return nil, fmt.Errorf("%w: %d bytes, mode %s", ErrCorrupt, info.Size(), info.Mode())
	}
	if err := os.Chmod(path, fileMode); err != nil {
		return nil, err
	}
	db, err = openBolt(path, func(f *os.File) error {
		file = f
		if err := lock(f); err != nil {
			return err
		}
		data, err := io.ReadAll(io.NewSectionReader(f, 0, math.MaxInt64))
		if err != nil {
			return err
		}
		return checkPages(data)
	})
	if err != nil {
		return nil, err
	}
	if err := db.View(checkEntries); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// lock locks the file as bbolt does, which then finds it locked by itself.
func lock(f *os.File) error {
	for start := time.Now(); ; time.Sleep(lockRetry) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		if time.Since(start) > lockTimeout {
			return ErrLocked
		}
	}
}

// abandon lets go of a file that bbolt left open and mapped. The mapping cannot
// be undone from here, and it would keep the lock after Close.
func abandon(f *os.File) error {
	return errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_UN), f.Close())
}

func checkEntries(tx *bbolt.Tx) error {
	if err := checkFormat(tx); err != nil {
		return err
	}
	return checkValues(tx)
}

func checkFormat(tx *bbolt.Tx) error {
	b := tx.Bucket([]byte(metaBucket))
	if b == nil {
		return fmt.Errorf("%w: no bucket %q", ErrCorrupt, metaBucket)
	}
	got, err := unseal([]byte(formatKey), b.Get([]byte(formatKey)))
	if err != nil {
		return err
	}
	if string(got) != format {
		return fmt.Errorf("%w: %q, this version reads %q", ErrFormat, got, format)
	}
	return nil
}

// checkValues reads every entry and compares the buckets with their digests.
func checkValues(tx *bbolt.Tx) error {
	found := map[string]digest{}
	err := tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
		var d digest
		err := b.ForEach(func(k, sealed []byte) error {
			_, err := unseal(k, sealed)
			if err == nil {
				d.add(sealed)
			}
			return err
		})
		found[string(name)] = d
		return err
	})
	if err != nil {
		return err
	}
	delete(found, metaBucket) // whose entries are needed one by one
	want, err := loadDigests(tx)
	if err == nil && !maps.Equal(found, want) {
		err = fmt.Errorf("%w: entries are missing", ErrCorrupt)
	}
	return err
}
