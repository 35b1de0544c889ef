package control

import (
	"context"
	"net/http"
)

const doctorPath = "/v1/doctor"

// Verdict is what came of a check.
type Verdict string

// The verdicts.
const (
	OK        Verdict = "ok"
	Warned    Verdict = "warning"   // something works less well than it should, or may be meant
	Failed    Verdict = "failed"    // something does not work
	Undecided Verdict = "not known" // it could not be looked at
)

// Check is one thing that was looked at. Where more than one thing is wrong, there
// are several of one name.
type Check struct {
	Name    string  `json:"name"`
	Verdict Verdict `json:"verdict"`
	Found   string  `json:"found"`        // in one sentence, without a full stop
	Do      string  `json:"do,omitempty"` // the way out, in the same form
}

// Doctor has the plugin examine itself, and ask the other hosts of the cluster how
// they see this one. It takes some seconds.
func (c *Client) Doctor(ctx context.Context) ([]Check, error) {
	var checks []Check
	err := c.call(ctx, http.MethodPost, doctorPath, nothing, &checks)
	return checks, err
}
