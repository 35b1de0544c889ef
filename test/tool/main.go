// Command tool is the test tool inside lab images: servers, clients and raw
// frames, so that a test says in one line what a container does. It is one
// static binary and knows nothing of Docker or Weave; what busybox does (ping,
// ip, httpd) it does not repeat.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"sort"
	"strings"
	"syscall"
	"time"
)

// options are shared by all verbs.
type options struct {
	iface   string
	timeout time.Duration
	count   int
	text    string
}

type verb struct {
	args string
	what string
	run  func(ctx context.Context, o options, args []string) error
}

func verbs() map[string]verb {
	return map[string]verb{
		"http":        {"ADDR", "serve -text over HTTP", serveHTTP},
		"get":         {"URL", "print what a GET returns", get},
		"echo":        {"tcp|udp ADDR", "send back what comes", echo},
		"send":        {"tcp|udp ADDR", "send -text to an echo server and print the answer", send},
		"lookup":      {"udp|tcp NAME", "ask the resolver for the addresses of a name, and print them", lookup},
		"hold":        {"ADDR", "keep one TCP connection to an echo server busy until SIGTERM; fail if it breaks", hold},
		"pulse":       {"ADDR", "ask a UDP echo server all the time, and print how long it was silent, until SIGTERM", pulse},
		"listen":      {"ADDR", "print -count datagrams to ADDR, a multicast group on -i or :PORT", listen},
		"cast":        {"ADDR", "send -text to a multicast or broadcast address by -i", cast},
		"sniff":       {"", "fail if a frame with -text arrives on -i within -timeout", sniff},
		"inject-udp":  {"SRCMAC DSTMAC SRC:PORT DST:PORT", "put a forged UDP frame with -text on -i, -count times", injectUDP},
		"inject-arp":  {"SRCMAC SRCIP DSTMAC DSTIP", "put a forged ARP reply on -i, -count times", injectARP},
		"addrs":       {"", "print the interfaces as JSON", printAddrs},
		"idle":        {"", "do nothing until SIGTERM, which sleep as a first process ignores", idle},
		"sink":        {"ADDR", "swallow TCP streams", sink},
		"throughput":  {"ADDR", "stream to a sink for -timeout and print Gbit/s", throughput},
		"unreachable": {"ADDR", "fail if a TCP connection or UDP answer comes from ADDR within -timeout", unreachable},
	}
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "tool:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	all := verbs()
	if len(args) == 0 {
		return fmt.Errorf("usage: tool VERB [flags] args\n%s", usage(all))
	}
	v, ok := all[args[0]]
	if !ok {
		return fmt.Errorf("no verb %q\n%s", args[0], usage(all))
	}
	var o options
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.StringVar(&o.iface, "i", "eth0", "interface")
	flags.DurationVar(&o.timeout, "timeout", 5*time.Second, "give up after this time")
	flags.IntVar(&o.count, "count", 1, "how many times")
	flags.StringVar(&o.text, "text", "hello", "payload")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if want := len(strings.Fields(v.args)); flags.NArg() != want {
		return fmt.Errorf("usage: tool %s [flags] %s", args[0], v.args)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	return v.run(ctx, o, flags.Args())
}

func usage(all map[string]verb) string {
	var lines []string
	for name, v := range all {
		lines = append(lines, fmt.Sprintf("  %-12s %-34s %s", name, v.args, v.what))
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

func idle(ctx context.Context, _ options, _ []string) error {
	<-ctx.Done()
	return nil
}
