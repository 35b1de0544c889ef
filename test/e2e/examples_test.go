package e2e

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"weave/test/dockerlab"
)

// compose is one example file on one host.
type compose struct {
	t    *testing.T
	host *dockerlab.Host
	file string
}

// up starts an example, by its path below examples/, or of it what options say, and
// takes it down after the test.
func up(t *testing.T, h *dockerlab.Host, file string, options ...string) compose {
	t.Helper()
	c := compose{t, h, filepath.Join(dockerlab.ProjectDir(), "examples", file)}
	t.Cleanup(func() {
		if _, err := c.run("down", "--timeout", "1"); err != nil {
			t.Error(err)
		}
	})
	if _, err := c.run(append([]string{"up", "-d"}, options...)...); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c compose) run(args ...string) (string, error) {
	return c.host.Compose(append([]string{"--no-ansi", "-f", c.file}, args...)...)
}

// container returns the ID of a service's container.
func (c compose) container(service string) string {
	c.t.Helper()
	id, err := c.run("ps", "-q", service)
	if err != nil {
		c.t.Fatal(err)
	}
	return id
}

func TestExampleWeb(t *testing.T) {
	beside(t)
	hs := hosts(t, 2)
	up(t, hs[0], "web/server.yml")
	client := up(t, hs[1], "web/client.yml")
	eventually(t, 2*soon, func() error {
		logs, err := client.run("logs", "client")
		if err == nil && !strings.Contains(logs, "hello from web") {
			err = fmt.Errorf("the client logs %q", logs)
		}
		return err
	})
	if out, err := hs[1].Run("busybox", "wget", "-qO-", "http://10.99.0.1:8080/"); err != nil || out != "hello from web" {
		t.Errorf("the published port answers %q: %v", out, err)
	}
}

func TestExampleFrontAndBack(t *testing.T) {
	beside(t)
	hs := hosts(t, 2)
	up(t, hs[0], "front-and-back/app.yml")
	data := up(t, hs[1], "front-and-back/data.yml")
	eventually(t, 2*soon, func() error {
		out, err := hs[1].Run("busybox", "wget", "-qO-", "http://10.99.0.1:8081/cgi-bin/data")
		if err == nil && out != "the data" {
			err = fmt.Errorf("the app answers %q", out)
		}
		return err
	})
	if _, err := hs[1].Docker("exec", data.container("data"), "ping", "-c1", "-W1", "10.99.0.1"); err == nil {
		t.Error("the data has a way out")
	}
}

func TestExampleExternal(t *testing.T) {
	beside(t)
	hs := hosts(t, 2)
	const create = "network create -d weave --ipam-driver weave --subnet 10.43.0.0/16 shared"
	var agents []string
	for _, h := range hs {
		docker(t, h, strings.Fields(create)...)
		t.Cleanup(func() {
			if _, err := h.Docker("network", "rm", "shared"); err != nil {
				t.Error(err)
			}
		})
		agents = append(agents, up(t, h, "external/agent.yml").container("agent"))
	}
	address := docker(t, hs[1], "inspect", "-f", "{{.NetworkSettings.Networks.shared.IPAddress}}", agents[1])
	eventually(t, soon, func() error {
		_, err := hs[0].Docker("exec", agents[0], "ping", "-c1", "-W1", address)
		return err
	})
}

// TestExampleShop: services of two hosts find each other by their names, also those that
// have several containers on both.
func TestExampleShop(t *testing.T) {
	beside(t)
	hs := hosts(t, 2)
	for i, other := range []string{"cache", "db"} {
		up(t, hs[i], "shop/shop.yml", "--scale", "web=3", "web", other)
	}
	for _, h := range hs { // busybox has no way to wait for all three by itself
		eventually(t, 2*soon, func() error {
			out, err := h.Run("busybox", "wget", "-qO-", "http://"+h.Net().IP4().String()+":8082/cgi-bin/shop")
			if err == nil && out != "the cache and the database" {
				err = fmt.Errorf("the shop answers %q", out)
			}
			return err
		})
		web := docker(t, h, "ps", "-q", "--filter", "label=com.docker.compose.project=shop", "--filter", "label=com.docker.compose.service=web")
		for _, id := range strings.Fields(web) {
			eventually(t, gone, func() error {
				code, all, err := container{t: t, host: h, name: id}.asks("web", dnsmessage.TypeA)
				if slices.Sort(all); err == nil && len(slices.Compact(all)) != 6 {
					err = fmt.Errorf("%d addresses of web on %s: %v, %s", len(all), h.Name(), code, all)
				}
				return err
			})
		}
	}
}

// TestEveryExampleIsTested goes by the list above.
func TestEveryExampleIsTested(t *testing.T) {
	tested := map[string]bool{
		"web/server.yml": true, "web/client.yml": true, "external/agent.yml": true, "everywhere/agent.yml": true,
		"shop/shop.yml":          true,
		"front-and-back/app.yml": true, "front-and-back/data.yml": true,
	}
	root := filepath.Join(dockerlab.ProjectDir(), "examples")
	files, err := filepath.Glob(filepath.Join(root, "*", "*"))
	if err != nil || len(files) != len(tested) {
		t.Errorf("%d files in examples, %d are tested: %v", len(files), len(tested), err)
	}
	for _, file := range files {
		name, err := filepath.Rel(root, file)
		if err != nil || !tested[filepath.ToSlash(name)] {
			t.Errorf("%s is not tested: %v", name, err)
		}
	}
}
