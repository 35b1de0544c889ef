package scale

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// kindNames is the kind of notes that tell the names of containers.
const kindNames = "note:names"

// TestNamesOfAThousandContainers holds that when fifty containers start at once on each
// of twenty hosts, all hosts know their endpoints and names within two seconds.
func TestNamesOfAThousandContainers(t *testing.T) {
	const hosts, each, limit = 20, 50, 2 * time.Second
	synctest.Test(t, func(t *testing.T) {
		w, err := newWorld(DefaultPlan(hosts))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		defer w.end(cancel)
		w.net.start(ctx)
		var r Result
		if err := w.boot(ctx, &r); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		var telling sync.WaitGroup
		for _, p := range w.peers {
			telling.Go(func() {
				for n := range each {
					key, record := endpoint(p.index, n, 1, true)
					p.tell(kindEndpoint, key, record)
					p.tell(kindNames, key, fmt.Appendf(nil, `["project_service_%d","service","%.12s"]`, n, key))
				}
			})
		}
		telling.Wait()
		if err := w.wait(ctx, func() bool { return w.agree(hosts) }); err != nil {
			t.Fatal(err)
		}
		took := time.Since(began)
		if took == 0 {
			t.Error("nothing was told over the network")
		}
		for _, p := range w.peers {
			if n, e := len(p.records.table.All(kindNames)), len(p.records.table.All(kindEndpoint)); n != hosts*each || e != hosts*(each+w.plan.Endpoints) {
				t.Errorf("host %d knows %d names, %d endpoints", p.index, n, e)
			}
		}
		t.Logf("%d containers are known everywhere after %s", hosts*each, took.Round(time.Millisecond))
		if took > limit {
			t.Errorf("%d containers are known everywhere after %s, want %s", hosts*each, took, limit)
		}
	})
}
