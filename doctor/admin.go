package doctor

import (
	"context"
	"fmt"
	"time"

	"github.com/entrepot-dev/entrepot/operator"
)

// Admin checks that the admin listener of the proxy answers.
type Admin struct {
	// Client uses the operator's API; nil where it could not be reached, for Err.
	Client *operator.Client
	Err    error
	// Optional is set where nothing but the trace of a pull needs it.
	Optional bool
}

// Name is "admin listener".
func (Admin) Name() string { return "admin listener" }

// Look asks what answers.
func (a Admin) Look(ctx context.Context) []Finding {
	var s operator.Status
	err := a.Err
	if a.Client != nil {
		err = a.Client.Get(ctx, "status", nil, &s)
	}
	if err != nil {
		f := Finding{Status: Failure, Seen: err.Error(), Advice: "what only the running proxy knows was not looked at"}
		if a.Optional {
			f.Status, f.Advice = Warning, "name the admin listener of the cache (--admin-listen) to see from its side what comes there"
		}
		return []Finding{f}
	}
	seen := fmt.Sprintf("entrepot %s has run since %s", s.Version, s.Started.UTC().Format(time.RFC3339))
	if s.Offline {
		seen += ", offline"
	}
	return []Finding{{Status: OK, Seen: seen}}
}
