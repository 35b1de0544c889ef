package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"weave/plugin/attach"
)

// fakeDocker does what the environment's FAKE_DOCKER says, and notes in the file
// log what it was told.
type fakeDocker struct {
	fakeNetworks
	mood string
}

func newFakeDocker() (Docker, error) {
	mood := os.Getenv("FAKE_DOCKER")
	if mood == "gone" {
		return nil, errors.New("the Docker Engine does not answer")
	}
	return fakeDocker{mood: mood}, nil
}

const newID = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func note(format string, args ...any) {
	f, err := os.OpenFile("log", os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	defer func() { _ = f.Close() }()
	_, _ = fmt.Fprintf(f, format+"\n", args...)
}

// runDocker is main of the docker command.
func runDocker() {
	note("docker %s", strings.Join(os.Args[1:], " "))
	switch os.Getenv("FAKE_DOCKER") {
	case "create-fails":
		fmt.Fprintln(os.Stderr, "Unable to find image")
		os.Exit(1)
	case "odd":
		fmt.Println("no ID")
	default:
		fmt.Println(newID)
	}
}

func (fakeDocker) Host() string { return "unix:///fake.sock" }

func (fakeDocker) Containers(context.Context) ([]string, error) { return []string{"db", "web"}, nil }

func (fakeDocker) Check(_ context.Context, wants []attach.Want, holder attach.Holder) error {
	for _, w := range wants {
		if who, ok := holder(w.Subnet.String(), w.Addr); ok {
			return fmt.Errorf("address %s is in use by %s", w.Addr, who)
		}
	}
	return nil
}

func (d fakeDocker) Attach(ctx context.Context, r attach.Request) (*attach.Attached, error) {
	if err := d.Check(ctx, r.Wants, r.Holder); err != nil {
		return nil, err
	}
	if r.Container == "nobody" || d.mood == "connect-fails" {
		return nil, errors.New("no such container")
	}
	note("attach %.6s %v fresh=%t", r.Container, r.Wants, r.Fresh)
	done := &attach.Attached{}
	for _, w := range r.Wants {
		if !w.Addr.IsValid() {
			w.Addr = w.Subnet.Addr().Next()
		}
		done.Addresses = append(done.Addresses, attach.Address{Prefix: netip.PrefixFrom(w.Addr, w.Subnet.Bits()), Network: "net1", Old: r.Container == "old"})
	}
	return done, nil
}

func (fakeDocker) Addresses(_ context.Context, _ string, wants []attach.Want) (all []attach.Address, _ error) {
	for _, w := range wants {
		all = append(all, attach.Address{Prefix: netip.PrefixFrom(w.Subnet.Addr().Next(), w.Subnet.Bits()), Network: "net1"})
	}
	return all, nil
}

func (fakeDocker) Undo(context.Context, *attach.Attached) error {
	note("undo")
	return nil
}

func (fakeDocker) Detach(_ context.Context, container string, wants []attach.Want, keep []netip.Prefix) ([]attach.Address, error) {
	note("detach %s %v, keep %v", container, wants, keep)
	return []attach.Address{{Prefix: netip.MustParsePrefix("10.32.0.1/16")}}, nil
}

func (d fakeDocker) Start(context.Context, string) error {
	note("start")
	if d.mood == "start-fails" {
		return &attach.StartError{Status: 127, Err: errors.New("no such command")}
	}
	return nil
}

func (d fakeDocker) Foreground(ctx context.Context, id string, c attach.Console) (func(context.Context) (int, error), error) {
	if err := d.Start(ctx, id); err != nil {
		return nil, err
	}
	note("foreground proxy=%t keys=%s", c.SigProxy, c.DetachKeys)
	return func(context.Context) (int, error) {
		if d.mood == "exits" {
			return 7, nil
		}
		_, err := fmt.Fprintln(c.Out, "output")
		return 0, err
	}, nil
}

func (fakeDocker) Discard(context.Context, string) error {
	note("discard")
	return nil
}

func TestParseRun(t *testing.T) {
	for line, want := range map[string]string{
		"img":                              "[] img",
		"10.1.0.2/24 net:default img cmd":  "[10.1.0.2/24 net:default] img cmd",
		"-- net:1 10.1.0.2/24":             "[] net:1 10.1.0.2/24",
		"10.1.0.2/24 -- -d img":            "[10.1.0.2/24] img detach",
		"-d img -d":                        "[] img -d detach",
		"-dit img":                         "[] --attach=stdout --attach=stderr -it img detach interactive",
		"-itd img":                         "[] --attach=stdout --attach=stderr -it img detach interactive",
		"-it img":                          "[] -it img interactive",
		"--detach img":                     "[] img detach",
		"--detach=true img":                "[] img detach",
		"--detach=false img":               "[] img",
		"-d=false img":                     "[] img",
		"-dp 80:80 img":                    "[] -p 80:80 img detach",
		"-dp80:80 img":                     "[] -p80:80 img detach",
		"-Pde A=d img":                     "[] -Pe A=d img detach",
		"-e d -e=d img":                    "[] -e d -e=d img",
		"--name d --name=d img":            "[] --name d --name=d img",
		"--rm --init --privileged img":     "[] --rm --init --privileged img",
		"--rm=true -v -d:/x img":           "[] --rm=true -v -d:/x img",
		"--of-tomorrow value img":          "[] --of-tomorrow value img",
		"--of-tomorrow=value img":          "[] --of-tomorrow=value img",
		"--network app --net=other img":    "[] --network app --net=other img",
		"-h name img":                      "[] -h name img",
		"--cidfile f img":                  "[] --cidfile f img cidfile=f",
		"--sig-proxy=false img":            "[] img noproxy",
		"--sig-proxy img":                  "[] img",
		"--detach-keys ctrl-x img":         "[] img keys=ctrl-x",
		"-a stdout -i img":                 "[] -a stdout -i img interactive",
		"--socket s --rm img":              "[] --rm img socket=s",
		"--socket=s 10.1.0.2/24 img":       "[10.1.0.2/24] img socket=s",
		"--rm -- img --":                   "[] --rm -- img --",
		"--json 10.1.0.2/24 -d img --json": "[10.1.0.2/24] img --json detach",
		"--help":                           "[] help",
		"-h":                               "[] help",
		"img 10.1.0.2/24 --network host":   "[] img 10.1.0.2/24 --network host",
		"--ip 10.1.0.2 --network=app img ": "[] --ip 10.1.0.2 --network=app img",
	} {
		r, err := parseRun(strings.Fields(line))
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		got := append([]string{fmt.Sprint(r.wants)}, r.create...)
		for _, noted := range []struct {
			word string
			on   bool
		}{
			{"detach", r.detach}, {"interactive", r.interactive}, {"noproxy", r.noProxy}, {"help", r.help},
			{"keys=" + r.detachKeys, r.detachKeys != ""}, {"cidfile=" + r.cidFile, r.cidFile != ""}, {"socket=" + r.socket, r.socket != ""},
		} {
			if noted.on {
				got = append(got, noted.word)
			}
		}
		if got := strings.Join(got, " "); got != want {
			t.Errorf("%s: got %q, want %q", line, got, want)
		}
	}
}

func TestParseRunRefuses(t *testing.T) {
	for line, words := range map[string]string{
		"":                              "image",
		"10.1.0.2/24 -d":                "image",
		"--rm --":                       "image",
		"-d --name":                     "--name value",
		"-e":                            "-e value",
		"-de":                           "-e value",
		"--detach=perhaps img":          "detach perhaps",
		"--json img":                    "--json -d",
		"-d=perhaps img":                "detach perhaps",
		"--name x 10.1.0.2/24 img":      "10.1.0.2/24 before",
		"-d -a stdout img":              "attach detach",
		"--network host img":            "--network host weave expose",
		"--network=none img":            "--network none",
		"--net container:db img":        "container:db",
		"10.1.0.2/24 --net none -d img": "--network none",
	} {
		_, err := parseRun(strings.Fields(line))
		if err == nil {
			t.Errorf("%q is taken", line)
			continue
		}
		for _, w := range strings.Fields(words) {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q: the error does not say %q: %v", line, w, err)
			}
		}
	}
}
