package cli

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"weave/plugin/control"
	"weave/plugin/doctor"
)

// fakeHost is the host of a script, which has the plugin of fakePlugin.
type fakeHost struct{}

func (fakeHost) Examine(_ context.Context, a doctor.Answer) []control.Check {
	c := control.Check{Name: "plugin", Verdict: control.OK, Found: "it answers"}
	switch {
	case has("not-root"):
		c.Verdict, c.Found = control.Undecided, "who knows"
	case a.Err != nil:
		c.Verdict, c.Found, c.Do = control.Failed, a.Err.Error(), "weave launch"
	}
	return []control.Check{{Name: "engine", Verdict: control.OK, Found: "Docker Engine 28.1"}, c}
}

func (fakeHost) Facts(context.Context) doctor.Facts {
	return doctor.Facts{Kernel: "6.1", Plugins: []doctor.Plugin{{ID: "0123abcd", Name: "weavenet:latest"}}}
}

// TestDoctorColors: only the verdict has a colour, and columns stay aligned.
func TestDoctorColors(t *testing.T) {
	checks := []control.Check{{Name: "a", Verdict: control.OK, Found: "well"}, {Name: "long", Verdict: control.Failed, Found: "bad", Do: "mend it"}}
	var out bytes.Buffer
	printChecks(&printer{w: &out, color: true}, checks)
	want := "\x1b[1;31mfailed   \x1b[0m  long  bad\n                 -> mend it\n\x1b[32mok       \x1b[0m  a     well\n"
	if got := out.String(); !strings.HasPrefix(got, want) {
		t.Errorf("got %q", got)
	}
}
