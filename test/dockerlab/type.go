package dockerlab

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
)

// applets are the programs that hosts have of busybox, so that they print the same
// on each machine.
var applets = []string{"ping", "wget"}

// Type runs a line as a person would type it into a shell of the host, in a home
// directory that outlives reboots. It returns what a terminal would show, without
// the last newline, also when the command fails. weave is what `make build` made,
// and sudo does nothing, for the person is root. Without an init system the host
// itself does what reboots it or restarts its engine.
func (h *Host) Type(line string) (string, error) {
	switch line {
	case "sudo reboot":
		return "", h.Reboot()
	case "sudo systemctl restart docker":
		return "", h.Restart()
	}
	const shell = `exec 2>&1 && cd "$1" && PATH="$2:$PATH" && eval "$3"`
	out, err := h.Run("bash", "-c", shell, "bash", h.home(), h.lab.programs(), line)
	if failed, ok := errors.AsType[*CommandError](err); ok {
		failed.Command, failed.Stderr = line, out
	}
	return out, err
}

// SetHostname names the host, as it calls itself from now on. In the lab it is
// Name still.
func (h *Host) SetHostname(name string) error {
	h.hostname = name
	_, err := h.Run("hostname", name)
	return err
}

func (h *Host) home() string { return filepath.Join(h.dir, "home") }

// programs is the folder of what Type finds first.
func (l *Lab) programs() string { return filepath.Join(l.dir, "bin") }

// makePrograms fills that folder.
func (l *Lab) makePrograms() error {
	dir := l.programs()
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return errors.Join(err, errNoBusybox)
	}
	for _, name := range applets {
		if err := os.Symlink(busybox, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	weave, err := filepath.Abs(filepath.Join(BuildDir(), "weave"))
	if err == nil {
		err = os.Symlink(weave, filepath.Join(dir, "weave"))
	}
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "sudo"), []byte("#!/bin/sh\nexec \"$@\"\n"), 0o755)
}
