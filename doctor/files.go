package doctor

import (
	"context"
	"fmt"
)

// Files checks how many files a proxy may open.
type Files struct {
	// Allowed is how many it may, Wanted how many it has open when its limits are
	// reached.
	Allowed, Wanted int
	// Whose says whose limit that is, "the running entrepot".
	Whose string
}

// Name is "open files".
func (Files) Name() string { return "open files" }

// Look compares the two.
func (f Files) Look(context.Context) []Finding {
	if f.Allowed < f.Wanted {
		return []Finding{{Status: Warning, Seen: fmt.Sprintf("%s may open %d files, and would have %d open with the configured limits: they are lowered to that", f.Whose, f.Allowed, f.Wanted),
			Advice: "raise it: LimitNOFILE of systemd, nofile of Docker's ulimits, ulimit -n"}}
	}
	return []Finding{{Status: OK, Seen: fmt.Sprintf("%s may open %d files, of which the configured limits need %d", f.Whose, f.Allowed, f.Wanted)}}
}
