package cli

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"weave/plugin/attach"
)

// runArgs are the arguments of weave run.
type runArgs struct {
	socket  string
	help    bool
	json    bool
	wants   []string
	create  []string // for docker create: flags, image, command
	cidFile string

	detachKeys string

	detach, interactive, attaches, noProxy bool

	ended bool // "--" says that there are no more addresses
}

// The flags of docker run and docker create which take no value: all others take
// one, so that the image is found behind them.
var (
	boolFlags = map[string]bool{
		"detach": true, "disable-content-trust": true, "help": true, "init": true, "interactive": true, "no-healthcheck": true,
		"oom-kill-disable": true, "privileged": true, "publish-all": true, "quiet": true, "read-only": true, "rm": true,
		"sig-proxy": true, "tty": true, "use-api-socket": true,
	}
	shortFlags = map[byte]string{'a': "attach", 'd': "detach", 'i': "interactive", 'P': "publish-all", 'q': "quiet", 't': "tty"}
)

// parseRun tells weave's own arguments, which come first, from Docker's.
func parseRun(args []string) (*runArgs, error) {
	r := &runArgs{}
	for len(args) > 0 {
		word := args[0]
		switch {
		case word == "--":
			r.ended = true
			return r, r.parseDocker(args[1:])
		case word == "--help", word == "-h" && len(args) == 1:
			r.help = true
			return r, nil
		case word == "--socket" && len(args) > 1:
			r.socket, args = args[1], args[1:]
		case strings.HasPrefix(word, "--socket="):
			r.socket = strings.TrimPrefix(word, "--socket=")
		case word == "--json":
			r.json = true
		case attach.IsWant(word):
			r.wants = append(r.wants, word)
		default:
			return r, r.parseDocker(args)
		}
		args = args[1:]
	}
	return r, r.parseDocker(nil)
}

// parseDocker reads the flags of docker run up to the image, and leaves out those
// that docker create does not know.
func (r *runArgs) parseDocker(args []string) error {
	for len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' {
		word := args[0]
		args = args[1:]
		if word == "--" {
			r.create, r.ended = append(r.create, word), true
			break
		}
		taken, err := r.flag(word, args)
		if err != nil {
			return err
		}
		args = args[taken:]
	}
	switch {
	case len(args) == 0:
		return errors.New("give the image, as in: weave run 192.168.0.2/24 -d nginx")
	case attach.IsWant(args[0]) && !r.ended:
		return fmt.Errorf("%.80q stands where the image belongs: addresses come before Docker's flags", args[0])
	case r.json && !r.detach:
		return errors.New("--json is for a container in the background, with -d: in the foreground what is printed is the container's")
	case r.detach && r.attaches:
		return errors.New("--attach and --detach exclude each other")
	case r.detach && r.interactive:
		// Else standard input would end with the first who attaches.
		r.create = append([]string{"--attach=stdout", "--attach=stderr"}, r.create...)
	}
	r.create = append(r.create, args...)
	return nil
}

// flag reads one word with flags, and tells how many of the words behind it
// belong to it.
func (r *runArgs) flag(word string, behind []string) (taken int, err error) {
	if long, ok := strings.CutPrefix(word, "--"); ok {
		name, value, has := strings.Cut(long, "=")
		if !boolFlags[name] && !has {
			if len(behind) == 0 {
				return 0, fmt.Errorf("flag %.80s needs a value", word)
			}
			value, taken = behind[0], 1
		}
		keep, err := r.use(name, value)
		if keep {
			r.create = append(append(r.create, word), behind[:taken]...)
		}
		return taken, err
	}
	return r.cluster(word[1:], behind)
}

// cluster reads short flags that are written as one word, as -dit or -p80:80.
func (r *runArgs) cluster(letters string, behind []string) (taken int, err error) {
	kept := "-"
	for i := 0; i < len(letters); i++ {
		name, rest := shortFlags[letters[i]], letters[i+1:]
		if boolFlags[name] && !strings.HasPrefix(rest, "=") {
			keep, err := r.use(name, "")
			if err != nil {
				return 0, err
			}
			if keep {
				kept += letters[i : i+1]
			}
			continue
		}
		value := strings.TrimPrefix(rest, "=")
		if rest == "" {
			if len(behind) == 0 {
				return 0, fmt.Errorf("flag -%s needs a value", letters[i:])
			}
			value, taken = behind[0], 1
		}
		keep, err := r.use(name, value)
		if err != nil {
			return 0, err
		}
		if keep {
			kept += letters[i:]
		}
		break
	}
	if kept != "-" {
		r.create = append(append(r.create, kept), behind[:taken]...)
	}
	return taken, nil
}

// use notes a flag with its value, and tells whether docker create shall have it.
func (r *runArgs) use(name, value string) (keep bool, err error) {
	on := true
	if boolFlags[name] && value != "" {
		if on, err = strconv.ParseBool(value); err != nil {
			return false, fmt.Errorf("flag --%s=%.80q: want true or false", name, value)
		}
	}
	switch name {
	case "detach":
		r.detach = on
		return false, nil
	case "sig-proxy":
		r.noProxy = !on
		return false, nil
	case "detach-keys":
		r.detachKeys = value
		return false, nil
	case "interactive":
		r.interactive = on
	case "attach":
		r.attaches = true
	case "cidfile":
		r.cidFile = value
	case "net", "network":
		if err := attach.CheckMode(value); err != nil {
			return false, fmt.Errorf("--network %s: %w", value, err)
		}
	}
	return true, nil
}
