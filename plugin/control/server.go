package control

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/sirupsen/logrus"
)

const (
	statusPath  = "/v1/status"
	connectPath = "/v1/connect"
	forgetPath  = "/v1/forget"

	maxRequest   = 64 << 10
	maxAddresses = 256
	serveTimeout = time.Minute // connecting tries each address for some seconds
)

// Daemon is asked by the server. Its methods are called concurrently, from the
// moment that the plugin runs: also while it starts, and when its settings do
// not let it work.
type Daemon interface {
	Status(ctx context.Context) (Status, error)
	// Connect remembers the addresses (host or host:port) and tries each once.
	// There is a result for each, in order; an error means that none was taken.
	Connect(ctx context.Context, addrs []string) ([]ConnectResult, error)
	// Forget takes back addresses that Connect was given; the error names those
	// that it could not.
	Forget(ctx context.Context, addrs []string) error
	// RemovePeer removes a peer that is gone for good, by ID, by the beginning of
	// one, or by nickname. Gone says that its containers are gone as well.
	RemovePeer(ctx context.Context, peer string, gone bool) (Removal, error)
	// Leave asks others to remove this host as soon as it is gone.
	Leave(ctx context.Context) (Departure, error)
	// Expose gives this host addresses on segments, all or, with an error, none.
	Expose(ctx context.Context, r ExposeRequest) ([]Exposed, error)
	// Hide takes such addresses back, all of them if no targets are named.
	Hide(ctx context.Context, targets []Target) ([]Exposed, error)
	// Prime gets addresses of the default subnet, or tells what it waits for.
	Prime(ctx context.Context) (Primed, error)
	// AddName adds addresses to a name, on disk; RemoveName takes them back, all of
	// them if none are named.
	AddName(ctx context.Context, r NameRequest) error
	RemoveName(ctx context.Context, r NameRequest) error
	// Doctor examines the plugin and its host, and asks the other hosts.
	Doctor(ctx context.Context) ([]Check, error)
}

// addresses is the body of a request to connect or to forget.
type addresses struct {
	Addresses []string `json:"addresses"`
}

type errorAnswer struct {
	Error string `json:"error"`
}

// NewServer returns an HTTP server for the API.
func NewServer(d Daemon, log *logrus.Entry) *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+statusPath, func(w http.ResponseWriter, r *http.Request) {
		status, err := d.Status(r.Context())
		answer(w, withLists(status), err)
	})
	mux.HandleFunc("POST "+connectPath, func(w http.ResponseWriter, r *http.Request) {
		if addrs, ok := readAddresses(w, r); ok {
			log.WithField("addr", addrs).Info("told to connect")
			results, err := d.Connect(r.Context(), addrs)
			answer(w, withLists(results), err)
		}
	})
	mux.HandleFunc("POST "+forgetPath, func(w http.ResponseWriter, r *http.Request) {
		if addrs, ok := readAddresses(w, r); ok {
			log.WithField("addr", addrs).Info("told to forget")
			answer(w, struct{}{}, d.Forget(r.Context(), addrs))
		}
	})
	mux.HandleFunc("POST "+rmpeerPath, func(w http.ResponseWriter, r *http.Request) { removePeer(d, w, r) })
	mux.HandleFunc("POST "+leavePath, plain(d.Leave))
	mux.HandleFunc("POST "+exposePath, func(w http.ResponseWriter, r *http.Request) { expose(d, w, r) })
	mux.HandleFunc("POST "+hidePath, func(w http.ResponseWriter, r *http.Request) { hide(d, w, r) })
	mux.HandleFunc("POST "+primePath, plain(d.Prime))
	mux.HandleFunc("POST "+addNamePath, changeName(d.AddName, 1))
	mux.HandleFunc("POST "+removeNamePath, changeName(d.RemoveName, 0))
	mux.HandleFunc("POST "+doctorPath, plain(d.Doctor))
	mux.Handle("GET "+metricsPath, newMetrics(d))
	return &http.Server{
		Handler:           http.TimeoutHandler(mux, serveTimeout, `{"error":"the plugin did not answer in time"}`),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       10 * time.Second,
	}
}

// nothing is the body of a request that has nothing to say.
var nothing = []byte("{}")

// plain serves such a request.
func plain[T any](do func(context.Context) (T, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := readStrictly(w, r, &struct{}{}); err != nil {
			refuse(w, err)
			return
		}
		result, err := do(r.Context())
		answer(w, withLists(result), err)
	}
}

// readAddresses reads the body of a request, or answers that it cannot.
func readAddresses(w http.ResponseWriter, r *http.Request) ([]string, bool) {
	var req addresses
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(&req); err != nil {
		refuse(w, fmt.Errorf("malformed request: %w", err))
		return nil, false
	}
	if n := len(req.Addresses); n == 0 || n > maxAddresses {
		refuse(w, fmt.Errorf("%d addresses, want 1 to %d", n, maxAddresses))
		return nil, false
	}
	return req.Addresses, true
}

func refuse(w http.ResponseWriter, err error) {
	write(w, http.StatusBadRequest, errorAnswer{err.Error()})
}

func answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		write(w, http.StatusInternalServerError, errorAnswer{err.Error()})
		return
	}
	write(w, http.StatusOK, v)
}

func write(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client is gone
}
