package fdb

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weave/mesh/id"
)

// model is a second, deliberately dumb table: lists that are searched whole.
type model struct {
	endpoints []Endpoint // in the order they were set
	learned   []modelEntry
}

type modelEntry struct {
	mac  MAC
	at   Place
	seen time.Time
}

func (m *model) set(e Endpoint) {
	for _, o := range m.endpoints {
		if o.At == e.At && o.ID == e.ID && o.MAC == e.MAC && slices.Equal(o.IPs, e.IPs) {
			return
		}
	}
	m.remove(e.At, e.ID)
	m.endpoints = append(m.endpoints, e)
	m.forget(e.MAC)
}

func (m *model) remove(at Place, name string) {
	m.endpoints = slices.DeleteFunc(m.endpoints, func(e Endpoint) bool { return e.At == at && e.ID == name })
}

func (m *model) forget(mac MAC) {
	m.learned = slices.DeleteFunc(m.learned, func(e modelEntry) bool { return e.mac == mac })
}

func (m *model) holder(match func(Endpoint) bool) (Endpoint, bool) {
	var found Endpoint
	ok := false
	for _, e := range m.endpoints {
		if match(e) && (!ok || !found.At.Local) {
			found, ok = e, true
		}
	}
	return found, ok
}

func (m *model) lookup(mac MAC, now time.Time) (Place, bool) {
	if e, ok := m.holder(func(e Endpoint) bool { return e.MAC == mac }); ok {
		return e.At, true
	}
	for _, e := range m.learned {
		if e.mac == mac && now.Sub(e.seen) < MaxAge {
			return e.at, true
		}
	}
	return Place{}, false
}

func (m *model) learn(mac MAC, from Place, now time.Time) Verdict {
	announced, here, there := false, false, false
	for _, e := range m.endpoints {
		if e.MAC == mac {
			announced = true
			here = here || e.At.Local
			there = there || e.At == from
		}
	}
	if announced {
		if there && (from.Local || !here) {
			return Accept
		}
		return Refuse
	}
	for _, e := range m.learned {
		if e.mac != mac {
			continue
		}
		if e.at.Local && !from.Local && now.Sub(e.seen) < holdLocal {
			return Refuse
		}
		if e.at == from && now.Sub(e.seen) < refreshAfter {
			return Accept
		}
	}
	m.forget(mac)
	m.learned = append(m.learned, modelEntry{mac, from, now})
	return Accept
}

func TestTableIsTheModel(t *testing.T) {
	places := []Place{Here(), At(id.PeerID{1}), At(id.PeerID{2})}
	macs := []MAC{numbered(1), numbered(2), numbered(3)}
	ips := []netip.Addr{ip1, ip1.Next(), ip2}
	rapid.Check(t, func(t *rapid.T) {
		table, dumb, now := New(), &model{}, start
		place := rapid.SampledFrom(places)
		mac := rapid.SampledFrom(macs)
		name := rapid.SampledFrom([]string{"x", "y"})
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				e := endpoint(place.Draw(t, "at"), name.Draw(t, "id"), mac.Draw(t, "mac"),
					rapid.SliceOfNDistinct(rapid.SampledFrom(ips), 0, 2, rapid.ID).Draw(t, "ips")...)
				table.Set(e)
				dumb.set(e)
			},
			"remove": func(t *rapid.T) {
				at, n := place.Draw(t, "at"), name.Draw(t, "id")
				table.Remove(at, n)
				dumb.remove(at, n)
			},
			"learn": func(t *rapid.T) {
				m, from := mac.Draw(t, "mac"), place.Draw(t, "from")
				if got, want := table.Learn(m, from, now), dumb.learn(m, from, now); got != want {
					t.Fatalf("Learn(%v, %v) = %v, want %v", m, from, got, want)
				}
			},
			"wait": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.Int64Range(0, int64(MaxAge)).Draw(t, "wait")))
			},
			"": func(t *rapid.T) {
				for _, m := range macs {
					got, ok := table.Lookup(m, now)
					if want, wantOK := dumb.lookup(m, now); got != want || ok != wantOK {
						t.Fatalf("Lookup(%v) = %v, %v, want %v, %v", m, got, ok, want, wantOK)
					}
				}
				for _, ip := range ips {
					mac, at, ok := table.LookupIP(ip)
					want, wantOK := dumb.holder(func(e Endpoint) bool { return slices.Contains(e.IPs, ip) })
					if mac != want.MAC || at != want.At || ok != wantOK {
						t.Fatalf("LookupIP(%v) = %v, %v, %v, want %v", ip, mac, at, ok, want)
					}
				}
			},
		})
	})
}
