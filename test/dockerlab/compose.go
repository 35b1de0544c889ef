package dockerlab

import (
	"bufio"
	"context"
	_ "embed" // the script
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

//go:embed compose.py
var composeScript string

const composeSocket = "/run/compose.sock"

// composer is a process on a host that has imported what docker-compose does,
// and forks for each call. It ends with the host.
type composer struct {
	once sync.Once
	run  *process // nil where docker-compose is another than Debian's, in Python
}

// Compose runs docker-compose.
func (h *Host) Compose(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	return h.compose(ctx, args...)
}

func (h *Host) compose(ctx context.Context, args ...string) (string, error) {
	h.composer.once.Do(h.startComposer)
	if h.composer.run == nil {
		return h.RunContext(ctx, "docker-compose", args...)
	}
	out, errOut, err := h.callComposer(ctx, args)
	return h.result(ctx, out, errOut, err, "docker-compose", args)
}

func (h *Host) startComposer() {
	python := pythonOf("docker-compose")
	if python == "" {
		return
	}
	cmd := h.enter(exec.Command, python, "-c", composeScript, composeSocket)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := cmd.StdoutPipe()
	if err != nil || cmd.Start() != nil {
		return
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	run := reap(cmd)
	if line != "ready\n" { // it lacks a module
		<-run.done
		return
	}
	h.composer.run = run
}

// pythonOf returns the interpreter of a program in Python, "" of any other.
func pythonOf(program string) string {
	path, err := exec.LookPath(program)
	if err != nil {
		return ""
	}
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	line, _ := bufio.NewReader(io.LimitReader(f, 256)).ReadString('\n')
	interpreter, found := strings.CutPrefix(strings.TrimSpace(line), "#!")
	if !found || !strings.Contains(interpreter, "python") || strings.ContainsAny(interpreter, " \t") {
		return ""
	}
	return interpreter
}

// callComposer runs docker-compose in a fork, and returns what it wrote. The end
// of ctx ends it.
func (h *Host) callComposer(ctx context.Context, args []string) (out, errOut string, err error) {
	message, err := json.Marshal(args)
	if err != nil {
		return "", "", err
	}
	var files []*os.File // stdout and stderr
	for range 2 {
		fd, err := unix.MemfdCreate("output", unix.MFD_CLOEXEC)
		if err != nil {
			return "", "", fmt.Errorf("memfd: %w", err)
		}
		f := os.NewFile(uintptr(fd), "output")
		defer f.Close()
		files = append(files, f)
	}
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Net: "unixpacket", Name: h.Path(composeSocket)})
	if err != nil {
		return "", "", err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	rights := unix.UnixRights(int(files[0].Fd()), int(files[1].Fd()))
	if _, _, err := conn.WriteMsgUnix(message, rights, nil); err != nil {
		return "", "", err
	}
	err = exitStatus(conn)
	return contentOf(files[0]), contentOf(files[1]), err
}

// exitStatus waits for the answer to a call, which is an error if it is not 0.
func exitStatus(conn net.Conn) error {
	answer := make([]byte, 16)
	n, err := conn.Read(answer)
	if err != nil {
		return err
	}
	status, err := strconv.Atoi(string(answer[:n]))
	if err == nil && status != 0 {
		err = fmt.Errorf("exit status %d", status)
	}
	return err
}

// contentOf returns all that was written to a file, wherever it was read to.
func contentOf(f *os.File) string {
	content, _ := io.ReadAll(io.NewSectionReader(f, 0, 1<<30))
	return string(content)
}
