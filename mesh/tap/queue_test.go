package tap

import (
	"encoding/binary"
	"maps"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"weave/mesh/run"
)

const (
	testFlows  = 40
	perFlow    = 3
	testQueues = 3
)

// flowFrame is the frame of that number of a UDP flow, there or back.
func flowFrame(flow uint16, number byte, back bool) []byte {
	from, to := []byte{10, 99, 0, 1}, []byte{10, 99, 0, 2}
	ports := binary.BigEndian.AppendUint16([]byte{0x17, 0x70}, flow)
	if back {
		from, to = to, from
		ports = slices.Concat(ports[2:], ports[:2])
	}
	ethernet := []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0}
	ip := slices.Concat([]byte{0x45, 0, 0, 29, 0, 0, 0x40, 0, 64, 17, 0, 0}, from, to)
	return slices.Concat(ethernet, ip, ports, []byte{0, 9, 0, 0, number})
}

// came is a frame that was read.
type came struct {
	queue int
	frame []byte
}

// listen reads all queues until the device is closed.
func (d *Device) listen() <-chan came {
	all := make(chan came, 2*testFlows*perFlow)
	for q := range d.Queues() {
		go func() {
			bufs, sizes := buffers(8)
			for {
				n, _, err := d.ReadBatch(q, bufs, sizes)
				if err != nil {
					return
				}
				for i := range n {
					all <- came{q, slices.Clone(bufs[i][run.VnetHdrLen:sizes[i]])}
				}
			}
		}()
	}
	return all
}

// queuesOfFlows has the kernel send some flows to a device, and returns the
// queue by which each of them came.
func queuesOfFlows(t *testing.T, ns namespace, name string, all <-chan came) map[uint16]int {
	t.Helper()
	var frames [][]byte
	for n := range byte(perFlow) {
		for flow := range uint16(testFlows) {
			frames = append(frames, flowFrame(flow, n, false))
		}
	}
	ns.putAll(t, name, frames)
	queues, next := map[uint16]int{}, map[uint16]byte{}
	for range testFlows * perFlow {
		c := <-all
		flow, number := binary.BigEndian.Uint16(c.frame[36:]), c.frame[42]
		if q, known := queues[flow]; known && q != c.queue {
			t.Errorf("flow %d came by queues %d and %d", flow, q, c.queue)
		}
		if number != next[flow] {
			t.Errorf("frame %d of flow %d came, want %d", number, flow, next[flow])
		}
		queues[flow], next[flow] = c.queue, number+1
	}
	return queues
}

// TestFlowsKeepTheirQueue: flows are spread over the queues, each comes by one,
// in order, and what is written does not move any.
func TestFlowsKeepTheirQueue(t *testing.T) {
	ns := newNamespace(t)
	d := ns.openQueues(t, "wvt0", testQueues)
	if d.Queues() != testQueues {
		t.Fatalf("%d queues, want %d", d.Queues(), testQueues)
	}
	all := d.listen()
	before := queuesOfFlows(t, ns, "wvt0", all)
	for q := range testQueues {
		if !slices.Contains(slices.Collect(maps.Values(before)), q) {
			t.Errorf("no flow came by queue %d: %v", q, before)
		}
	}
	for flow := range uint16(testFlows) {
		if err := d.Write(slices.Concat(make([]byte, run.VnetHdrLen), flowFrame(flow, 0, true))); err != nil {
			t.Fatal(err)
		}
	}
	if after := queuesOfFlows(t, ns, "wvt0", all); !maps.Equal(before, after) {
		t.Errorf("flows came by %v, and after answers by %v", before, after)
	}
}

// TestOtherNumberOfQueues: whatever an earlier process wanted, its link is taken
// over, with the queues that it can have.
func TestOtherNumberOfQueues(t *testing.T) {
	for _, tt := range []struct{ first, then, want int }{{1, 3, 1}, {3, 1, 1}, {3, 2, 2}, {2, 3, 3}} {
		ns := newNamespace(t)
		if err := ns.openQueues(t, "wvt0", tt.first).Close(); err != nil {
			t.Fatal(err)
		}
		index := ns.link(t, "wvt0").Attrs().Index
		d := ns.openQueues(t, "wvt0", tt.then)
		if d.Queues() != tt.want || ns.link(t, "wvt0").Attrs().Index != index {
			t.Errorf("%d queues, then %d wanted: there are %d, want %d on the same link", tt.first, tt.then, d.Queues(), tt.want)
		}
		queuesOfFlows(t, ns, "wvt0", d.listen())
	}
}

// TestNoQueueingDiscipline: none is in front of many queues.
func TestNoQueueingDiscipline(t *testing.T) {
	ns := newNamespace(t)
	for range 2 {
		d := ns.openQueues(t, "wvt0", testQueues)
		ns.do(t, func() error {
			list, err := netlink.QdiscList(ns.link(t, "wvt0"))
			for _, q := range list {
				if q.Type() != "noqueue" {
					t.Errorf("found a queueing discipline: %v", q)
				}
			}
			return err
		})
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
