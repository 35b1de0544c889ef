package mesh

import (
	"bytes"
	"encoding/binary"
	"reflect"
	"testing"
	"time"

	"weave/mesh/id"
)

// put takes a record in as Node.apply does.
func (x *index) put(kind string, owner id.PeerID, key string, value []byte) (err error) {
	switch kind {
	case kindSegment:
		err = x.setSegment(owner, key, value)
	case kindEndpoint:
		_, _, err = x.setEndpoint(owner, key, value)
	case kindFree:
		err = x.setFree(owner, key, value)
	case kindLinks:
		err = x.setLinks(owner, key, value)
	case kindHost:
		err = x.setHost(owner, key, value)
	}
	return err
}

// FuzzIndex has two peers publish two records each and withdraw them: nothing is
// left of any, and meanwhile each address has a holder.
func FuzzIndex(f *testing.F) {
	endpoint := []byte(`{"segment":"s","mac":"02:00:00:00:00:01","addrs":["10.0.0.1","10.0.0.1"],"bits":[24,24],"container":"web"}`)
	for i, value := range []string{`{"mtu":1400,"vni":7,"vxlan":true}`, string(endpoint), `{"free":18446744073709551615}`, `{"but":["x"]}`, `{"nat":"cone"}`} {
		f.Add(byte(i), "s", []byte(value), []byte(value))
		f.Add(byte(i), linksKey, []byte(value), endpoint)
		f.Add(byte(i), hostKey, []byte(value), []byte("null"))
	}
	f.Add(byte(1), "e", endpoint, bytes.ReplaceAll(endpoint, []byte("10.0.0.1"), []byte("10.0.0.2")))
	kinds := []string{kindSegment, kindEndpoint, kindFree, kindLinks, kindHost}
	f.Fuzz(func(t *testing.T, which byte, key string, first, second []byte) {
		kind := kinds[int(which)%len(kinds)]
		x := newIndex()
		peers := []id.PeerID{{1}, {2}}
		for _, value := range [][]byte{first, second} {
			for _, owner := range peers {
				_ = x.put(kind, owner, key, value) // what is refused must leave nothing, too
			}
		}
		for key, p := range x.segments {
			for a, holders := range p.holders {
				if len(holders) == 0 {
					t.Errorf("%s of segment %q is nobody's, and noted", a, key)
				}
			}
		}
		for _, e := range x.all() {
			for _, a := range e.Addrs {
				if got, ok := x.holder(e.Segment, a, id.PeerID{3}); !ok || got.Owner.Compare(e.Owner) > 0 {
					t.Errorf("%s is %+v's, the index says %+v", a, e, got)
				}
			}
		}
		for _, owner := range peers {
			if err := x.put(kind, owner, key, nil); err != nil {
				t.Fatal(err)
			}
		}
		if !reflect.DeepEqual(x, newIndex()) {
			t.Errorf("after all is withdrawn there is %+v", x)
		}
	})
}

// FuzzLoad starts from any state: it is refused, or what was read is there after
// the next start as well, and each run has a higher number than the one before.
func FuzzLoad(f *testing.F) {
	peer := id.PeerID{1}.String()
	f.Add(peer, []byte(`{"nickname":"h","candidates":["192.0.2.1:1"]}`), "h:1", []byte(`{"added":true}`), []byte{0, 0, 0, 0, 0, 0, 0, 9})
	f.Add("x", []byte(`{`), "h", []byte(`{"peer":"x"}`), []byte{1})
	f.Add(peer, []byte(`null`), "", []byte(`{"added":true,"peer":"`+peer+`"}`), []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, peer string, known []byte, seed string, added, run []byte) {
		s := newStore()
		s.buckets[bucketPeers] = map[string][]byte{peer: known}
		s.buckets[bucketSeeds] = map[string][]byte{seed: added}
		s.buckets[bucketMesh] = map[string][]byte{keyIncarnation: run}
		if n, err := nextIncarnation(s, time.Unix(0, 5)); err == nil {
			if again, err := nextIncarnation(s, time.Unix(0, 5)); err != nil || again <= n || n <= binary.BigEndian.Uint64(run) {
				t.Errorf("run %d after %x, then run %d, %v", n, run, again, err)
			}
		}
		if k, err := loadKnown(s, id.PeerID{9}); err == nil {
			for _, p := range k.list() {
				kp, _ := k.get(p)
				kp.Nickname += "x"
				if err := k.remember(p, kp); err != nil {
					t.Fatal(err)
				}
			}
			if again, err := loadKnown(s, id.PeerID{9}); err != nil || !reflect.DeepEqual(again.peers, k.peers) {
				t.Errorf("%+v became %+v, %v", k.peers, again, err)
			}
		}
		if list, err := loadSeeds(s, []string{"c:1"}); err == nil {
			again, err := loadSeeds(s, []string{"c:1"})
			if err != nil || !reflect.DeepEqual(again.snapshot(), list.snapshot()) {
				t.Fatalf("%+v became %+v, %v", list.snapshot(), again, err)
			}
			for _, x := range list.snapshot() {
				if _, _, err := splitSeed(x.Addr); err != nil {
					t.Errorf("seed %q: %v", x.Addr, err)
				}
			}
		}
	})
}
