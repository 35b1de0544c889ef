package sock

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func listen(t *testing.T, path string) net.Listener {
	t.Helper()
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func TestListenMakesFolderAndCloseRemoves(t *testing.T) {
	path := filepath.Join(t.TempDir(), "docker", "plugins", "weave.sock")
	l := listen(t, path)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info, err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestListenReplacesStale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	listen(t, path)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}

func TestListenLeavesTheLivingAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	listen(t, path)
	if _, err := Listen(path); !errors.Is(err, ErrInUse) {
		t.Errorf("got %v, want ErrInUse", err)
	}
	if c, err := net.Dial("unix", path); err != nil {
		t.Errorf("first listener is gone: %v", err)
	} else {
		_ = c.Close()
	}
}

func TestListenRefusesOtherFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); err == nil {
		t.Error("took a regular file over")
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "mine" {
		t.Errorf("file was touched: %q, %v", b, err)
	}
	if _, err := Listen(filepath.Join(path, "below")); err == nil {
		t.Error("listened below a file")
	}
}

func TestCloseKeepsTheSuccessorsSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	old := listen(t, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	listen(t, path)
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	if !exists(path) {
		t.Error("the old listener removed the new socket")
	}
}

func TestServeEndsWithContext(t *testing.T) {
	paths := []string{filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")}
	started, release := make(chan struct{}), make(chan struct{})
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(started)
		<-release
		_, _ = io.WriteString(w, "finished")
	})}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	a, b := listen(t, paths[0]), listen(t, paths[1])
	go func() { ended <- Serve(ctx, srv, a, b) }()

	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", paths[1])
	}}
	defer tr.CloseIdleConnections()
	answer := make(chan string)
	go func() {
		resp, err := (&http.Client{Transport: tr}).Get("http://weave/")
		if err != nil {
			answer <- err.Error()
			return
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		answer <- string(body)
	}()
	<-started
	cancel()
	close(release)
	if got := <-answer; got != "finished" {
		t.Errorf("request under way got %q", got)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if exists(paths[0]) || exists(paths[1]) {
		t.Error("sockets left behind")
	}
}

func TestServeFailsWithItsListener(t *testing.T) {
	l := listen(t, filepath.Join(t.TempDir(), "s"))
	_ = l.Close()
	err := Serve(context.Background(), &http.Server{}, l)
	if !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v, want net.ErrClosed", err)
	}
}
