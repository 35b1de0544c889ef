package engine

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// answering is a connection to an engine that gives one answer.
type answering struct {
	version string
	status  int
	body    string
}

func (a answering) RoundTrip(r *http.Request) (*http.Response, error) {
	resp := &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Api-Version": {a.version}}, Body: http.NoBody}
	if r.URL.Path != "/_ping" {
		resp.StatusCode, resp.Body = a.status, io.NopCloser(strings.NewReader(a.body))
	}
	return resp, nil
}

// FuzzAnswers: what the engine says of its networks is an error, which is no
// longer than it need be, or what the reconciler can compare with what it has.
func FuzzAnswers(f *testing.F) {
	f.Add("1.41", http.StatusOK, answer)
	f.Add("1.41", http.StatusOK, list)
	f.Add("1.24", http.StatusNotFound, `{"message":"network abc123 not found"}`)
	f.Add("1.", http.StatusOK, list)
	f.Add("1.41", http.StatusInternalServerError, strings.Repeat("x", 2*maxMessage))
	f.Add("1.41", http.StatusOK, `[{"Id":"abc123","IPAM":{"Config":[{"Subnet":"10.0.0.7/8","IPRange":"::/129","AuxiliaryAddresses":{"a":"::ffff:10.0.0.9","b":"fe80::1%eth0"}}]}}]`)
	f.Fuzz(func(t *testing.T, version string, status int, body string) {
		c := New("unused")
		c.http.Transport = answering{version, status, body}
		one, err := c.NetworkByID(context.Background(), "abc123")
		if err == nil {
			check(t, one)
			if one.ID != "abc123" || status != http.StatusOK {
				t.Errorf("asked for abc123, got %q with status %d", one.ID, status)
			}
		} else if n := len(err.Error()); n > maxMessage+len(version)*4+200 && !strings.Contains(err.Error(), "malformed") {
			t.Errorf("an error of %d bytes", n)
		}
		if status == http.StatusNotFound && versionForm.MatchString(version) && !errors.Is(err, ErrNotFound) {
			t.Errorf("status 404 gave %v", err)
		}
		all, err := c.Networks(context.Background())
		if err == nil && bytes.Equal(bytes.TrimSpace([]byte(body)), []byte("[]")) {
			t.Error("an engine without any network was believed")
		}
		for _, n := range all {
			check(t, n)
		}
	})
}

func check(t *testing.T, n Network) {
	for _, p := range n.IPAM.Pools {
		if !p.Subnet.IsValid() || p.Subnet != p.Subnet.Masked() || p.Range != p.Range.Masked() {
			t.Errorf("pool %v, range %v", p.Subnet, p.Range)
		}
		for name, a := range p.Auxiliary {
			if !a.IsValid() || a.Is4In6() || !p.Reserves(a) {
				t.Errorf("auxiliary address %q is %v", name, a)
			}
		}
		if p.Gateway.Is4In6() || p.Gateway.IsValid() && p.Gateway.IsUnspecified() {
			t.Errorf("gateway %v", p.Gateway)
		}
	}
	if !slices.IsSortedFunc(n.Endpoints, func(a, b Endpoint) int { return strings.Compare(a.ID, b.ID) }) {
		t.Errorf("endpoints %+v", n.Endpoints)
	}
	for _, e := range n.Endpoints {
		for _, a := range e.Addresses {
			if !a.IsValid() {
				t.Errorf("address %v", a)
			}
		}
	}
}
