package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
)

// FuzzRequest: whatever is sent to the socket, the answer is JSON that says what
// is wrong if something is, and the daemon is asked only what makes sense.
func FuzzRequest(f *testing.F) {
	for _, body := range []string{"", "{", "null", `{"addresses":["a","b:1"]}`, `{"addresses":[]}`, `{"peer":"h3","gone":true}`, `{"peer":""}`, `{"addresses":{"a":1}}`} {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body string) {
		for _, path := range []string{connectPath, forgetPath, rmpeerPath} {
			d := &fakeDaemon{}
			w := httptest.NewRecorder()
			NewServer(d, quiet()).Handler.ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, strings.NewReader(body)))
			var e errorAnswer
			err := json.Unmarshal(w.Body.Bytes(), &e)
			switch {
			case w.Code == http.StatusBadRequest && (err != nil || e.Error == ""):
				t.Errorf("%s: refused with %q", path, w.Body)
			case w.Code == http.StatusBadRequest && d.got != nil:
				t.Errorf("%s: refused, and the daemon was asked %q", path, d.got)
			case w.Code != http.StatusBadRequest && w.Code != http.StatusOK:
				t.Errorf("%s: status %d", path, w.Code)
			case w.Code == http.StatusOK && !json.Valid(w.Body.Bytes()):
				t.Errorf("%s: answered %q", path, w.Body)
			case w.Code == http.StatusOK && (len(d.got) == 0 || len(d.got) > maxAddresses || path == rmpeerPath && d.got[0] == ""):
				t.Errorf("%s: the daemon was asked %q", path, d.got)
			}
		}
	})
}

// answering is a connection to a plugin that gives one answer.
type answering struct {
	status int
	body   []byte
}

func (a answering) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: a.status, Status: http.StatusText(a.status), Body: io.NopCloser(bytes.NewReader(a.body))}, nil
}

// FuzzAnswer: a status that is read can be written and read again, and what
// cannot be read is an error, as is every refusal.
func FuzzAnswer(f *testing.F) {
	whole, err := json.Marshal(full())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(http.StatusOK, whole)
	f.Add(http.StatusOK, []byte(`{"peers":[{"address":"[fe80::1%eth0]:1","rttNanoseconds":-1}],"ipam":[{"subnet":"10.0.0.0/33"}]}`))
	f.Add(http.StatusBadRequest, []byte(`{"error":"no"}`))
	f.Add(http.StatusTeapot, []byte(`{"error":""}`))
	f.Add(http.StatusOK, []byte("null"))
	f.Fuzz(func(t *testing.T, code int, body []byte) {
		ask := func(status int, body []byte) (Status, error) {
			c := NewClient("unused")
			c.http.Transport = answering{status, body}
			return c.Status(context.Background())
		}
		s, err := ask(code, body)
		if code != http.StatusOK && (err == nil || err.Error() == "" || errors.Is(err, ErrNotRunning)) {
			t.Fatalf("status %d gave %v", code, err)
		}
		if err != nil {
			return
		}
		again, err := json.Marshal(s)
		if err != nil {
			t.Fatalf("%+v was read and cannot be written: %v", s, err)
		}
		if same, err := ask(http.StatusOK, again); err != nil || !reflect.DeepEqual(withLists(same), withLists(s)) {
			t.Errorf("%+v became %+v, %v", s, same, err)
		}
	})
}
