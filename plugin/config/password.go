package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// MaxPassword is the length of the longest password, in bytes.
const MaxPassword = 1024

// password returns the password, or nil if there is none. The value itself
// never gets into a Problem.
func (r *reader) password(state string) []byte {
	direct, _ := r.lookup(Password)
	path, fromFile := r.get(PasswordFile)
	switch {
	case direct != "" && fromFile:
		r.bad(PasswordFile, path, Password+" is set as well", "set only one of the two")
		return nil
	case fromFile:
		return r.passwordFile(state, path)
	case direct == "":
		return nil
	}
	if len(direct) > MaxPassword {
		r.bad(Password, "", tooLong(len(direct)), "set a shorter one on all hosts")
		return nil
	}
	return []byte(direct)
}

func (r *reader) passwordFile(state, path string) []byte {
	name, err := belowState(state, path)
	if err != nil {
		r.bad(PasswordFile, path, err.Error(), "put the file into "+HostState+" and set its name")
		return nil
	}
	password, err := readPassword(state, name)
	if err != nil {
		r.bad(PasswordFile, path, err.Error(), fmt.Sprintf("write the password into %s on the host", filepath.Join(HostState, name)))
		return nil
	}
	return password
}

// belowState makes path relative to the state folder. An absolute one may name
// that folder as the host or as the plugin sees it.
func belowState(state, path string) (string, error) {
	for _, dir := range []string{state, HostState} {
		if rel, ok := strings.CutPrefix(filepath.Clean(path), dir+"/"); ok {
			path = rel
			break
		}
	}
	if !filepath.IsLocal(path) {
		return "", errors.New("not a file in the state folder")
	}
	return path, nil
}

// readPassword reads a file below the state folder, and follows no link out of
// it. One line end after the password is not part of it.
func readPassword(state, name string) (_ []byte, err error) {
	root, err := os.OpenRoot(state)
	if err != nil {
		return nil, reason(err)
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	info, err := root.Stat(name)
	if err != nil {
		return nil, reason(err)
	}
	if !info.Mode().IsRegular() { // a FIFO would block for ever
		return nil, errors.New("not a regular file")
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, reason(err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b, err := io.ReadAll(io.LimitReader(f, MaxPassword+3)) // with "\r\n", and one to see that it is more
	if err != nil {
		return nil, reason(err)
	}
	password := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	switch {
	case password == "":
		return nil, errors.New("the file is empty")
	case len(password) > MaxPassword:
		return nil, errors.New(tooLong(len(password)))
	}
	return []byte(password), nil
}

// reason drops the path from an error: the plugin sees another one than the user.
func reason(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

func tooLong(n int) string {
	return fmt.Sprintf("password of at least %d bytes, the longest allowed has %d", n, MaxPassword)
}
