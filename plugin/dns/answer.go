package dns

import (
	"slices"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	headerLen = 12
	// minUDP is what a message takes by UDP at most, unless the asker says that it
	// takes more (RFC 1035, 4.2.1); ownUDP is what we take and send (RFC 9715).
	minUDP, ownUDP = 512, 1232
	maxMessage     = 1<<16 - 1 // by TCP
	// maxAnswers bounds an answer; of more addresses others are told each time.
	maxAnswers = 256
)

// question is a message that asks for one thing, as far as that could be read.
type question struct {
	header dnsmessage.Header
	dnsmessage.Question
	name string // in lower case, without the dot at the end
	edns *edns
}

// edns is what the OPT record of a question says (RFC 6891).
type edns struct {
	size    int
	version int
	do      bool
}

// parse reads a message. whole is false if it is not one question that can be
// read; isQuery, if it must not even be answered.
func parse(msg []byte) (q question, isQuery, whole bool) {
	var p dnsmessage.Parser
	var err error
	if q.header, err = p.Start(msg); err != nil || q.header.Response {
		return q, false, false
	}
	if q.Question, err = p.Question(); err != nil {
		return q, true, false
	}
	q.name = strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
	if _, err = p.Question(); err != dnsmessage.ErrSectionDone {
		return q, true, false
	}
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return q, true, false
	}
	for {
		h, err := p.AdditionalHeader()
		if err == dnsmessage.ErrSectionDone {
			return q, true, true
		}
		if err != nil || p.SkipAdditional() != nil {
			return q, true, false
		}
		if h.Type == dnsmessage.TypeOPT && q.edns == nil {
			q.edns = &edns{int(h.Class), int(h.TTL >> 16 & 0xff), h.DNSSECAllowed()}
		}
	}
}

// size is how long an answer by UDP the asker takes.
func (q question) size() int {
	if q.edns == nil {
		return minUDP
	}
	return max(q.edns.size, minUDP)
}

// answer is what is known of a question.
type answer struct {
	code      dnsmessage.RCode
	addresses []found // of the type that was asked for, in the order in which they are told
	names     []string
}

// find answers a question out of the table. known is false if others are to be
// asked.
func (s *Server) find(q question, scopes []Scope) (a answer, known bool) {
	if q.header.OpCode != 0 || q.Class != dnsmessage.ClassINET && q.Class != dnsmessage.ClassANY {
		return a, false
	}
	if addr, ok := reversed(q.name); ok {
		names := s.cfg.Table.Names(scopes, addr)
		if q.Type == dnsmessage.TypePTR || q.Type == dnsmessage.TypeALL {
			a.names = names
		}
		return a, len(names) > 0
	}
	name, inDomain := strings.CutSuffix(q.name, "."+s.domain)
	all := s.cfg.Table.find(scopes, name)
	switch {
	case len(all) > 0:
	case q.name == s.domain: // it is there, with nothing but what is below it (RFC 8020)
		return a, true
	default:
		a.code = dnsmessage.RCodeNameError
		return a, inDomain
	}
	for _, f := range all { // a name that is known has nothing but addresses: others would mix theirs in
		wanted := dnsmessage.TypeA
		if f.Addr.Is6() {
			wanted = dnsmessage.TypeAAAA
		}
		if q.Type == wanted || q.Type == dnsmessage.TypeALL {
			a.addresses = append(a.addresses, f)
		}
	}
	s.turn(a.addresses)
	return a, true
}

// turn has another address be the first each time, of those that come first and
// of the others.
func (s *Server) turn(all []found) {
	slices.SortStableFunc(all, func(a, b found) int {
		switch {
		case a.first == b.first:
			return 0
		case a.first:
			return -1
		}
		return 1
	})
	others := slices.IndexFunc(all, func(f found) bool { return !f.first })
	if others < 0 {
		others = len(all)
	}
	n := s.turns.Add(1)
	rotate(all[:others], n)
	rotate(all[others:], n)
}

func rotate(all []found, n uint64) {
	if len(all) > 1 {
		by := int(n % uint64(len(all)))
		slices.Reverse(all[:by])
		slices.Reverse(all[by:])
		slices.Reverse(all)
	}
}

// write appends a message to out, of at most limit bytes: an answer that is
// longer is cut, and says so (RFC 2181, 9).
func (s *Server) write(out []byte, q question, a answer, limit int) []byte {
	records := min(len(a.addresses)+len(a.names), maxAnswers)
	for {
		msg, err := s.build(out, q, a, records)
		if err == nil && len(msg)-len(out) <= limit {
			return msg
		}
		if records == 0 {
			return out
		}
		records /= 2
	}
}

// build appends a message with the first so many records.
func (s *Server) build(out []byte, q question, a answer, records int) ([]byte, error) {
	all := min(len(a.addresses)+len(a.names), maxAnswers)
	h := dnsmessage.Header{
		ID: q.header.ID, Response: true, OpCode: q.header.OpCode, Authoritative: a.code == 0 || a.code == dnsmessage.RCodeNameError,
		Truncated: records < all, RecursionDesired: q.header.RecursionDesired, RecursionAvailable: true,
		CheckingDisabled: q.header.CheckingDisabled, RCode: a.code & 0xf,
	}
	b := dnsmessage.NewBuilder(out, h)
	b.EnableCompression()
	err := b.StartQuestions()
	if err == nil && q.Name.Length > 0 {
		err = b.Question(q.Question)
	}
	if err == nil {
		err = b.StartAnswers()
	}
	for i := 0; err == nil && i < records; i++ {
		err = s.append(&b, q, a, i)
	}
	if err == nil && q.edns != nil {
		err = appendOPT(&b, q, a.code)
	}
	if err != nil {
		return out, err
	}
	return b.Finish()
}

func (s *Server) append(b *dnsmessage.Builder, q question, a answer, i int) error {
	h := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: s.ttl}
	if i >= len(a.addresses) {
		name, err := dnsmessage.NewName(a.names[i-len(a.addresses)] + "." + s.domain + ".")
		if err != nil {
			return err
		}
		return b.PTRResource(h, dnsmessage.PTRResource{PTR: name})
	}
	if addr := a.addresses[i].Addr; addr.Is6() {
		return b.AAAAResource(h, dnsmessage.AAAAResource{AAAA: addr.As16()})
	} else {
		return b.AResource(h, dnsmessage.AResource{A: addr.As4()})
	}
}

func appendOPT(b *dnsmessage.Builder, q question, code dnsmessage.RCode) error {
	if err := b.StartAdditionals(); err != nil {
		return err
	}
	var h dnsmessage.ResourceHeader
	if err := h.SetEDNS0(ownUDP, code, q.edns.do); err != nil {
		return err
	}
	return b.OPTResource(h, dnsmessage.OPTResource{})
}

// refusal appends a message that says that there is no answer, and why.
func (s *Server) refusal(out []byte, q question, code dnsmessage.RCode) []byte {
	return s.write(out, q, answer{code: code}, minUDP)
}
