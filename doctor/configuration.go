package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/entrepot-dev/entrepot/configs"
	"github.com/entrepot-dev/entrepot/operator"
)

// Configuration checks that the settings are valid, and those that are in force.
type Configuration struct {
	// File is where Config was read from; empty where there is none.
	File string
	// Config is what was read, or Err why nothing was.
	Config *configs.Config
	Err    error
	// Given are keys that the command line gave for this command alone.
	Given []string
	// Client asks the running proxy; nil where none runs.
	Client *operator.Client
}

// Name is "configuration".
func (Configuration) Name() string { return "configuration" }

// Look asks the running proxy for its own.
func (c Configuration) Look(ctx context.Context) []Finding {
	file := c.File
	if file == "" {
		file = "no file"
	}
	if c.Err != nil {
		f := Finding{Status: Failure, Seen: c.Err.Error(), Advice: "mend what is named; entrepot config check says whether it is right"}
		if c.Client != nil {
			f.Seen += "\nthe running entrepot uses what it read before"
		}
		return []Finding{f}
	}
	found := []Finding{{Status: OK, Seen: file + ": valid"}}
	if c.Client == nil {
		return found
	}
	var running operator.Configuration
	if err := c.Client.Get(ctx, "configuration", nil, &running); err != nil {
		return append(found, Finding{Status: Warning, Seen: "the running one can not be compared: " + err.Error()})
	}
	return append(found, c.compare(&running)...)
}

func (c Configuration) compare(running *operator.Configuration) []Finding {
	from := "no file"
	if running.File != "" {
		from = running.File
	}
	var found []Finding
	pending := slices.Concat(running.Changed, running.NeedRestart)
	switch {
	case running.Problem != "":
		found = append(found, Finding{Status: Failure, Seen: "the running entrepot goes on with what it had, for what it would read now is wrong: " + running.Problem,
			Advice: "mend what is named, and then: entrepot reload"})
	case len(running.NeedRestart) > 0:
		found = append(found, Finding{Status: Warning, Seen: fmt.Sprintf("%s has changed since the start: %s", from, some(running.NeedRestart)), Advice: "restart entrepot"})
	}
	if len(running.Changed) > 0 {
		found = append(found, Finding{Status: Warning, Seen: fmt.Sprintf("%s has changed since it was read: %s", from, some(running.Changed)), Advice: "entrepot reload"})
	}
	var differ []string
	own := c.Config.Values()
	for key, v := range own {
		if w, ok := running.Values[key]; !ok || w != v {
			differ = append(differ, key)
		}
	}
	for key := range running.Values {
		if _, ok := own[key]; !ok {
			differ = append(differ, key)
		}
	}
	slices.Sort(differ)
	differ = slices.DeleteFunc(differ, func(key string) bool {
		return slices.Contains(c.Given, key) ||
			slices.ContainsFunc(pending, func(p string) bool { return key == p || strings.HasPrefix(key, p+".") })
	})
	if len(differ) > 0 {
		found = append(found, Finding{Status: Warning, Seen: fmt.Sprintf("the running entrepot, which read %s, has other settings than this command: %s", from, some(differ)),
			Advice: "give this command the file, the environment and the flags of the service, to see the same as it does"})
	}
	if len(found) == 0 {
		found = append(found, Finding{Status: OK, Seen: "that of the running entrepot is the same"})
	}
	return found
}

// mostKeys is how many are listed.
const mostKeys = 8

// some lists the first of keys.
func some(keys []string) string {
	if len(keys) <= mostKeys {
		return strings.Join(keys, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(keys[:mostKeys], ", "), len(keys)-mostKeys)
}
