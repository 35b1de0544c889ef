package managed

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// savedName is the file with the settings of a plugin that is being replaced:
// for a while no engine has them.
const savedName = "launch.json"

const maxSaved = 1 << 20

// writeFile puts a file that only root may read in the place of another, at once
// and for good. The folder is made if it is not there, and is only root's.
func writeFile(dir, name string, content []byte) (err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, name+".new-") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, name)); err != nil {
		return err
	}
	return syncDir(dir)
}

// freeOn returns how many bytes are free on the disk of a folder.
func freeOn(dir string) (uint64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, err
	}
	return s.Bavail * uint64(s.Bsize), nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// save keeps settings until forget.
func (p *Plugin) save(s Settings) error {
	content, err := json.Marshal(s)
	if err == nil {
		err = writeFile(p.saved, savedName, content)
	}
	if err != nil {
		return fmt.Errorf("save the settings: %w", err)
	}
	return nil
}

// savedSettings returns those of a launch that was cut short; nil if none was.
func (p *Plugin) savedSettings() (Settings, error) {
	f, err := os.Open(filepath.Join(p.saved, savedName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read saved settings: %w", err)
	}
	defer func() { _ = f.Close() }() // it was only read
	var s Settings
	if err := json.NewDecoder(io.LimitReader(f, maxSaved)).Decode(&s); err != nil {
		return nil, fmt.Errorf("read saved settings: %s: %w; delete the file to go on without them", f.Name(), err)
	}
	return s, nil
}

func (p *Plugin) forget() error {
	err := os.Remove(filepath.Join(p.saved, savedName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove saved settings: %w", err)
	}
	return nil
}

// password is the file that a launch writes; nothing if it is to write none.
type password struct {
	dir  string
	want *string
	old  []byte
	had  bool
}

// openPassword looks at the file as it is, so that it can be put back.
func openPassword(dir string, want *string) (p password, err error) {
	p = password{dir: dir, want: want}
	if want == nil {
		return p, nil
	}
	p.old, err = os.ReadFile(filepath.Join(dir, PasswordFile))
	p.had = err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return p, fmt.Errorf("read the old password: %w", err)
	}
	return p, nil
}

func (p password) text() []byte { return []byte(*p.want + "\n") }

// changes tells whether another password is wanted than the file has.
func (p password) changes() bool { return p.want != nil && string(p.old) != string(p.text()) }

func (p password) write() error {
	if !p.changes() {
		return nil
	}
	if err := writeFile(p.dir, PasswordFile, p.text()); err != nil {
		return fmt.Errorf("write the password: %w", err)
	}
	return nil
}

// restore undoes write.
func (p password) restore() error {
	switch {
	case !p.changes():
		return nil
	case p.had:
		return writeFile(p.dir, PasswordFile, p.old)
	}
	err := os.Remove(filepath.Join(p.dir, PasswordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Wipe deletes all that the plugin kept on disk: its identity, its addresses,
// the password. The plugin must have been removed. State is what the engine said
// of it while it was there. It tells whether there was anything.
func (p *Plugin) Wipe(s State) (some bool, err error) {
	for _, dir := range []string{s.settings.stateDir(), p.saved} {
		had, err := empty(dir)
		if err != nil {
			return some, fmt.Errorf("delete the state in %s: %w", dir, err)
		}
		some = some || had
	}
	return some, nil
}

// empty deletes what is in a folder, and follows no link out of it. It tells
// whether there was anything.
func empty(dir string) (had bool, err error) {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		if err := root.RemoveAll(e.Name()); err != nil {
			return true, err
		}
	}
	return len(entries) > 0, nil
}
