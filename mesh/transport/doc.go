// Package transport carries items and streams between peers that know each
// other by ID. It keeps a session with every peer it has candidates for, over
// one port, UDP and TCP, and accepts nothing that is not sealed under a
// session's keys. It does not decide who is a member of the cluster, does not
// look into frames or gossip, does not find the ways between peers (Config.Next
// tells), and does not retry a lost item.
//
// Goroutines of Run:
//
//	receive   ReadBatch -> session by receiver index -> Open in place -> items
//	          -> Config.Frames or Config.Packet -> Frames.Flush at the end of
//	          the batch. Handshake messages with a right MAC go to control.
//	control   handshakes, and all that time brings: resends, pings, rekeying,
//	          expiry. The only one to call Config.PeerUp.
//	pipes     like receive, for what comes by TCP; one at a time with it
//	accept    waits for inbound streams; a goroutine for each of them does the
//	          handshake and calls Config.Stream
//
// A peer's way to a session, as the initiator and as the responder:
//
//	attempt: message 1 to all candidates -> message 2 came: message 3 sent,
//	         session in the table -> first authentic datagram: confirmed
//	pending: message 1 came, message 2 sent -> message 3 came: confirmed, and
//	         a keepalive confirms it to the initiator
//
// Datagrams of a session go directly, by UDP or TCP, or through other peers: see
// path.go for which, and pipe.go and relay.go for how. Streams alike:
// callback.go and relaystream.go. What a path by UDP does not take goes in fragments:
// mtu.go and fragments.go.
//
// What is sent to a peer is sealed under the session that was confirmed last;
// older ones go on opening what arrives until they have been silent for a
// while. So both sides may start a handshake at the same time, and a restarted
// peer replaces its lost session at once.
//
// Locks: Transport.mu guards peers, attempts, pendings and the making of
// sessions. It is never held while a callback runs. The hot path (Link.Seal,
// Link.Send, the opening of datagrams) takes no lock of this package.
package transport
