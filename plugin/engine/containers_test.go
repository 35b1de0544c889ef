package engine

import (
	"context"
	"errors"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// What engine 20.10 says of containers, shortened; one attachment is of a network that
// a stopped container left.
const (
	containerList = `[{"Id":"abc123","Names":["/web"],"NetworkSettings":{"Networks":{"app":{"Aliases":null,"NetworkID":"n1","EndpointID":"e1"}}}},
{"Id":"def456","NetworkSettings":{"Networks":{"host":null}}}]`
	containerText = `{"Id":"abc123","Name":"/web","Config":{"Hostname":"ws","Domainname":"example.org"},"NetworkSettings":{"Networks":{
"app":{"Aliases":["shop","abc123"],"NetworkID":"n1","EndpointID":"e2"},"back":{"Aliases":null,"NetworkID":"n2","EndpointID":"e1"},"left":{"NetworkID":"n3","EndpointID":""}}}}`
)

func TestContainers(t *testing.T) {
	c := serve(t, "1.41", func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1.41/containers/json":
			_, _ = io.WriteString(w, containerList)
		case "/v1.41/containers/abc123/json", "/v1.41/containers/web/json":
			_, _ = io.WriteString(w, containerText)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	})
	all, err := c.Containers(context.Background())
	want := []Container{{ID: "abc123", Attachments: []Attachment{{Network: "n1", Endpoint: "e1"}}}, {ID: "def456"}}
	if err != nil || !reflect.DeepEqual(all, want) {
		t.Errorf("got %+v, %v", all, err)
	}
	one, err := c.Container(context.Background(), "abc123")
	whole := Container{"abc123", "web", "ws", "example.org", []Attachment{{"n2", "e1", nil}, {"n1", "e2", []string{"shop", "abc123"}}}}
	if err != nil || !reflect.DeepEqual(one, whole) {
		t.Errorf("got %+v, %v", one, err)
	}
	for _, id := range []string{"web", "000000"} { // a name, and nobody
		if _, err := c.Container(context.Background(), id); !errors.Is(err, ErrNoContainer) {
			t.Errorf("%s: %v", id, err)
		}
	}
}

// TestEvents holds that an engine's events are read as they come, and that their end is
// told.
func TestEvents(t *testing.T) {
	read := make(chan struct{})
	c := serve(t, "1.41", func(w http.ResponseWriter, r *http.Request) {
		if q := r.URL.Query(); r.URL.Path != "/v1.41/events" || q.Get("since") == "" || !strings.Contains(q.Get("filters"), "rename") {
			t.Errorf("asked %s", r.URL)
		}
		_, _ = io.WriteString(w, `{"Type":"container","Action":"start","Actor":{"ID":"abc123","Attributes":{"name":"web"}}}`+"\n")
		w.(http.Flusher).Flush()
		<-read
		_, _ = io.WriteString(w, `{"Type":"network","Action":"connect","Actor":{"ID":"n1","Attributes":{"container":"def456"}}}`+"\n{}\n")
	})
	var got []string
	err := c.Events(context.Background(), func() { got = append(got, "ready") }, func(id string) {
		if got = append(got, id); len(got) == 2 {
			close(read)
		}
	})
	if !slices.Equal(got, []string{"ready", "abc123", "def456"}) || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestNoEvents(t *testing.T) {
	refusing := serve(t, "1.41", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = io.WriteString(w, `{"message":"disk on fire"}`)
	})
	never := func() { t.Error("ready") }
	if err := refusing.Events(context.Background(), never, nil); err == nil || !strings.Contains(err.Error(), "disk on fire") {
		t.Errorf("got %v", err)
	}
	endless := serve(t, "1.41", func(w http.ResponseWriter, _ *http.Request) {
		for range 2 * maxEvent / 1000 {
			if _, err := io.WriteString(w, strings.Repeat(" ", 1000)); err != nil {
				return
			}
		}
	})
	if err := endless.Events(context.Background(), func() {}, nil); err == nil {
		t.Error("an event without end")
	}
}

// TestEventsEnd holds that following events ends with the context.
func TestEventsEnd(t *testing.T) {
	c := serve(t, "1.41", func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(context.Background())
	if err := c.Events(ctx, cancel, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
