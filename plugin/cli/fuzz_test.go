package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"unicode"

	"weave/plugin/control"
)

// FuzzViews: names, reasons and errors come from other hosts and from containers.
// Whatever they are, the terminal gets lines that can be printed.
func FuzzViews(f *testing.F) {
	full, err := os.ReadFile("testdata/status.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(full, "the state is locked")
	f.Add([]byte(`{"peer":"p","nickname":"\u001b[2J","version":"\u0007","peers":[{"id":"\u009b1m","nickname":"\r","state":"up","via":"\u202e"}],"lan":{"links":["\n"]}}`), "host \x1b]0;x\x07 is alive")
	f.Add([]byte(`{"problems":[{"what":"\b","do":"\u001b"}],"refusals":[{"why":"\u001b","do":"\u0000"}],"seeds":[{"address":"\t"}]}`), "a\nb\r")
	f.Add([]byte(`{"peer":"p","segments":[{"key":"\u001b","networks":[{"id":"\u001b","name":""}],"members":["\u001b"]}],"endpoints":[{"container":"\u001b","network":"\u001b","segment":"\u001b","host":"\u001b"}],"ipam":[{"owners":[{"peer":"\u001b","nickname":"\u001b"}],"conflicts":["\u001b"],"trouble":["\u001b"]}]}`), "")
	f.Fuzz(func(t *testing.T, status []byte, reason string) {
		var s control.Status
		if json.Unmarshal(status, &s) != nil {
			return
		}
		for _, view := range []func(*printer, control.Status){overview, peersView, routesView, segmentsView, endpointsView, ipamView} {
			var out bytes.Buffer
			p := newPrinter(&out, now())
			view(p, s)
			if p.err != nil {
				t.Fatal(p.err)
			}
			checkText(t, out.String())
		}
		checkText(t, strings.ReplaceAll(Explain(errors.New(reason)), "\t", " "))
	})
}

func checkText(t *testing.T, text string) {
	t.Helper()
	if i := strings.IndexFunc(text, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); i >= 0 {
		t.Errorf("%q cannot be printed, in %q", text[i:i+1], text)
	}
}
