package udp

import "sync/atomic"

// Stats are a socket's counters since Listen, and what offload it uses.
type Stats struct {
	GSO, GRO bool // one call sends, one receives, many datagrams

	SentDatagrams, SentBytes, SentCalls uint64 // payload bytes; system calls
	SendErrors                          uint64 // calls of Write that failed

	ReceivedDatagrams, ReceivedBytes, ReceivedTrains, ReceivedCalls uint64
	Truncated                                                       uint64 // trains that did not fit their buffer
}

type sendCounters struct {
	datagrams, bytes, calls, errors atomic.Uint64
}

type recvCounters struct {
	datagrams, bytes, trains, calls, truncated atomic.Uint64
}

// Stats returns the counters. They are read one after the other, not at one
// instant.
func (c *Conn) Stats() Stats {
	return Stats{
		GSO:               c.gso.Load(),
		GRO:               c.gro,
		SentDatagrams:     c.sent.datagrams.Load(),
		SentBytes:         c.sent.bytes.Load(),
		SentCalls:         c.sent.calls.Load(),
		SendErrors:        c.sent.errors.Load(),
		ReceivedDatagrams: c.recvd.datagrams.Load(),
		ReceivedBytes:     c.recvd.bytes.Load(),
		ReceivedTrains:    c.recvd.trains.Load(),
		ReceivedCalls:     c.recvd.calls.Load(),
		Truncated:         c.recvd.truncated.Load(),
	}
}
