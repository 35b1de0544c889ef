package dockerapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/docker/go-plugins-helpers/sdk"
	"github.com/sirupsen/logrus"
)

const (
	maxBody = 1 << 20

	// callTimeout is less than the 30 s after which dockerd gives up and sends
	// the call again, without its body.
	callTimeout = 20 * time.Second
	// gateTimeout is the part of callTimeout that a call waits for the drivers.
	gateTimeout = 15 * time.Second
)

// handler answers dockerd. It is set once and never changed.
type handler struct {
	gate   Gate
	log    *logrus.Entry
	routes map[string]route
}

// NewHandler returns the handler of all paths of the plugin protocol.
func NewHandler(gate Gate, log *logrus.Entry) http.Handler {
	return &handler{gate: gate, log: log, routes: routes()}
}

// NewServer returns a server for h with time limits that fit dockerd.
func NewServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: callTimeout,
		ReadTimeout:       callTimeout,
		WriteTimeout:      2 * callTimeout,
		MaxHeaderBytes:    64 << 10,
	}
}

// failure is an error with the HTTP status that goes with it. dockerd reads Err
// from any answer whose status is not 200; the status itself means nothing to
// it, apart from 404 for "not implemented".
type failure struct {
	status int
	err    error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func fail(status int, format string, args ...any) error {
	return &failure{status, fmt.Errorf(format, args...)}
}

// ServeHTTP answers one call.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	answer, err := h.call(ctx, r)
	log := h.log.WithFields(logrus.Fields{"call": r.URL.Path, "took": time.Since(start)})
	if err != nil {
		log = log.WithError(err)
	}
	log.Debug("docker called")
	write(w, answer, err)
}

// call finds the route, reads the body, and waits for the drivers if the route
// needs them. A panic in a driver becomes an error.
func (h *handler) call(ctx context.Context, r *http.Request) (answer any, err error) {
	defer func() {
		if p := recover(); p != nil {
			h.log.WithFields(logrus.Fields{"call": r.URL.Path, "panic": p, "stack": string(debug.Stack())}).Error("bug: call panicked")
			answer, err = nil, fail(http.StatusInternalServerError, "bug in the weave plugin: %v; its log has the details", p)
		}
	}()
	route, ok := h.routes[r.URL.Path]
	if !ok {
		return nil, fail(http.StatusNotFound, "the weave plugin does not implement %s", r.URL.Path)
	}
	if r.Method != http.MethodPost {
		return nil, fail(http.StatusMethodNotAllowed, "%s: method %s, want POST", r.URL.Path, r.Method)
	}
	if route.static != nil {
		return route.static, nil
	}
	body, err := readBody(r)
	if err != nil {
		return nil, err
	}
	drivers, err := h.ready(ctx)
	if err != nil {
		return nil, err
	}
	answer, err = route.call(ctx, drivers, body)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil {
		return nil, fail(http.StatusGatewayTimeout, "the weave plugin could not finish within %s: %w; try again", callTimeout, err)
	}
	return answer, err
}

// ready waits for the drivers and makes a sentence of it when there are none.
func (h *handler) ready(ctx context.Context) (Drivers, error) {
	wait, cancel := context.WithTimeout(ctx, gateTimeout)
	defer cancel()
	drivers, err := h.gate.Ready(wait)
	if err != nil && wait.Err() != nil && errors.Is(err, wait.Err()) {
		return Drivers{}, fail(http.StatusServiceUnavailable, "the weave plugin is still starting; see `weave status`, and try again")
	}
	if err != nil {
		return Drivers{}, fail(http.StatusServiceUnavailable, "the weave plugin does no work: %w", err)
	}
	return drivers, nil
}

func readBody(r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	switch {
	case err != nil:
		return nil, fail(http.StatusBadRequest, "read request: %w", err)
	case len(body) > maxBody:
		return nil, fail(http.StatusRequestEntityTooLarge, "request of more than %d bytes", maxBody)
	case len(bytes.TrimSpace(body)) == 0:
		return nil, fail(http.StatusBadRequest, "empty request: dockerd sends one when it repeats a call that timed out; run the docker command again")
	}
	return body, nil
}

// decode reads exactly one JSON object into req. Fields that it does not know
// are left alone: newer engines send more.
func decode(body []byte, req any) error {
	if trimmed := bytes.TrimSpace(body); trimmed[0] != '{' {
		return fail(http.StatusBadRequest, "malformed request: not a JSON object")
	}
	if err := json.Unmarshal(body, req); err != nil {
		return fail(http.StatusBadRequest, "malformed request: %w", err)
	}
	return nil
}

func write(w http.ResponseWriter, answer any, err error) {
	status := http.StatusOK
	if err != nil {
		status = http.StatusInternalServerError
		var f *failure
		if errors.As(err, &f) {
			status = f.status
		}
		answer = struct{ Err string }{err.Error()}
	}
	w.Header().Set("Content-Type", sdk.DefaultContentTypeV1_1)
	if status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", http.MethodPost)
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(answer) // dockerd is gone: it will ask again
}
