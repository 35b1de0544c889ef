package transport

import (
	"time"

	"weave/mesh/fragment"
	"weave/mesh/wire"
)

// What is longer than the path takes is cut as a whole, sealed, and put together
// before it is opened at the other end of the link. So what goes through relays is
// cut anew on each link that needs it.

func newRoom() any {
	b := make([]byte, 0, fragment.Room)
	return &b
}

// shorten notes that the path does not take datagrams of that size, and reports
// whether shorter ones are left to try.
func (l *Link) shorten(size int) bool {
	if !l.mtu.lower(size, l.t.since(time.Now())) {
		return false
	}
	l.t.kick() // to search anew
	return true
}

// sendFragments is send by UDP for datagrams that are longer than the path takes.
func (l *Link) sendFragments(buf []byte, size int, to hop) error {
	room := l.t.rooms.Get().(*[]byte)
	defer l.t.rooms.Put(room)
	for {
		limit := int(l.mtu.limit.Load())
		err := l.t.writeFragments(*room, buf, size, limit, to)
		if !tooLong(err) || !l.shorten(limit) {
			return err
		}
	}
}

// writeFragments sends fragments in trains: those of equal datagrams are equal.
func (t *Transport) writeFragments(out, buf []byte, size, limit int, to hop) error {
	each := 0 // bytes of the fragments in out
	for len(buf) > 0 {
		d := buf[:min(size, len(buf))]
		buf = buf[len(d):]
		count, n := 1, len(d)
		if n > limit { // else it is the last, and shorter
			count, n = fragment.Layout(n, limit)
		}
		if len(out) > 0 && (n != each || len(out)+count*n > cap(out)) {
			if err := t.conn.Write(out, each, to.addr); err != nil {
				return err
			}
			out = out[:0]
		}
		each = n
		if count == 1 {
			out = append(out, d...)
		} else {
			out = fragment.Append(out, d, count, n)
		}
	}
	return t.conn.Write(out, each, to.addr)
}

// fragment takes one. Only the other end of a path sends fragments by it; others
// would have to guess a session's index, too.
func (r *receiver) fragment(outer wire.Header, d []byte) {
	t := r.t
	e := t.session(outer)
	if e == nil {
		return
	}
	if path := e.link.path.Load(); !r.from.udp() || path == nil || *path != r.from {
		t.drops.add(dropStray)
		return
	}
	h, piece, err := wire.ParseFragment(d)
	if err != nil {
		t.drops.add(dropMalformed)
		return
	}
	whole, dropped, err := r.joiner.Add(h, piece, r.now)
	if dropped > 0 {
		t.drops.addN(dropIncomplete, dropped)
	}
	if err != nil {
		t.drops.add(dropMalformed)
		return
	}
	if whole == nil {
		return
	}
	inside, err := wire.ParseHeader(whole)
	if err != nil || inside.Type != wire.TypeSealed || inside.Index != h.Index {
		t.drops.add(dropMalformed)
		return
	}
	r.sealed(inside, whole)
}
