package transport

import "sync/atomic"

// drop is a reason for dropping what arrived, or was to be sent.
type drop int

const (
	dropMalformed drop = iota
	dropVersion
	dropUnknownSession
	dropForged
	dropReplay
	dropPassword
	dropRate
	dropBusy
	dropHandshake
	dropNoHandler
	dropSend
	dropNoRoute
	dropHops
	dropStray
	dropIncomplete
	dropCount // how many there are
)

var dropNames = [dropCount]string{
	dropMalformed:      "malformed",
	dropVersion:        "other version",
	dropUnknownSession: "unknown session",
	dropForged:         "forged",
	dropReplay:         "replayed",
	dropPassword:       "wrong password",
	dropRate:           "rate limit",
	dropBusy:           "busy",
	dropHandshake:      "handshake failed",
	dropNoHandler:      "no handler",
	dropSend:           "send failed",
	dropNoRoute:        "no way on",
	dropHops:           "too many hops",
	dropStray:          "fragment from elsewhere",
	dropIncomplete:     "fragments missing",
}

// drops counts. Its methods are safe for concurrent use.
type drops [dropCount]atomic.Uint64

func (d *drops) add(reason drop) { d.addN(reason, 1) }

func (d *drops) addN(reason drop, n int) { d[reason].Add(uint64(n)) }

// Drops returns how many datagrams, items and inbound streams were dropped
// since New, by every reason there is.
func (t *Transport) Drops() map[string]uint64 {
	out := map[string]uint64{}
	for reason, name := range dropNames {
		out[name] = t.drops[reason].Load()
	}
	return out
}
