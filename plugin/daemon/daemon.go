// Package daemon builds the parts of the plugin, joins them, and owns their
// start and stop. It decides nothing about networks, addresses or peers: that
// is driver, ipam and mesh.
//
// Goroutines of Run, each ended by the context and waited for:
//
//	sockets     Docker's calls on the plugin sockets, the control API
//	work        builds the parts, and then runs them:
//	  node        mesh.Node.Run
//	  allocator   ipam.Allocator.Run
//	  restore     driver.Restore, until all is back
//	  firewall    driver.EnsureFirewall, every few seconds
//	  disk        store.Store.Check, every second
//	  removals    what other hosts' removal, or this one's, asks of us
//	  departures  removes hosts that asked for it, once they are gone
//	  reconcile   names of containers, and what Docker deleted unseen
//	  routes      this host's routes, told to the others
//	  names       who is called what, of all hosts
//	  sandboxes   which ones of this host are to be answered in
//	  keeper      sandbox.Keeper.Run: one goroutine and more for each of them
//	  others      answers names on an address of this host, if one is set
//	  everywhere  networks of other hosts, if they are to be on this one too
package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"

	"weave/plugin/config"
	"weave/plugin/control"
	"weave/plugin/dockerapi"
	"weave/plugin/sock"
)

// retryEvery is the pause before something that failed at start is tried again:
// dockerd disables a plugin for good that exits, so it never does.
const retryEvery = 2 * time.Second

// daemon is the running plugin.
type daemon struct {
	// Set by Run and never changed.
	version  string
	cfg      config.Config
	problems []config.Problem
	log      *logrus.Entry
	gate     *gate
	started  time.Time

	parts atomic.Pointer[parts] // nil until they are built

	mu      sync.Mutex
	trouble map[string]error // what fails now, by the task that fails
}

// Run serves Docker and the command line until ctx ends. Settings are read by
// lookup, normally os.LookupEnv. What is wrong with them, or with the host, is
// told to those who ask: only a plugin socket that cannot be made is an error.
func Run(ctx context.Context, version string, lookup func(string) (string, bool)) error {
	cfg, problems := config.FromEnv(lookup)
	logger := logrus.New()
	logger.SetLevel(cfg.LogLevel)
	d := &daemon{
		version: version, cfg: cfg, problems: problems, log: logrus.NewEntry(logger),
		gate: newGate(), started: time.Now(), trouble: map[string]error{},
	}
	d.log.WithFields(logrus.Fields{"version": version, "state": cfg.State}).Info("weave starts")
	g, ctx := errgroup.WithContext(ctx)
	if err := d.serve(ctx, g); err != nil {
		return err
	}
	g.Go(func() error { return d.work(ctx) })
	err := g.Wait()
	d.log.Info("weave ends")
	return err
}

// serve listens before anything slow is done.
func (d *daemon) serve(ctx context.Context, g *errgroup.Group) error {
	handler := dockerapi.NewHandler(d.gate, d.log)
	paths := d.cfg.PluginSockets()
	own, err := sock.Listen(paths[0])
	if err != nil {
		return fmt.Errorf("listen for dockerd: %w", err)
	}
	g.Go(func() error { return sock.Serve(ctx, dockerapi.NewServer(handler), own) })
	for _, path := range paths[1:] {
		g.Go(func() error {
			return d.serveOn(ctx, path, func() *http.Server { return dockerapi.NewServer(handler) })
		})
	}
	g.Go(func() error {
		return d.serveOn(ctx, d.cfg.ControlSocket(), func() *http.Server { return control.NewServer(d, d.log) })
	})
	return nil
}

// serveOn serves on a socket of the host. The plugin that this one replaces may
// still hold it, so it is tried until it can be had.
func (d *daemon) serveOn(ctx context.Context, path string, server func() *http.Server) error {
	var l net.Listener
	err := d.persist(ctx, "listen on "+path, func() (err error) {
		l, err = sock.Listen(path)
		return err
	})
	if err != nil {
		return nil //nolint:nilerr // ctx ended before the socket could be had
	}
	return sock.Serve(ctx, server(), l)
}

// persist tries a task until it succeeds or ctx ends, and keeps its error for
// the status meanwhile.
func (d *daemon) persist(ctx context.Context, task string, do func() error) error {
	for {
		err := do()
		d.note(task, err)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retryEvery):
		}
	}
}

// note keeps the outcome of a task for the status, and logs what is new.
func (d *daemon) note(task string, err error) {
	d.mu.Lock()
	old := d.trouble[task]
	if err == nil {
		delete(d.trouble, task)
	} else {
		d.trouble[task] = err
	}
	d.mu.Unlock()
	switch {
	case err != nil && (old == nil || old.Error() != err.Error()):
		d.log.WithField("task", task).WithError(err).Error("task failed: it is tried again")
	case err == nil && old != nil:
		d.log.WithField("task", task).Info("task succeeded after all")
	}
}

// work builds the parts and runs them.
func (d *daemon) work(ctx context.Context) error {
	if len(d.problems) > 0 {
		errs := make([]error, len(d.problems))
		for i, p := range d.problems {
			errs[i] = p
			d.log.WithError(p).Error("bad setting: no work is done")
		}
		d.gate.refuse(errors.Join(errs...))
		<-ctx.Done()
		return nil
	}
	for {
		err := d.buildAndRun(ctx)
		if !errors.Is(err, errRemoved) {
			return err
		}
		d.log.Warn("this host was removed from the cluster while it was away: it joins as a new peer")
	}
}

// buildAndRun builds the parts and runs them until ctx ends, one of them fails,
// or this host has to become another peer: errRemoved.
func (d *daemon) buildAndRun(ctx context.Context) error {
	var p *parts
	err := d.persist(ctx, "start", func() (err error) {
		if p, err = build(d.version, d.cfg, d.log); err == nil {
			if p.naming, err = d.newNaming(p); err != nil {
				p.close()
			}
		}
		if err != nil {
			d.gate.trouble(fmt.Errorf("%w: %s", err, wayOut(err)))
		}
		return err
	})
	if err != nil {
		return nil //nolint:nilerr // ctx ended before the parts could be built
	}
	defer p.close()
	d.parts.Store(p)
	defer d.parts.Store(nil)
	err = d.run(ctx, p)
	d.gate.shut()
	if errors.Is(err, errRemoved) {
		err = errors.Join(err, retire(p.store, p.identity))
	}
	return err
}

// run runs the parts until ctx ends.
func (d *daemon) run(ctx context.Context, p *parts) error {
	if err := p.kernel.EnsureSysctls(); err != nil {
		d.log.WithError(err).Warn("system settings stay as they are")
	}
	if err := p.kernel.DeleteRetired(); err != nil {
		d.log.WithError(err).Warn("links of containers that are gone stay")
	}
	// A new run replaces all that the one before announced, some seconds later: what
	// is still here is announced again before the first peer hears of this run.
	const restore = "restore networks"
	restored := p.driver.Restore(ctx)
	d.note(restore, restored)
	keeper := d.newKeeper(p)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.node.Run(ctx) })
	g.Go(func() error { return p.allocator.Run(ctx) })
	if restored != nil {
		g.Go(func() error {
			_ = d.persist(ctx, restore, func() error { return p.driver.Restore(ctx) })
			return nil
		})
	}
	g.Go(func() error { return d.keepFirewall(ctx, p) })
	g.Go(func() error { return d.watchDisk(ctx, p) })
	g.Go(func() error { return p.watchRemovals(ctx, d.log) })
	g.Go(func() error { return p.departures.run(ctx) })
	g.Go(func() error { return newReconciler(p, d.log).run(ctx) })
	g.Go(func() error { return p.tellRoutes(ctx, d.cfg.IPAllocRange, d.log) })
	g.Go(func() error { return p.naming.names.Run(ctx) })
	g.Go(func() error { return p.naming.watch(ctx) })
	g.Go(func() error { return p.naming.keeper.Run(ctx) })
	g.Go(func() error { return d.answerOthers(ctx, p.naming) })
	if keeper != nil {
		g.Go(func() error { return keeper.Run(ctx) })
	}
	d.gate.open(dockerapi.Drivers{Network: p.driver, IPAM: newPools(p.allocator, p.driver, p.engine)})
	return g.Wait()
}

// firewallEvery is how often the firewall is looked at: Docker and others
// rebuild their chains.
const firewallEvery = 5 * time.Second

func (d *daemon) keepFirewall(ctx context.Context, p *parts) error {
	tick := time.NewTicker(firewallEvery)
	defer tick.Stop()
	for {
		blocked, err := p.driver.EnsureFirewall()
		d.note("keep the firewall", err)
		p.blocked.Store(&blocked)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// diskEvery is how often the disk is looked at, once it has refused a write.
const diskEvery = time.Second

// watchDisk has the status say that nothing new can be promised.
func (d *daemon) watchDisk(ctx context.Context, p *parts) error {
	tick := time.NewTicker(diskEvery)
	defer tick.Stop()
	for {
		d.note("keep the state", p.store.Check())
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
