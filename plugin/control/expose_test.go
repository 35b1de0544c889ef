package control

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func exposed() Exposed {
	return Exposed{
		Address: netip.MustParsePrefix("10.32.0.1/16"), Segment: "10.32.0.0/16", Network: "net", Bridge: "wv0123", MAC: "06:00:00:00:00:01",
		Announced: true, Masquerade: true, Exports: []Forward{{"tcp", 80, netip.MustParseAddrPort("10.32.0.5:8080")}}, Imports: []Forward{},
	}
}

func (d *fakeDaemon) Expose(_ context.Context, r ExposeRequest) ([]Exposed, error) {
	d.got = []string{fmt.Sprint(r)}
	return []Exposed{exposed()}, d.err
}

func (d *fakeDaemon) Hide(_ context.Context, targets []Target) ([]Exposed, error) {
	d.got = []string{fmt.Sprint(targets)}
	return []Exposed{exposed()}, d.err
}

func TestExpose(t *testing.T) {
	d := &fakeDaemon{}
	c := serve(t, d)
	target := Target{netip.MustParsePrefix("10.32.0.0/16"), netip.MustParseAddr("10.32.0.1")}
	r := ExposeRequest{Targets: []Target{target, {Subnet: target.Subnet}}, Masquerade: true, Exports: exposed().Exports}
	got, err := c.Expose(context.Background(), r)
	if err != nil || !reflect.DeepEqual(got, []Exposed{exposed()}) || d.got[0] != fmt.Sprint(r) {
		t.Errorf("got %+v, %v, asked %q", got, err, d.got)
	}
	got, err = c.Hide(context.Background(), []Target{target})
	if err != nil || len(got) != 1 || d.got[0] != "[10.32.0.1/16]" {
		t.Errorf("got %+v, %v, asked %q", got, err, d.got)
	}
	if _, err = c.Hide(context.Background(), nil); err != nil || d.got[0] != "[]" {
		t.Errorf("all: %v, asked %q", err, d.got)
	}
	d.err = errors.New("address in use")
	if _, err := c.Expose(context.Background(), r); err == nil || err.Error() != "address in use" {
		t.Errorf("got %v", err)
	}
}

func TestExposeRefuses(t *testing.T) {
	d := &fakeDaemon{}
	c := serve(t, d)
	for body, want := range map[string]string{
		`{`: "malformed",
		`{"targets":[{"subnet":"10.32.0.0/16"}]}{}`:                "more than one value",
		`{"targets":[{"subnet":"10.32.0.0/16"}],"firewall":"off"}`: "older than the command, which asks for what it does not know (json: unknown field \"firewall\"): `weave launch` upgrades it",
		`{"targets":[]}`:                          "no address is named",
		`{"targets":[{}]}`:                        "subnet",
		`{"targets":[{"subnet":"10.32.0.1/16"}]}`: "subnet",
		`{"targets":[{"subnet":"10.32.0.0/16","address":"10.33.0.1"}]}`:                                    "outside subnet",
		`{"targets":[{"subnet":"fe80::/64","address":"fe80::1%eth0"}]}`:                                    "outside subnet",
		`{"targets":[` + strings.Repeat(`{"subnet":"10.32.0.0/16"},`, 256) + `{"subnet":"10.32.0.0/16"}]}`: "257 addresses",
		`{"targets":[{"subnet":"10.32.0.0/16"}],"imports":[` + strings.Repeat(`{},`, 256) + `{}]}`:         "more than 256",
		`{"targets":["` + strings.Repeat("x", maxRequest) + `"]}`:                                          "malformed",
	} {
		err := c.call(context.Background(), http.MethodPost, exposePath, []byte(body), &[]Exposed{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.100s: %v, want %s", body, err, want)
		}
	}
	err := c.call(context.Background(), http.MethodPost, hidePath, []byte(`{"targets":[{}]}`), &[]Exposed{})
	if err == nil || !strings.Contains(err.Error(), "subnet") {
		t.Errorf("hide: %v", err)
	}
	if d.got != nil {
		t.Errorf("the daemon was asked %q", d.got)
	}
}
