// Package doctor finds out what is wrong: with the host that a cache runs on, with the
// running proxy, with the configuration of a client, and with the way of its pulls.
//
// It asks and reads; it changes nothing but the configuration files of a client, where
// it is told to, and what a pull of a client leaves behind. It never sees a secret.
package doctor

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Status says how much a finding matters.
type Status string

const (
	// OK is that of what is as it should be.
	OK Status = "ok"
	// Warning is that of what works, and may not for long or not for all.
	Warning Status = "warning"
	// Failure is that of what does not work.
	Failure Status = "failure"
)

// Finding is what a check has seen of one thing.
type Finding struct {
	// Check is the name of what was looked at, "cache directory".
	Check  string `json:"check"`
	Status Status `json:"status"`
	// Seen is a sentence on what was seen, and Advice one on what to do; it is empty
	// where there is nothing to do.
	Seen   string `json:"seen"`
	Advice string `json:"advice,omitempty"`
}

// worst gives the more serious of two.
func worst(a, b Status) Status {
	if a == Failure || b == OK {
		return a
	}
	return b
}

// Check looks at one thing.
type Check interface {
	// Name is that of its findings.
	Name() string
	// Look gives what was found, one finding at least. It ends with ctx.
	Look(ctx context.Context) []Finding
}

// beside is how many checks run at a time.
const beside = 8

// Run runs checks beside each other, and gives their findings in their order. A check
// that has not ended within patience has failed: one that hangs in a dead file system
// can not be ended, and is left to the end of the process.
func Run(ctx context.Context, checks []Check, patience time.Duration) []Finding {
	found := make([][]Finding, len(checks))
	places := make(chan struct{}, beside)
	var all sync.WaitGroup
	for i, c := range checks {
		all.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			found[i] = runOne(ctx, c, patience)
		})
	}
	all.Wait()
	var list []Finding
	for i, some := range found {
		for _, f := range some {
			if f.Check == "" {
				f.Check = checks[i].Name()
			}
			list = append(list, f)
		}
	}
	return list
}

// grace is how much longer than its context a check may take to give what it has.
const grace = time.Second

func runOne(ctx context.Context, c Check, patience time.Duration) []Finding {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	done := make(chan []Finding, 1) // taken or not, so that the goroutine ends
	go func() { done <- c.Look(ctx) }()
	select {
	case found := <-done:
		return found
	case <-time.After(patience + grace):
		return []Finding{{Status: Failure, Seen: fmt.Sprintf("it has not ended within %s", patience),
			Advice: "something that it asks hangs: a file system, a name server, a network"}}
	}
}

// Counts tells how many findings there are of each status.
func Counts(list []Finding) (ok, warnings, failures int) {
	for _, f := range list {
		switch f.Status {
		case Failure:
			failures++
		case Warning:
			warnings++
		default:
			ok++
		}
	}
	return ok, warnings, failures
}
