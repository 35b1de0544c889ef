// Command demo brings up two Docker hosts on this machine and shows, command by
// command, what a person types to join them by one network, and what comes
// back. The hosts stay until `demo down`.
//
//	demo up [LAB]     make the hosts and show
//	demo down [LAB]   remove them
//	demo sweep        remove labs that killed test runs left behind
//
// LAB is a name for several demos at once. It proves nothing: that is the task
// of package e2e.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"weave/test/dockerlab"
)

// labName does not come from netlab.UniqueName: the demo outlives its maker.
const labName = "wvdemo"

const usage = "usage: demo up|down|sweep [LAB]"

const (
	plain = "\x1b[0m"
	bold  = "\x1b[1m"
	blue  = "\x1b[1;34m"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	name := labName
	switch len(args) {
	case 1:
	case 2:
		name = args[1]
	default:
		return errors.New(usage)
	}
	if os.Geteuid() != 0 {
		return errors.New("namespaces and Docker Engines need root: use sudo")
	}
	switch args[0] {
	case "up":
		return up(name)
	case "down":
		if err := dockerlab.Remove(name); err != nil {
			return err
		}
		fmt.Println("No demo is left on this machine.")
		return nil
	case "sweep":
		return dockerlab.Sweep()
	}
	return fmt.Errorf("no command %q; %s", args[0], usage)
}

func up(name string) error {
	lab, err := dockerlab.New(name)
	if errors.Is(err, os.ErrExist) {
		return errors.New("the demo, or a part of it, is there already; make demo-down removes it")
	}
	if err != nil {
		return err
	}
	d := newDemo()
	d.say("Two Docker hosts, h1 (10.99.0.1) and h2 (10.99.0.2), each with an engine of its own.")
	if err := d.show(lab); err != nil {
		return errors.Join(err, lab.Close())
	}
	return nil
}

// demo prints commands and what they return. Colours are for terminals only.
type demo struct{ bold, blue, plain string }

func newDemo() demo {
	info, err := os.Stdout.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 || os.Getenv("NO_COLOR") != "" {
		return demo{}
	}
	return demo{bold, blue, plain}
}

func (d demo) say(text string) { fmt.Printf("\n%s%s%s\n\n", d.bold, text, d.plain) }

func weave() string { return filepath.Join(dockerlab.BuildDir(), "weave") }

// command types a line on a host.
func (d demo) command(h *dockerlab.Host, line string) error {
	fmt.Printf("%s%s#%s %s\n", d.blue, h.Name(), d.plain, line)
	out, err := h.Type(line)
	if out != "" {
		fmt.Println(out)
	}
	return err
}

type step struct {
	say  string // printed before, if not empty
	host *dockerlab.Host
	line string
}

func (d demo) show(lab *dockerlab.Lab) error {
	h1, err := lab.AddHost(1)
	if err != nil {
		return err
	}
	h2, err := lab.AddHost(2)
	if err != nil {
		return err
	}
	for _, s := range steps(h1, h2) {
		if s.say != "" {
			d.say(s.say)
		}
		if err := d.command(s.host, s.line); err != nil {
			return err
		}
		if strings.HasPrefix(s.line, "weave launch") && s.host == h2 {
			if err := awaitPeers(h1, h2); err != nil {
				return err
			}
		}
	}
	d.say("The hosts go on running. A shell on each, where weave is " + weave() + ", and the end:")
	fmt.Printf("  sudo %s   # h1\n  sudo %s   # h2\n  make demo-down\n", h1.Shell(), h2.Shell())
	return nil
}

func steps(h1, h2 *dockerlab.Host) []step {
	const (
		network = "docker network create -d weave --ipam-driver weave --subnet 10.40.0.0/16 demo"
		launch  = "weave launch --password only-for-this-demo"
		serve   = "docker run -d --name web --net demo --ip 10.40.0.10 -p 8080:80 busybox tool http -text=hello :80"
	)
	return []step{
		{"The plugin on both. The second is told of the first.", h1, launch},
		{"", h2, launch + " " + h1.Net().IP4().String()},
		{"One network: the same subnet on both hosts.", h1, network},
		{"", h2, network},
		{"A web server on h1, and a container on h2 that talks to it (NET_ADMIN is for the throughput below).", h1, serve},
		{"", h2, "docker run -d --name client --net demo --cap-add NET_ADMIN busybox tool idle"},
		{"", h2, "docker exec client ping -c 3 10.40.0.10"},
		{"", h2, "docker exec client wget -qO- http://10.40.0.10/"},
		{"A published port works as with any network.", h2, "wget -qO- http://10.99.0.1:8080/"},
		{"Throughput of one TCP stream through the sealed tunnel.", h1, "docker exec -d web tool sink :5201"},
		{"", h2, "docker exec client tool throughput -timeout=5s 10.40.0.10:5201"},
		{"What each host knows.", h1, "weave status"},
		{"", h2, "weave status"},
	}
}

// awaitPeers waits until each host knows the other.
func awaitPeers(hosts ...*dockerlab.Host) error {
	const limit = 20 * time.Second
	end := time.Now().Add(limit)
	for _, h := range hosts {
		for {
			out, err := h.Weave("status", "peers", "--json")
			if err == nil && strings.Contains(out, `"up"`) {
				break
			}
			if time.Now().After(end) {
				return errors.Join(fmt.Errorf("%s has no peer after %s: %s", h.Name(), limit, out), err)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	return nil
}
