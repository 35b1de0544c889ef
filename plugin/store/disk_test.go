package store

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// writerEnv makes the test binary a writer that is to be killed.
const writerEnv = "WEAVE_STORE_TEST_WRITER"

// writeForever applies pairs of entries that belong together, and says on
// standard output which were acknowledged.
func writeForever(path string) {
	s, err := Open(path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for i := 0; ; i++ {
		n := []byte(strconv.Itoa(i))
		if err := s.Apply("b", map[string][]byte{"left": n, "right": n, "n" + string(n): n}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(i)
	}
}

// TestKill kills a writer at any moment: what was acknowledged is there, and no
// change is there in part.
func TestKill(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	for round := range 4 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), writerEnv+"="+path)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		acknowledged := -1
		for acknowledged < 20+round {
			if _, err := fmt.Fscan(out, &acknowledged); err != nil {
				t.Fatal(err)
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for { // what it said before it died
			if _, err := fmt.Fscan(out, &acknowledged); err != nil {
				break
			}
		}
		_ = cmd.Wait() // killed: always an error

		s, err := Open(path)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		got := load(t, s, "b")
		last, err := strconv.Atoi(string(got["left"]))
		if err != nil || last < acknowledged {
			t.Errorf("round %d: last write %q, acknowledged %d", round, got["left"], acknowledged)
		}
		if string(got["left"]) != string(got["right"]) || got["n"+string(got["left"])] == nil {
			t.Errorf("round %d: torn change: %q and %q", round, got["left"], got["right"])
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// inTmpfs runs f on a thread of its own, in a mount namespace of its own, with a
// small file system mounted at dir. The namespace dies with the thread.
func inTmpfs(t *testing.T, options string, f func(dir string)) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("WEAVE_REQUIRE_ROOT") == "1" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	dir := t.TempDir()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			t.Error("unshare:", err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Error("make mounts private:", err)
			return
		}
		if err := unix.Mount("weave-test", dir, "tmpfs", 0, options); err != nil {
			t.Error("mount:", err)
			return
		}
		f(dir)
	}()
	<-done
}

func TestDiskFull(t *testing.T) {
	inTmpfs(t, "size=1m", func(dir string) {
		path := filepath.Join(dir, "weave", "db")
		ballast := filepath.Join(dir, "ballast")
		if err := os.WriteFile(ballast, make([]byte, 512<<10), fileMode); err != nil {
			t.Error(err)
			return
		}
		s, err := Open(path)
		if err == nil {
			err = s.Check()
		}
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = s.Close() }()
		value := make([]byte, 8<<10)
		written := 0
		for ; written < 1000 && err == nil; written++ {
			err = s.Apply("b", map[string][]byte{strconv.Itoa(written): value})
		}
		written--
		if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), path) {
			t.Errorf("after %d writes: %v, want ENOSPC naming %s", written, err, path)
		}
		if got, err := s.Load("b"); err != nil || len(got) != written {
			t.Errorf("%d entries (%v), %d were acknowledged", len(got), err, written)
		}
		// A deletion may find pages that the file has: it does not mean that the disk has room.
		switch err := s.Apply("b", map[string][]byte{"0": nil}); {
		case err == nil:
			written--
		case !errors.Is(err, syscall.ENOSPC):
			t.Errorf("deletion on a full disk: %v", err)
		}
		if err := s.Check(); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), path) {
			t.Errorf("the check of a full disk says %v", err)
		}
		if err := os.Remove(ballast); err != nil {
			t.Error(err)
		}
		if err := s.Check(); err != nil {
			t.Errorf("the check with space again: %v", err)
		}
		if err := s.Apply("b", map[string][]byte{"after": value}); err != nil {
			t.Errorf("write with space again: %v", err)
		}
		written++
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if files, err := os.ReadDir(filepath.Dir(path)); err != nil || len(files) != 1 {
			t.Errorf("files beside the state: %v %v", files, err)
		}
		s, err = Open(path)
		if err != nil {
			t.Errorf("reopen: %v", err)
			return
		}
		if got, err := s.Load("b"); err != nil || len(got) != written {
			t.Errorf("after reopening %d entries (%v), %d were acknowledged", len(got), err, written)
		}
	})
}

func TestReadOnlyFileSystem(t *testing.T) {
	inTmpfs(t, "size=512k", func(dir string) {
		path := filepath.Join(dir, "db")
		s, err := Open(path)
		if err == nil {
			err = s.Close()
		}
		if err == nil {
			err = unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
		}
		if err != nil {
			t.Error(err)
			return
		}
		for _, path := range []string{path, filepath.Join(dir, "new"), filepath.Join(dir, "sub", "new")} {
			if _, err := Open(path); !errors.Is(err, syscall.EROFS) || !strings.Contains(err.Error(), path) {
				t.Errorf("%s: got %v, want EROFS", path, err)
			}
		}
	})
}
