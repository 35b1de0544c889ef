package tunnel

import (
	"bytes"
	"runtime"
	"sync"
	"testing"
	"time"

	"weave/mesh/id"
	"weave/mesh/run"
)

// twoQueues is two hosts with containers A and B, and a second queue for frames
// from A.
func twoQueues(t testing.TB) (hosts []*host, devices []*fakeDevice) {
	hosts, devices = newHosts(t, 2), []*fakeDevice{newTwoQueues(), newFakeDevice()}
	for i, h := range hosts {
		h.attach(key, devices[i])
		h.tunnel.SetMembers(key, []id.PeerID{hosts[1-i].id})
	}
	announce(key, hosts[0], macA, ipA, hosts...)
	announce(key, hosts[1], macB, ipB, hosts...)
	return hosts, devices
}

// TestQueuesAreOneSegment: what comes by any queue is carried, counted, and
// bound by the segment's limits.
func TestQueuesAreOneSegment(t *testing.T) {
	hosts, devices := twoQueues(t)
	frame, unknown := plain(macB, macA, "by either"), plain(macX, macA, "nobody")
	question := arpRequest(broadcast, macA, ipA, ipB)
	for _, queue := range []chan [][]byte{devices[0].batches, devices[0].second} {
		queue <- [][]byte{frame, question, unknown}
		devices[1].wantFrames(t, frame)
	}
	devices[0].settle(t)
	s := hosts[0].stats()
	if want := 2 * uint64(len(frame)-run.VnetHdrLen); s.Out.Frames != 2 || s.Out.Bytes != want || s.Answered != 2 {
		t.Errorf("counted %+v", s)
	}
	wantDrops(t, s.Out, map[string]uint64{"unknown destination": 2})

	stranger := arpRequest(broadcast, macA, ipA, "10.32.9.9")
	for range questionBurst {
		devices[0].batches <- [][]byte{stranger}
		devices[0].second <- [][]byte{stranger}
	}
	devices[0].settle(t)
	if n := len(devices[1].written); n != questionBurst {
		t.Errorf("%d questions passed, want %d", n, questionBurst)
	}
}

// TestRunsStayWholeWhileOthersSeal: two queues send runs to one peer at the same
// time, and each run is written at once.
func TestRunsStayWholeWhileOthersSeal(t *testing.T) {
	_, devices := twoQueues(t)
	const each = 500
	var senders sync.WaitGroup
	for i, queue := range []chan [][]byte{devices[0].batches, devices[0].second} {
		frame := tcpRun(bytes.Repeat([]byte{byte(i)}, 40_000), 1346, 0)
		senders.Go(func() {
			for range each {
				queue <- [][]byte{frame}
			}
		})
	}
	for n := range 2 * each {
		if got, want := len(devices[1].next(t)), run.VnetHdrLen+54+40_000; got != want {
			t.Fatalf("frame %d has %d bytes, want %d", n, got, want)
		}
	}
	senders.Wait()
}

// TestQueuesWithoutASession: all frames that wait for a seal are counted.
func TestQueuesWithoutASession(t *testing.T) {
	hosts, devices := twoQueues(t)
	hosts[0].links[hosts[1].id].set(func(l *fakeLink) { l.down = true })
	devices[0].second <- [][]byte{plain(macB, macA, "lost"), tcpRun(make([]byte, 3000), 1000, 0)}
	devices[0].settle(t)
	wantDrops(t, hosts[0].stats().Out, map[string]uint64{"no session": 4})
	if sends := hosts[0].links[hosts[1].id].taken(); len(sends) > 0 {
		t.Errorf("sent %v", sends)
	}
}

// TestAnyQueueThatFailsIsReported, and the other works on.
func TestAnyQueueThatFailsIsReported(t *testing.T) {
	hosts, devices := twoQueues(t)
	close(devices[0].second)
	frame := plain(macB, macA, "by the other")
	devices[0].batches <- [][]byte{frame}
	devices[1].wantFrames(t, frame)
	for end := time.Now().Add(patience); hosts[0].stats().Failure == ""; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal("no failure in the stats")
		}
	}
}
