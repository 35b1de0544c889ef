package control

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func scrape(d Daemon) (int, string) {
	answer := httptest.NewRecorder()
	newMetrics(d).ServeHTTP(answer, httptest.NewRequest(http.MethodGet, metricsPath, nil))
	return answer.Code, answer.Body.String()
}

func TestMetrics(t *testing.T) {
	d := &fakeDaemon{status: Status{
		Version: "1", Peer: "me", Nickname: "h1",
		Problems: []Problem{{Severity: Error}, {Severity: Error}},
		Dropped:  map[string]uint64{"replayed": 5, "forged": 0},
		Peers: []Peer{
			{ID: "p", Nickname: "h2", State: Up, RTT: 2 * time.Millisecond, Loss: 0.25, Pings: 80, Sent: 7, Frames: VXLAN},
			{ID: "q", Nickname: "odd\"\nname\xff", State: Down},
		},
		Endpoints: []Endpoint{{Local: true}, {}, {}},
		DNS:       &DNS{Sandboxes: 2, Questions: Questions{Answered: 9, Passed: 4, Failed: 1}},
		IPAM:      []Pool{{Subnet: netip.MustParsePrefix("10.40.0.0/16"), Leased: 3, Conflicts: []string{"one"}}},
	}}
	code, text := scrape(d)
	if code != http.StatusOK {
		t.Fatalf("status %d: %s", code, text)
	}
	for _, want := range []string{
		`weave_info{nickname="h1",peer="me",version="1"} 1`,
		`weave_problems{severity="error"} 2`,
		`weave_problems{severity="warning"} 0`,
		`weave_dropped_datagrams_total{reason="replayed"} 5`,
		`weave_dropped_datagrams_total{reason="forged"} 0`,
		`weave_peer_up{nickname="h2",peer="p"} 1`,
		`weave_peer_rtt_seconds{nickname="h2",peer="p"} 0.002`,
		`weave_peer_loss_ratio{nickname="h2",peer="p"} 0.25`,
		`weave_peer_vxlan{nickname="h2",peer="p"} 1`,
		`weave_peer_sent_bytes_total{nickname="h2",peer="p"} 7`,
		`weave_endpoints{place="remote"} 2`,
		`weave_dns_sandboxes 2`,
		`weave_dns_questions_total{outcome="answered"} 9`,
		`weave_dns_questions_total{outcome="passed"} 4`,
		`weave_dns_questions_total{outcome="failed"} 1`,
		`weave_dns_questions_total{outcome="dropped"} 0`,
		`weave_ipam_leased_addresses{pool="10.40.0.0/16"} 3`,
		`weave_ipam_clashes{pool="10.40.0.0/16"} 1`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no line %s in\n%s", want, text)
		}
	}
	if strings.Contains(text, `weave_peer_loss_ratio{nickname="odd`) {
		t.Error("a loss that nobody knows")
	}
	if code, _ := scrape(&fakeDaemon{err: errors.New("broken")}); code == http.StatusOK {
		t.Error("a status that cannot be had is no metric")
	}
}
