package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// report is what a run saw.
type report struct {
	o          options
	took       time.Duration
	corpusSize int64
	images     int

	whole     int64            // answers that were complete, each compared with the truth
	bytes     int64            // of them
	actions   map[string]int64 // by name
	refused   map[int]int64    // answers that were errors, by status
	cut       int64            // connections that broke off in an answer
	early     int64            // ranges with wrong bytes, or of a wrong size, that ended before the digest was known
	left      int64            // answers that the client itself broke off
	gone      int64            // requests that found no process
	troubles  map[string]int64
	quirks    map[string]int64
	kills     int
	stops     int
	longest   time.Duration // the longest stop
	upstream  int64         // bytes of blobs that the upstreams sent
	evictions float64
	evicted   float64
	resumes   float64
	mismatch  float64
	opened    float64
	most      sample
	first     sample
	last      sample
	disk      string
	final     time.Duration // until every image could be pulled after the last fault

	violations []string
}

// sample is a look at the process.
type sample struct{ goroutines, fds, memory, disk, limit float64 }

func (s sample) max(o sample) sample {
	return sample{max(s.goroutines, o.goroutines), max(s.fds, o.fds), max(s.memory, o.memory), max(s.disk, o.disk), max(s.limit, o.limit)}
}

func mib[N int64 | float64](n N) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

func (r *report) print(out io.Writer) {
	p := func(format string, args ...any) { fmt.Fprintf(out, format+"\n", args...) }
	p("soak: %s, seed %d, %d clients, %d names with %s of content, a cache of at most %s",
		r.took.Round(time.Second), r.o.seed, r.o.clients, r.images, mib(r.corpusSize), mib(r.o.maxSize()))
	p("clients     %s", counts(r.actions))
	p("answers     %d complete, all compared (%s); %d broke off, %d were left by the client, %d ranges had wrong bytes before the digest was known; errors by status: %s; %d requests found no process",
		r.whole, mib(r.bytes), r.cut, r.left, r.early, counts(r.refused), r.gone)
	p("upstreams   sent %s of blobs; faults: %s", mib(r.upstream), counts(r.troubles))
	p("quirks      %s", counts(r.quirks))
	p("process     killed %d times, stopped %d times (the longest stop took %s); transfers resumed %g, breakers opened %g, wrong bytes from an upstream seen %g times",
		r.kills, r.stops, r.longest.Round(10*time.Millisecond), r.resumes, r.opened, r.mismatch)
	p("eviction    %g blobs, %s", r.evictions, mib(r.evicted))
	p("goroutines  %g at first, %g at most, %g at the end", r.first.goroutines, r.most.goroutines, r.last.goroutines)
	p("files       %g at first, %g at most, %g at the end", r.first.fds, r.most.fds, r.last.fds)
	p("memory      %s at most", mib(r.most.memory))
	p("disk        %s at most of %s, to which a blob that is larger than half of it may add while it comes; %s", mib(r.most.disk), mib(r.most.limit), r.disk)
	p("recovery    every image could be pulled %s after the last fault", r.final.Round(time.Millisecond))
	if len(r.violations) == 0 {
		p("soak: no violation")
		return
	}
	p("soak: %d VIOLATIONS", len(r.violations))
	for _, v := range r.violations[:min(len(r.violations), 50)] {
		p("  %s", v)
	}
}

func counts[K interface{ ~int | ~string }](m map[K]int64) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, fmt.Sprintf("%v %d", k, m[k]))
	}
	return strings.Join(parts, ", ")
}
