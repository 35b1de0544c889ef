package managed

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"weave/plugin/config"
)

// Request is what a launch is asked for.
type Request struct {
	Set Settings // in the place of what was set; the rest is kept
	// Password, if there is one, goes into a file in the state folder that only
	// root may read: everybody who may ask Docker reads a plugin's settings.
	Password *string
	Step     func(what string) // told what is being done; nil: nobody is
}

// Outcome is what a launch did.
type Outcome int

// The outcomes.
const (
	Unchanged Outcome = iota // it runs already, made of this binary, with these settings
	Created
	Replaced // by one made of this binary, perhaps with other settings as well
	Changed  // other settings
	Started  // it was disabled
)

// Launch sees to it that the plugin is there, made of the running binary, with
// the settings wanted, and enabled. What is wanted is checked before anything is
// changed; where a later step fails, what was there before is back, but for a
// plugin that was removed to be replaced: its settings are kept for the next
// Launch.
func (p *Plugin) Launch(ctx context.Context, r Request) (Outcome, error) {
	l := launch{Plugin: p, step: r.Step}
	if l.step == nil {
		l.step = func(string) {}
	}
	if err := l.plan(ctx, r); err != nil {
		return Unchanged, err
	}
	defer l.archive.close()
	ctx, cancel := uninterrupted(ctx)
	defer cancel()
	change := len(l.old.difference(l.want)) > 0 || l.password.changes()
	switch {
	case !l.was.There:
		return Created, l.create(ctx)
	case l.was.binary != l.archive.sum:
		return Replaced, l.replace(ctx)
	case change:
		return Changed, l.change(ctx)
	case !l.was.Enabled:
		l.step("Starting the plugin")
		return Started, errors.Join(p.enable(ctx), p.forget())
	}
	return Unchanged, p.forget()
}

// launch is one run of Launch.
type launch struct {
	*Plugin
	step      func(string)
	was       State
	old, want Settings // as the engine has them; with defaults
	password  password
	archive   *archive
}

// plan finds out what there is and what is to be, and changes nothing.
func (l *launch) plan(ctx context.Context, r Request) (err error) {
	if _, err := os.Stat(l.tun); err != nil {
		return fmt.Errorf("%w: %w", ErrNoTUN, err)
	}
	if l.was, err = l.State(ctx); err != nil {
		return err
	}
	base, err := l.savedSettings()
	if err != nil {
		return err
	}
	if base == nil {
		base = l.was.settings
	}
	r = r.tidy()
	l.old, l.want = l.was.settings.with(nil), base.with(r.Set)
	if err := l.want.check(r.Password); err != nil {
		return fmt.Errorf("nothing was changed: %w", err)
	}
	if l.password, err = openPassword(l.want.stateDir(), r.Password); err != nil {
		return err
	}
	if l.archive, err = openArchive(l.binary); err != nil {
		return err
	}
	if l.was.binary != l.archive.sum {
		if err := l.checkRoom(ctx); err != nil {
			l.archive.close()
			return err
		}
	}
	return nil
}

// checkRoom refuses to make a plugin that Docker's disk does not take: by then
// the old one would have been removed. Docker keeps it packed and unpacked.
func (l *launch) checkRoom(ctx context.Context) error {
	answer, err := l.engine.Info(ctx, client.InfoOptions{})
	if err != nil {
		return fmt.Errorf("ask the Docker Engine where it keeps plugins: %w", err)
	}
	dir, need := answer.Info.DockerRootDir, uint64(2*l.archive.size)
	free, err := l.free(dir)
	if err != nil || free >= need {
		return nil //nolint:nilerr // Docker will say so if there is too little
	}
	return fmt.Errorf("nothing was changed: the plugin takes %d MB of Docker's disk, and %d MB are free in %s: make room, as by docker image prune", need>>20, free>>20, dir)
}

// tidy moves a password out of the settings, and drops the other of the two
// places that it may be in.
func (r Request) tidy() Request {
	set := Settings{}
	maps.Copy(set, r.Set)
	if direct := set[config.Password]; direct != "" && r.Password == nil {
		r.Password = &direct
	}
	_, file := set[config.PasswordFile]
	switch {
	case r.Password != nil:
		set[config.Password], set[config.PasswordFile] = "", PasswordFile
	case file:
		set[config.Password] = ""
	}
	r.Set = set
	return r
}

// create makes a plugin where there is none, or leaves none.
func (l *launch) create(ctx context.Context) error {
	err := l.build(ctx)
	if err == nil {
		return l.forget()
	}
	_, undo := l.engine.PluginRemove(ctx, Name, client.PluginRemoveOptions{Force: true})
	if isNotFound(undo) {
		undo = nil
	}
	return errors.Join(fmt.Errorf("the plugin is not installed: %w", err), undo, l.password.restore())
}

// replace removes the plugin and makes another one: that is how Docker upgrades
// one that was not pulled. Containers keep their interfaces meanwhile, and the
// state is on the host's disk.
func (l *launch) replace(ctx context.Context) error {
	if err := l.save(l.want); err != nil {
		return err
	}
	l.step("Removing the old plugin; its settings are kept")
	if err := l.remove(ctx, l.was); err != nil {
		return errors.Join(err, l.forget())
	}
	if err := l.build(ctx); err != nil {
		return fmt.Errorf("the old plugin is removed, and the new one does not run: %w; its settings are kept, so `weave launch` goes on from here", err)
	}
	return l.forget()
}

// build makes the plugin with the settings wanted, and enables it.
func (l *launch) build(ctx context.Context) error {
	l.step("Making the plugin")
	if err := l.password.write(); err != nil { // first: a launch that goes on from here does not know it
		return err
	}
	stream := l.archive.stream()
	_, err := l.engine.PluginCreate(ctx, stream, client.PluginCreateOptions{RepoName: Name})
	if err = errors.Join(err, stream.Close()); err != nil {
		return fmt.Errorf("create plugin %s: %w", Name, err)
	}
	if err := l.set(ctx, Settings{}.with(nil).difference(l.want)); err != nil {
		return err
	}
	l.step("Starting the plugin")
	return l.enable(ctx)
}

// change gives the plugin other settings, or what it had.
func (l *launch) change(ctx context.Context) error {
	l.step("Giving the plugin its new settings")
	if l.was.Enabled {
		if err := l.disable(ctx); err != nil {
			return err
		}
	}
	err := l.set(ctx, l.old.difference(l.want))
	if err == nil {
		err = l.password.write()
	}
	if err == nil {
		err = l.enable(ctx)
	}
	if err == nil {
		return l.forget()
	}
	undo := errors.Join(l.set(ctx, l.want.difference(l.old)), l.password.restore())
	if l.was.Enabled {
		undo = errors.Join(undo, l.enable(ctx))
	}
	if undo != nil {
		return fmt.Errorf("%w; the plugin is disabled: %w", err, undo)
	}
	return fmt.Errorf("%w; the plugin is as it was before", err)
}

func (l *launch) set(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if _, err := l.engine.PluginSet(ctx, Name, client.PluginSetOptions{Args: args}); err != nil {
		names := make([]string, len(args)) // and no values: one may be a password
		for i, arg := range args {
			names[i], _, _ = strings.Cut(arg, "=")
		}
		return fmt.Errorf("set %s of plugin %s: %w", strings.Join(names, ", "), Name, err)
	}
	return nil
}

func isNotFound(err error) bool { return errdefs.IsNotFound(err) }
