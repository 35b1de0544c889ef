package main

import (
	"archive/zip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"

	"weave/test/dockerlab"
)

// The nebula that is measured. Its offloads came after 1.11; 1.12 is the first
// release that has them, and asks for a newer Go than this project does.
const (
	nebulaPath    = "github.com/slackhq/nebula"
	nebulaVersion = "v1.12.0"
	nebulaSum     = "h1:MNiemg4HtLIwYuAvLFjHy7cVvRK4SMcvHFH/Jtg4p3I="
	nebulaModule  = "nebula " + nebulaVersion
	nebulaMaxSize = 64 << 20 // bytes of a file in it
)

// runPrepare lays nebula's source out under build/, with the Go version that it
// asks for lowered to this project's, and compiles the daemon. The source itself
// is as released: its checksum is verified.
func runPrepare(ctx context.Context, _ []string) error {
	dir := filepath.Join(nebulaDir(), "nebula-src")
	_ = os.Remove(nebulaBinary())
	if err := layOutNebula(ctx, dir); err != nil {
		return fmt.Errorf("nebula is left out: %w", err)
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", nebulaBinary(), ".")
	build.Dir = filepath.Join(dockerlab.ProjectDir(), "test", "bench", "nebula")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("nebula is left out: compile: %w", err)
	}
	return nil
}

func layOutNebula(ctx context.Context, dir string) error {
	download := exec.CommandContext(ctx, "go", "mod", "download", "-json", nebulaPath+"@"+nebulaVersion)
	download.Dir = os.TempDir() // in no module
	// It fails where Go is older than the module wants, and names the file all the same.
	answer, failed := download.Output()
	var got struct{ Zip, Sum, Error string }
	if err := json.Unmarshal(answer, &got); err != nil || got.Zip == "" {
		return errors.Join(failed, errors.New(got.Error), err)
	}
	if got.Sum != nebulaSum {
		return fmt.Errorf("checksum of %s is %s, want %s", nebulaVersion, got.Sum, nebulaSum)
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := unzip(got.Zip, nebulaPath+"@"+nebulaVersion+"/", dir); err != nil {
		return err
	}
	file := filepath.Join(dir, "go.mod")
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	text = regexp.MustCompile(`(?m)^go 1\..*$`).ReplaceAll(text, []byte("go 1.26.0"))
	return os.WriteFile(file, text, 0o644)
}

// unzip writes the files below prefix into dir.
func unzip(archive, prefix, dir string) error {
	r, err := zip.OpenReader(archive)
	if err != nil {
		return err
	}
	defer r.Close()
	for _, f := range r.File {
		name, ok := strings.CutPrefix(f.Name, prefix)
		if !ok || !filepath.IsLocal(name) {
			return fmt.Errorf("%s: file %q is outside the module", archive, f.Name)
		}
		if err := unzipFile(f, filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("unpack %s: %w", f.Name, err)
		}
	}
	return nil
}

func unzipFile(f *zip.File, to string) error {
	in, err := f.Open()
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	content, err := io.ReadAll(io.LimitReader(in, nebulaMaxSize))
	if err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o644)
}

// moduleVersion is the version of a module that this program was built with.
func moduleVersion(path string) string {
	info, ok := debug.ReadBuildInfo()
	if ok {
		for _, m := range info.Deps {
			if m.Path == path {
				return m.Version
			}
		}
	}
	return "unknown version"
}
