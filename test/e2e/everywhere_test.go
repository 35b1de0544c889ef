package e2e

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"weave/test/dockerlab"
)

// networkOf is what an engine says of a network.
type networkOf struct {
	ID      string `json:"Id"`
	Labels  map[string]string
	Options map[string]string
	IPAM    struct{ Config []struct{ Subnet string } }
}

func (n networkOf) subnet() string {
	if len(n.IPAM.Config) == 0 {
		return ""
	}
	return n.IPAM.Config[0].Subnet
}

// TestEverywhere makes networks on one host, which must appear on the other, be of
// use to docker run and docker-compose there, and go when nobody needs them any more.
func TestEverywhere(t *testing.T) {
	t.Parallel()
	hs := spareHosts(t, 2, func(i int, first string) map[string]string {
		settings := joined(i, first)
		settings["WEAVE_NETWORKS"] = "everywhere"
		return settings
	})
	awaitPeers(t, hs)
	appears := func(h *dockerlab.Host, name string) (n networkOf) {
		eventually(t, soon, func() error { return ask(h, "/networks/"+name, &n) })
		return n
	}
	goes := func(name string) {
		t.Helper()
		for _, h := range hs {
			eventually(t, 2*noticed, func() error {
				if err := ask(h, "/networks/"+name, &networkOf{}); err == nil {
					return fmt.Errorf("%s has network %s still", h.Name(), name)
				}
				return nil
			})
		}
	}

	name := uniqueName("everywhere") // without a subnet: one is chosen
	docker(t, hs[0], creation(name, "--label", "who=me", "-o", "weave.mtu=1300")...)
	here, there := appears(hs[0], name), appears(hs[1], name)
	if there.subnet() == "" || there.subnet() != here.subnet() || there.Labels["who"] != "me" || there.Options["weave.mtu"] != "1300" {
		t.Errorf("made %+v, and %+v appeared", here, there)
	}
	server := run(t, hs[0], name, nil).serve()
	client := run(t, hs[1], name, nil)
	client.exec("tool", "send", "tcp", server.ip()+":7000")
	docker(t, hs[0], "rm", "-f", server.name)
	docker(t, hs[0], "network", "rm", name)
	if err := hs[1].KillPlugin(); err != nil {
		t.Fatal(err)
	}
	back := appears(hs[0], name) // a container on the other host uses it
	if back.subnet() != here.subnet() {
		t.Errorf("the network came back with subnet %s, and had %s", back.subnet(), here.subnet())
	}
	server = run(t, hs[0], name, nil)
	eventually(t, soon, func() error { _, err := client.try("ping", "-c1", "-W1", server.ip()); return err })

	other := uniqueName("other") // one of the same name is there
	docker(t, hs[1], "network", "create", other)
	docker(t, hs[0], creation(other, "--subnet", subnet())...)
	eventually(t, soon, func() error {
		s, err := statusOf(hs[1])
		for _, p := range s.Problems {
			if strings.Contains(p.What, other) && strings.Contains(p.What, "driver bridge") {
				return nil
			}
		}
		return errors.Join(err, fmt.Errorf("%s does not tell of it: %+v", hs[1].Name(), s.Problems))
	})

	exampleEverywhere(t, hs, appears)
	for _, c := range []container{client, server} {
		docker(t, c.host, "rm", "-f", c.name)
	}
	goes("everywhere_agents")
	goes(name)
}

// exampleEverywhere brings the example of that name up on each host, and down.
func exampleEverywhere(t *testing.T, hs []*dockerlab.Host, appears func(h *dockerlab.Host, name string) networkOf) {
	t.Helper()
	const shared = "everywhere_agents"
	file := filepath.Join(dockerlab.ProjectDir(), "examples", "everywhere", "agent.yml")
	var agents []string
	for i, h := range hs {
		if i > 0 {
			appears(h, shared)
		}
		c := compose{t, h, file}
		if _, err := c.run("up", "-d"); err != nil {
			t.Fatal(err)
		}
		agents = append(agents, c.container("agent"))
	}
	address := docker(t, hs[1], "inspect", "-f", "{{.NetworkSettings.Networks."+shared+".IPAddress}}", agents[1])
	eventually(t, soon, func() error {
		_, err := hs[0].Docker("exec", agents[0], "ping", "-c1", "-W1", address)
		return err
	})
	for _, h := range hs {
		if _, err := (compose{t, h, file}).run("down", "--timeout", "1"); err != nil {
			t.Error(err)
		}
	}
}
