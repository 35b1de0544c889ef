package mesh

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"weave/mesh/id"
	"weave/mesh/state"
)

// kindNote begins the kind of a record whose value this package does not read; its
// topic follows.
const kindNote = "note:"

// MaxNotes is how many notes of one peer under one topic count, the first by their
// keys.
const MaxNotes = 4096

// MaxNote is the length of the longest note, in bytes.
const MaxNote = state.MaxValue

// Note is what a host publishes for its like on other hosts: bytes under a topic
// and a key. Whoever has the password can publish any.
type Note struct {
	Owner id.PeerID
	Key   string
	Value []byte // read only
}

// Publish publishes a note of this host, in place of the one that it has under the
// topic and key; nil takes that back. It goes some seconds after the next process has
// begun, unless that publishes it again.
func (n *Node) Publish(topic, key string, value []byte) error {
	n.publish.Lock()
	defer n.publish.Unlock()
	if value == nil {
		n.remove(kindNote+topic, key)
		return nil
	}
	if err := n.set(kindNote+topic, key, value); err != nil {
		return fmt.Errorf("publish %s %.64q: %w", topic, key, err)
	}
	return nil
}

// Notes lists the notes of all hosts, this one's too, in the order of keys and
// owners. Those of a host that is down count, until it is removed and its
// containers are known to be gone.
func (n *Node) Notes(topic string) []Note {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []Note
	of := map[id.PeerID]int{}
	for _, r := range n.records.All(kindNote + topic) {
		if n.index.isGone(r.Owner) || of[r.Owner] == MaxNotes {
			continue
		}
		of[r.Owner]++
		out = append(out, Note{r.Owner, r.Key, r.Value})
	}
	slices.SortFunc(out, func(a, b Note) int { return cmp.Or(strings.Compare(a.Key, b.Key), a.Owner.Compare(b.Owner)) })
	return out
}
