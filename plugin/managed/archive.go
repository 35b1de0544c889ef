package managed

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"weave"
)

// binaryEnv is a variable of the plugin that nobody can set: it records what the
// plugin was made of, so that a launch can tell whether it has anything to do.
const binaryEnv = "WEAVE_BINARY"

// mountPoints are the folders of the root file system that config.json names.
var mountPoints = []string{
	"rootfs/", "rootfs/host/", "rootfs/host/run/", "rootfs/host/var/", "rootfs/host/var/lib/",
	"rootfs/run/", "rootfs/run/docker/", "rootfs/run/docker/plugins/",
}

// archive is what `docker plugin create` is given.
type archive struct {
	binary *os.File
	size   int64
	sum    string // SHA-256 of the binary, in hex
	config []byte
}

// openArchive reads the binary once, for its sum.
func openArchive(binary string) (_ *archive, err error) {
	f, err := os.Open(binary)
	if err != nil {
		return nil, fmt.Errorf("read this program: %w", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	if err := checkStatic(f); err != nil {
		return nil, err
	}
	h := sha256.New()
	a := &archive{binary: f}
	if a.size, err = io.Copy(h, f); err != nil {
		return nil, fmt.Errorf("read this program: %w", err)
	}
	a.sum = hex.EncodeToString(h.Sum(nil))
	a.config, err = describe(a.sum)
	return a, err
}

// checkStatic refuses a program that needs libraries: the plugin has none.
func checkStatic(f io.ReaderAt) error {
	program, err := elf.NewFile(f)
	if err != nil {
		return nil //nolint:nilerr // in another format: Docker will say what it thinks of it
	}
	for _, part := range program.Progs {
		if part.Type == elf.PT_INTERP {
			return errors.New("this program needs libraries of the host, which a plugin does not have: build it with `make build`, or with CGO_ENABLED=0")
		}
	}
	return nil
}

// describe is config.json, with the sum of the binary.
func describe(sum string) ([]byte, error) {
	var c map[string]any
	if err := json.Unmarshal(weave.ConfigJSON, &c); err != nil {
		return nil, fmt.Errorf("config.json: %w", err)
	}
	env, _ := c["env"].([]any)
	c["env"] = append(env, map[string]any{
		"name": binaryEnv, "description": "SHA-256 of the program that this was made of", "value": sum, "settable": []string{},
	})
	return json.Marshal(c)
}

func (a *archive) close() { _ = a.binary.Close() } // it was only read

// writeTo writes the archive, always the same for the same binary.
func (a *archive) writeTo(w io.Writer) error {
	if _, err := a.binary.Seek(0, io.SeekStart); err != nil {
		return err
	}
	out := tar.NewWriter(w)
	if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "config.json", Mode: 0o644, Size: int64(len(a.config))}); err != nil {
		return err
	}
	if _, err := io.Copy(out, bytes.NewReader(a.config)); err != nil {
		return err
	}
	for _, dir := range mountPoints {
		if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
			return err
		}
	}
	if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "rootfs/weave", Mode: 0o755, Size: a.size}); err != nil {
		return err
	}
	if _, err := io.CopyN(out, a.binary, a.size); err != nil {
		return err
	}
	return out.Close()
}

// stream is the archive as a reader. Closing it ends the writing.
func (a *archive) stream() io.ReadCloser {
	r, w := io.Pipe()
	go func() { _ = w.CloseWithError(a.writeTo(w)) }() // the reader has the error
	return r
}
