package dns

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

func TestAnswers(t *testing.T) {
	const a, aaaa, ptr, all, mx = dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypePTR, dnsmessage.TypeALL, dnsmessage.TypeMX
	six := "1" + strings.Repeat(".0", 27) + ".0.0.d.f.ip6.arpa."
	s := server(town())
	for _, c := range []struct {
		name   string
		typ    dnsmessage.Type
		scopes []Scope
		want   string // empty: not known
	}{
		{"web.", a, []Scope{blue}, "Success 10.1.0.1 10.1.0.2"},
		{"WEB.", a, []Scope{blue}, "Success 10.1.0.1 10.1.0.2"},
		{"web.", aaaa, []Scope{blue}, "Success fd00::1"},
		{"web.", all, []Scope{blue}, "Success 10.1.0.1 10.1.0.2 fd00::1"},
		{"web.", mx, []Scope{blue}, "Success"},
		{"front.", aaaa, []Scope{blue}, "Success"}, // known, so that nobody else is asked
		{"web.weave.local.", a, []Scope{blue}, "Success 10.1.0.1 10.1.0.2"},
		{"web.Weave.LOCAL.", a, []Scope{blue}, "Success 10.1.0.1 10.1.0.2"},
		{"db.v1.", a, []Scope{blue}, "Success 10.1.0.9"},
		{"db.v1.weave.local.", a, []Scope{blue}, "Success 10.1.0.9"},
		{"v1.", a, []Scope{blue}, ""},
		{"secret.", a, []Scope{blue}, ""},
		{"secret.weave.local.", a, []Scope{blue}, "NameError"},
		{"secret.", a, nil, ""},
		{"secret.", a, []Scope{red}, "Success 10.2.0.1"},
		{"web.", a, []Scope{red}, "Success 10.2.0.2"},
		{"web.", a, []Scope{blue, red}, "Success 10.1.0.1 10.1.0.2 10.2.0.2"},
		{"web.weave.local.example.com.", a, []Scope{blue}, ""},
		{"webweave.local.", a, []Scope{blue}, ""},
		{"weave.local.", a, []Scope{blue}, "Success"},
		{"example.com.weave.local.", a, []Scope{blue}, "NameError"}, // so that those who search go on
		{"db.v1.example.com.", a, []Scope{blue}, ""},
		{"shop_web_1.", a, []Scope{blue}, "Success 10.1.0.7"},
		{"example.com.", a, []Scope{blue}, ""},
		{".", dnsmessage.TypeNS, []Scope{blue}, ""},
		{"2.0.1.10.in-addr.arpa.", ptr, []Scope{blue}, "Success front.weave.local. web.weave.local."},
		{"2.0.1.10.IN-ADDR.arpa.", ptr, []Scope{blue}, "Success front.weave.local. web.weave.local."},
		{"2.0.1.10.in-addr.arpa.", a, []Scope{blue}, "Success"},
		{"1.0.2.10.in-addr.arpa.", ptr, []Scope{blue}, ""}, // of another segment
		{six, ptr, []Scope{blue}, "Success web.weave.local."},
		{"x" + six[1:], ptr, []Scope{blue}, ""},
	} {
		t.Run(fmt.Sprint(c.name, c.typ, c.scopes), func(t *testing.T) {
			q, isQuery, whole := parse(query(t, c.name, c.typ, 0))
			if !isQuery || !whole {
				t.Fatal("not read")
			}
			found, known := s.find(q, c.scopes)
			if !known {
				if c.want != "" {
					t.Errorf("not known, want %q", c.want)
				}
				return
			}
			m := unpack(t, s.write(nil, q, found, maxMessage))
			if got := told(m); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
			if !m.Response || m.ID != 4711 || !m.RecursionDesired || !m.RecursionAvailable || !m.Authoritative || m.Truncated {
				t.Errorf("%+v", m.Header)
			}
			if len(m.Questions) != 1 || m.Questions[0].Name.String() != c.name {
				t.Errorf("the question came back as %+v", m.Questions)
			}
			for _, r := range m.Answers {
				if r.Header.TTL != 1 {
					t.Errorf("TTL %d", r.Header.TTL)
				}
			}
		})
	}
}

// Which address is told first changes, and where it is wished those of this host
// come before the others.
func TestOrderTurns(t *testing.T) {
	var table Table
	local := map[netip.Addr]bool{}
	for i, source := range []string{"here", "there"} {
		var all []Record
		for j := range 3 {
			r := Record{"s", "web", netip.AddrFrom4([4]byte{10, 0, byte(j), byte(i)}), source == "here"}
			local[r.Addr] = r.Local
			all = append(all, r)
		}
		table.Set(source, all)
	}
	s := server(&table)
	for _, localFirst := range []bool{false, true} {
		firsts := map[netip.Addr]int{}
		for range 60 {
			q, _, _ := parse(query(t, "web.", dnsmessage.TypeA, 0))
			a, _ := s.find(q, []Scope{{"s", localFirst}})
			firsts[a.addresses[0].Addr]++
			if len(a.addresses) != 6 {
				t.Fatalf("%d addresses", len(a.addresses))
			}
			for i, f := range a.addresses {
				if localFirst && local[f.Addr] != (i < 3) {
					t.Fatalf("not those of this host first: %v", a.addresses)
				}
			}
		}
		want := 6
		if localFirst {
			want = 3
		}
		if len(firsts) != want {
			t.Errorf("local first %v: %d addresses were first, want %d", localFirst, len(firsts), want)
		}
		for a, n := range firsts {
			if n != 60/want {
				t.Errorf("local first %v: %s was first %d times", localFirst, a, n)
			}
		}
	}
}

// A long answer is cut to what the asker takes, and says so; by TCP it is whole.
func TestTruncation(t *testing.T) {
	var table Table
	var all []Record
	for i := range 200 {
		all = append(all, Record{"s", "many", netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), false})
	}
	table.Set("h", all)
	s := server(&table)
	for _, c := range []struct{ size, limit int }{{0, 512}, {100, 512}, {800, 800}, {4096, ownUDP}, {65535, ownUDP}} {
		msg := query(t, "many.", dnsmessage.TypeA, c.size)
		q, _, _ := parse(msg)
		o := door{Server: s, Door: Door{Scopes: func() []Scope { return []Scope{{Segment: "s"}} }}}
		reply, _ := o.reply(nil, msg, false)
		m := unpack(t, reply)
		if len(reply) > c.limit || !m.Truncated || len(m.Answers) == 0 {
			t.Errorf("size %d: %d bytes, cut %v, %d answers", c.size, len(reply), m.Truncated, len(m.Answers))
		}
		if (q.edns != nil) != (len(m.Additionals) == 1) {
			t.Errorf("size %d: %d additional records", c.size, len(m.Additionals))
		}
		reply, _ = o.reply(nil, msg, true)
		if m = unpack(t, reply); m.Truncated || len(m.Answers) != 200 {
			t.Errorf("by TCP: cut %v, %d answers", m.Truncated, len(m.Answers))
		}
	}
}

func TestNewerEDNS(t *testing.T) {
	msg := query(t, "web.", dnsmessage.TypeA, 1232)
	msg[len(msg)-5] = 1 // the version, behind the extended code and before flags and length
	o := door{Server: server(town()), Door: Door{Scopes: func() []Scope { return []Scope{blue} }}}
	reply, _ := o.reply(nil, msg, false)
	var p dnsmessage.Parser
	h, err := p.Start(reply)
	if err != nil || p.SkipAllQuestions() != nil || p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		t.Fatal(err)
	}
	opt, err := p.AdditionalHeader()
	if err != nil || opt.ExtendedRCode(h.RCode) != badVersion {
		t.Errorf("code %v, %v", opt.ExtendedRCode(h.RCode), err)
	}
}

func FuzzQuery(f *testing.F) {
	for _, name := range []string{"web.", "web.weave.local.", "1.0.1.10.in-addr.arpa.", "x.y.z."} {
		f.Add(query(f, name, dnsmessage.TypeA, 0), false)
		f.Add(query(f, name, dnsmessage.TypeALL, 1400), true)
	}
	s := server(town())
	o := door{Server: s, Door: Door{Scopes: func() []Scope { return []Scope{blue} }}}
	f.Fuzz(func(t *testing.T, msg []byte, byTCP bool) {
		reply, pass := o.reply(nil, msg, byTCP)
		if pass != nil {
			t.Fatal("there is nobody to pass it to")
		}
		if len(reply) == 0 {
			if len(msg) >= headerLen && msg[2]&0x80 == 0 {
				t.Errorf("%x is not answered", msg)
			}
			return
		}
		if limit := len(reply) > ownUDP && !byTCP; limit || len(reply) > maxMessage {
			t.Errorf("%d bytes", len(reply))
		}
		m := unpack(t, reply)
		if !m.Response || reply[0] != msg[0] || reply[1] != msg[1] {
			t.Errorf("%x is answered with %x", msg, reply)
		}
		if len(m.Questions) == 0 && m.RCode != dnsmessage.RCodeFormatError {
			t.Errorf("without its question: %+v", m)
		}
		if strings.Contains(told(m), "10.2.") {
			t.Errorf("names of another segment: %s", told(m))
		}
	})
}

func FuzzReversed(f *testing.F) {
	f.Add("1.0.1.10.in-addr.arpa")
	f.Add("1" + strings.Repeat(".0", 27) + ".0.0.d.f.ip6.arpa")
	f.Fuzz(func(t *testing.T, name string) {
		a, ok := reversed(name)
		if !ok {
			return
		}
		if !a.IsValid() || a.Zone() != "" || a.Is4() != strings.HasSuffix(name, reverse4) {
			t.Errorf("%q is %v", name, a)
		}
	})
}
