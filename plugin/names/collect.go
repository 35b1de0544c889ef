package names

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"weave/driver"
	"weave/mesh"
	"weave/plugin/engine"
)

const (
	// relistEvery is how often the Engine is asked for all containers, in case that
	// an event got lost.
	relistEvery = time.Minute
	// What fails is tried again after retryFirst, later twice as long each time, up
	// to retryLast.
	retryFirst = 100 * time.Millisecond
	retryLast  = 10 * time.Second
	// followLast is retryLast of listening again: an engine that is back has started
	// containers.
	followLast = time.Second
	// patience is how long dockerd may be away before somebody is told: it restarts.
	patience = time.Minute
	// maxAsking is how many containers the Engine is asked about at once: it does
	// not answer for one that starts until it has.
	maxAsking = 8
	// maxEvents is how many events may wait. Of more, all containers are listed.
	maxEvents = 256
	// shortID is how much of an ID Docker shows, and resolves.
	shortID = 12
)

// collector asks the Engine what this host's containers are called. Its fields
// belong to run.
type collector struct {
	*Names
	events  chan string       // IDs of containers that have changed
	relist  chan struct{}     // buffered: all are to be listed
	answers chan answer       // of the Engine
	asking  map[string]bool   // containers; whether they changed again meanwhile
	todo    []string          // containers that wait to be asked about
	names   map[string]naming // by container
	listed  bool              // all have been, at least once
	unknown map[string]bool   // containers that the Engine did not tell of when it was asked
	due     time.Time         // when all are listed again
	full    bool              // there are more names than others take
}

// naming is the names of a container's endpoints, as notes.
type naming map[string][]byte

// answer is what the Engine tells of a container.
type answer struct {
	id   string
	what engine.Container
	err  error
}

// collect publishes the names of this host's containers until ctx ends.
func (n *Names) collect(ctx context.Context) {
	c := &collector{
		Names: n, events: make(chan string, maxEvents), relist: make(chan struct{}, 1), answers: make(chan answer, maxAsking),
		asking: map[string]bool{}, names: map[string]naming{}, unknown: map[string]bool{},
	}
	following := make(chan struct{})
	go func() {
		defer close(following)
		c.follow(ctx)
	}()
	c.run(ctx)
	<-following
	for len(c.asking) > 0 {
		delete(c.asking, (<-c.answers).id)
	}
}

// follow hands on the Engine's events. Whenever it begins to listen, all is listed
// anew: it cannot know what it missed.
func (c *collector) follow(ctx context.Context) {
	wait, since := retryFirst, time.Now()
	for ctx.Err() == nil {
		err := c.cfg.Engine.Events(ctx, func() {
			wait, since = retryFirst, time.Time{}
			c.cfg.Trouble(nil)
			c.askForAll()
		}, func(container string) {
			select {
			case c.events <- container:
			default:
				c.askForAll()
			}
		})
		if ctx.Err() != nil {
			return
		}
		if since.IsZero() {
			since = time.Now()
		}
		if time.Since(since) > patience {
			c.cfg.Trouble(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, followLast)
	}
}

func (c *collector) askForAll() {
	select {
	case c.relist <- struct{}{}:
	default: // it is due already
	}
}

func (c *collector) run(ctx context.Context) {
	again := time.NewTimer(relistEvery)
	defer again.Stop()
	plan := func(after time.Duration) {
		c.due = time.Now().Add(after)
		again.Reset(after)
	}
	plan(relistEvery)
	wait := retryFirst
	for {
		select {
		case <-ctx.Done():
			return
		case id := <-c.events:
			c.want(id)
		case a := <-c.answers:
			if !c.take(a) && time.Until(c.due) > retryLast { // never later than it was due
				plan(retryLast)
			}
		case <-again.C:
			c.askForAll()
		case <-c.relist:
			next := relistEvery
			if err := c.list(ctx); err != nil {
				c.cfg.Log.WithError(err).Debug("containers not listed")
				next, wait = wait, min(2*wait, retryLast)
			} else {
				wait = retryFirst
			}
			plan(next)
		}
		c.ask(ctx)
	}
}

// list wants to know of all containers on our networks, and forgets the others.
func (c *collector) list(ctx context.Context) error {
	all, err := c.cfg.Engine.Containers(ctx)
	if err != nil {
		return err
	}
	ours := c.networks()
	here := map[string]bool{}
	for _, x := range all {
		if slices.ContainsFunc(x.Attachments, func(a engine.Attachment) bool { return ours[a.Network] }) {
			here[x.ID] = true
			c.want(x.ID)
		}
	}
	c.listed = true
	gone := func(id string) bool { return !here[id] }
	maps.DeleteFunc(c.names, func(id string, _ naming) bool { return gone(id) })
	maps.DeleteFunc(c.unknown, func(id string, _ bool) bool { return gone(id) })
	if len(here) == 0 {
		c.publish(nil)
	}
	return nil
}

// networks are those of ours whose containers are to be found.
func (c *collector) networks() map[string]bool {
	ours := map[string]bool{}
	for _, x := range c.cfg.Driver.Networks() {
		if x.DNS != driver.DNSOff {
			ours[x.ID] = true
		}
	}
	return ours
}

func (c *collector) want(id string) {
	if _, busy := c.asking[id]; busy {
		c.asking[id] = true
	} else if !slices.Contains(c.todo, id) {
		c.todo = append(c.todo, id)
	}
}

// ask asks about the next containers. Each question ends within the time that the
// Engine's client gives it, and with ctx.
func (c *collector) ask(ctx context.Context) {
	for len(c.todo) > 0 && len(c.asking) < maxAsking {
		id := c.todo[0]
		c.todo = c.todo[1:]
		c.asking[id] = false
		go func() {
			what, err := c.cfg.Engine.Container(ctx, id)
			c.answers <- answer{id, what, err} // it has room for all who ask
		}()
	}
}

// take takes in what the Engine told. What it did not tell is asked again when all is
// listed the next time.
func (c *collector) take(a answer) (told bool) {
	changed := c.asking[a.id]
	delete(c.asking, a.id)
	delete(c.unknown, a.id)
	switch {
	case changed:
		c.want(a.id)
	case errors.Is(a.err, engine.ErrNoContainer):
		delete(c.names, a.id)
	case a.err != nil:
		c.cfg.Log.WithField("container", a.id).WithError(a.err).Debug("container's names not learned")
		c.unknown[a.id] = true
		return false
	default:
		if c.names[a.id] = c.namingOf(a.what); len(c.names[a.id]) == 0 {
			delete(c.names, a.id)
		}
	}
	c.publish(c.names[a.id])
	return true
}

// namingOf returns what a container is called on each of our networks.
func (c *collector) namingOf(x engine.Container) naming {
	ours, out := c.networks(), naming{}
	for _, a := range x.Attachments {
		all := []string{x.Name}
		all = append(all, a.Aliases...)
		all = append(all, x.Hostname)
		if x.Domainname != "" {
			all = append(all, x.Hostname+"."+x.Domainname)
		}
		all = append(all, x.ID[:min(len(x.ID), shortID)])
		if value := encodeNames(canonicalAll(all, c.cfg.Domain)); value != nil && ours[a.Network] {
			out[a.Endpoint] = value
		}
	}
	return out
}

// publish tells what was learned of a container, and, once all are known, what else has
// changed. It keeps that on disk: after the next start it is told before the Engine was
// asked. While not all are known, as when the Engine fails to tell of one, those of the
// run before keep their names.
func (c *collector) publish(learned naming) {
	changes := map[string][]byte{}
	differs := func(endpoint string, value []byte) {
		if !bytes.Equal(c.told[endpoint], value) {
			changes[endpoint] = value
		}
	}
	for endpoint, value := range learned {
		differs(endpoint, value)
	}
	if c.listed && len(c.todo)+len(c.asking)+len(c.unknown) == 0 {
		want := map[string]bool{}
		for _, of := range c.names {
			for endpoint, value := range of {
				want[endpoint] = true
				differs(endpoint, value)
			}
		}
		for endpoint := range c.told {
			if !want[endpoint] {
				changes[endpoint] = nil
			}
		}
	}
	c.tell(changes)
	if len(changes) == 0 {
		return
	}
	if err := c.cfg.Store.Apply(bucket, changes); err != nil {
		c.cfg.Log.WithError(err).Warn("names of containers are not on disk: after a restart they are found later")
	}
}

// tell publishes changes, and takes those out that are not. What goes makes room for
// what comes.
func (c *collector) tell(changes map[string][]byte) {
	for endpoint, value := range changes {
		if value == nil {
			_ = c.cfg.Mesh.Publish(topicNames, endpoint, nil) // cannot fail
			delete(c.told, endpoint)
		}
	}
	full := false
	for endpoint, value := range changes {
		if value == nil {
			continue
		}
		if c.told[endpoint] == nil && len(c.told) >= mesh.MaxNotes {
			full = true
			delete(changes, endpoint)
		} else if err := c.cfg.Mesh.Publish(topicNames, endpoint, value); err != nil {
			c.cfg.Log.WithField("endpoint", endpoint).WithError(err).Warn("container's names are not told")
			delete(changes, endpoint)
		} else {
			c.told[endpoint] = value
		}
	}
	if full && !c.full {
		c.cfg.Log.WithField("most", mesh.MaxNotes).Warn("too many containers: other hosts are not told the names of all")
	}
	c.full = full || c.full && len(c.told) >= mesh.MaxNotes
}
