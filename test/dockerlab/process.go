package dockerlab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	killLimit = time.Minute
	pollEvery = 20 * time.Millisecond
)

// killAll ends every process in a network namespace and waits until none is
// left. Containers, in namespaces of their own, die with the host's init.
func killAll(namespacePath string) error {
	for end := time.Now().Add(killLimit); time.Now().Before(end); time.Sleep(pollEvery) {
		pids, err := processesIn(namespacePath)
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill process %d: %w", pid, err)
			}
		}
	}
	return fmt.Errorf("processes are left in %s after %s", namespacePath, killLimit)
}

// processesIn lists the processes in a network namespace.
func processesIn(namespacePath string) ([]int, error) {
	var stat unix.Stat_t
	if err := unix.Stat(namespacePath, &stat); err != nil {
		return nil, fmt.Errorf("stat %s: %w", namespacePath, err)
	}
	want := fmt.Sprintf("net:[%d]", stat.Ino)
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var pids []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err == nil && namespaceOf(pid, "net") == want {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// namespaceOf names a process's namespace, "" once the process is dead.
func namespaceOf(pid int, kind string) string {
	name, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	return name
}

// commandOf returns a process's command name, "" once it is gone.
func commandOf(pid int) string {
	name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.TrimSpace(string(name))
}

// removeCgroups deletes a host's control groups in every hierarchy, the
// innermost first.
func removeCgroups(name string) error {
	var errs []error
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		roots, err := filepath.Glob(pattern + name)
		if err != nil {
			return fmt.Errorf("control groups: %w", err)
		}
		for _, root := range roots {
			errs = append(errs, removeCgroup(root))
		}
	}
	return errors.Join(errs...)
}

func removeCgroup(root string) error {
	var dirs []string
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if errors.Is(err, os.ErrNotExist) {
		return nil // seen before, by another name of the hierarchy
	}
	if err != nil {
		return fmt.Errorf("control group %s: %w", root, err)
	}
	for _, dir := range slices.Backward(dirs) {
		if err := removeEmptied(dir); err != nil {
			return fmt.Errorf("remove control group %s: %w", dir, err)
		}
	}
	return nil
}

// removeEmptied deletes a directory as soon as the kernel has let go of the
// processes that were in it.
func removeEmptied(dir string) error {
	for end := time.Now().Add(killLimit); ; time.Sleep(pollEvery) {
		err := unix.Rmdir(dir)
		switch {
		case err == nil || errors.Is(err, unix.ENOENT):
			return nil
		case !errors.Is(err, unix.EBUSY) || time.Now().After(end):
			return err
		}
	}
}
