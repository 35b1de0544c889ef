package control

import (
	"context"
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const metricsPath = "/metrics"

// metrics tells Prometheus what the status says, asked anew at each scrape.
type metrics struct{ daemon Daemon }

// newMetrics returns the handler of metricsPath.
func newMetrics(d Daemon) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(metrics{d})
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
}

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("weave_"+name, help, labels, nil)
}

var (
	descInfo      = describe("info", "Always 1; the labels tell what runs.", "version", "peer", "nickname")
	descStarted   = describe("start_time_seconds", "When the plugin was started, in Unix time.")
	descProblems  = describe("problems", "What weave status says is wrong, by severity.", "severity")
	descRefused   = describe("refused_addresses", "Addresses that were not let in lately, or did not let us in.")
	descDropped   = describe("dropped_datagrams_total", "Datagrams between hosts, and streams, that were dropped, by reason.", "reason")
	descUp        = describe("peer_up", "Whether another host answers.", "peer", "nickname")
	descRTT       = describe("peer_rtt_seconds", "Round trip to another host.", "peer", "nickname")
	descLoss      = describe("peer_loss_ratio", "Share of the latest pings to another host without an answer, on the path in use.", "peer", "nickname")
	descVXLAN     = describe("peer_vxlan", "Whether containers' frames to another host go by the kernel's VXLAN.", "peer", "nickname")
	descSent      = describe("peer_sent_bytes_total", "UDP payload sent to another host.", "peer", "nickname")
	descReceived  = describe("peer_received_bytes_total", "UDP payload received from another host.", "peer", "nickname")
	descEndpoints = describe("endpoints", "Endpoints of containers, on this host and on others.", "place")
	descOwned     = describe("ipam_owned_addresses", "Addresses of a pool that this host owns.", "pool")
	descLeased    = describe("ipam_leased_addresses", "Addresses of a pool that containers of this host have.", "pool")
	descFree      = describe("ipam_free_addresses", "Addresses of a pool that this host can lease without asking.", "pool")
	descQuestions = describe("dns_questions_total", "Questions for names: answered here, passed on and answered by others, failed there, or dropped.", "outcome")
	descAnswering = describe("dns_sandboxes", "Containers of this host in which names are answered.")
	descClashes   = describe("ipam_clashes", "Addresses held here that another host's container has, or had while the one here has not restarted.", "pool")
)

// Describe implements prometheus.Collector. It sends nothing: which metrics
// there are depends on the status.
func (metrics) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (m metrics) Collect(out chan<- prometheus.Metric) {
	s, err := m.daemon.Status(context.Background())
	if err != nil {
		out <- prometheus.NewInvalidMetric(descInfo, err)
		return
	}
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	gauge(descInfo, 1, s.Version, s.Peer, strings.ToValidUTF8(s.Nickname, "?"))
	gauge(descStarted, float64(s.Started.UnixMilli())/1000)
	for severity, n := range s.severities() {
		gauge(descProblems, float64(n), string(severity))
	}
	gauge(descRefused, float64(len(s.Refusals)))
	for reason, n := range s.Dropped {
		out <- prometheus.MustNewConstMetric(descDropped, prometheus.CounterValue, float64(n), reason)
	}
	for _, p := range s.Peers {
		up, vxlan := 0.0, 0.0
		if p.State == Up {
			up = 1
		}
		if p.Frames == VXLAN {
			vxlan = 1
		}
		name := strings.ToValidUTF8(p.Nickname, "?") // others choose theirs
		gauge(descUp, up, p.ID, name)
		gauge(descRTT, p.RTT.Seconds(), p.ID, name)
		if p.Pings > 0 {
			gauge(descLoss, p.Loss, p.ID, name)
		}
		gauge(descVXLAN, vxlan, p.ID, name)
		out <- prometheus.MustNewConstMetric(descSent, prometheus.CounterValue, float64(p.Sent), p.ID, name)
		out <- prometheus.MustNewConstMetric(descReceived, prometheus.CounterValue, float64(p.Received), p.ID, name)
	}
	local, remote := s.endpointCounts()
	gauge(descEndpoints, float64(local), "local")
	gauge(descEndpoints, float64(remote), "remote")
	if s.DNS != nil {
		gauge(descAnswering, float64(s.DNS.Sandboxes))
		q := s.DNS.Questions
		for outcome, n := range map[string]uint64{"answered": q.Answered, "passed": q.Passed, "failed": q.Failed, "dropped": q.Dropped} {
			out <- prometheus.MustNewConstMetric(descQuestions, prometheus.CounterValue, float64(n), outcome)
		}
	}
	for _, p := range s.IPAM {
		pool := p.Subnet.String()
		gauge(descOwned, float64(p.Owned), pool)
		gauge(descLeased, float64(p.Leased), pool)
		gauge(descFree, float64(p.Free), pool)
		gauge(descClashes, float64(len(p.Conflicts)), pool)
	}
}

func (s Status) severities() map[Severity]int {
	out := map[Severity]int{Error: 0, Warning: 0}
	for _, p := range s.Problems {
		out[p.Severity]++
	}
	return out
}

func (s Status) endpointCounts() (local, remote int) {
	for _, e := range s.Endpoints {
		if e.Local {
			local++
		} else {
			remote++
		}
	}
	return local, remote
}
