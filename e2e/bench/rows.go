package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Keys of figures that several rows have.
const (
	rate        = "rate"         // requests/s
	perMany     = "cpu_100k"     // CPU seconds per 100,000 requests
	speed       = "gb_s"         // GB/s
	perGiB      = "cpu_gib"      // CPU seconds per GiB
	memory      = "rss_mib"      // MiB resident at most
	ownMemory   = "own_mib"      // MiB resident that are not mapped from files
	mallocs     = "mallocs"      // heap allocations per request
	duration    = "seconds"      // of the whole
	first       = "first_ms"     // first byte, in ms
	upstream    = "upstream"     // bytes that the upstream sent, per byte of content
	others      = "others"       // part of the machine used by others
	ratioHot    = "ratio_hot"    // time, per time of the same when hot
	ratioSingle = "ratio_single" // CPU, per that of one request for each range
	held        = "held"         // part of the rate that was held
	startup     = "start_ms"     // from exec to the first answer
	perBlob     = "blob_b"       // bytes resident per cached blob
)

// rows are all rows, in the table's order: what is hot first, because it wants
// the same warm processes.
func rows() []row {
	return append(append(hotRows(), coldRows()...), processRows()...)
}

// requestFigures are those of rows whose unit is the request.
func requestFigures(cpuLimit, rateLimit float64) []figure {
	return []figure{
		{key: rate, title: "requests/s", bar: &bar{over: static, by: atLeast, limit: rateLimit}},
		{key: perMany, title: "CPU s per 100k", digits: 2, bar: &bar{over: static, by: atMost, limit: cpuLimit}},
		{key: mallocs, title: "allocations per request", digits: 1},
		{key: memory, title: "resident MiB"},
	}
}

// byteFigures are those of rows whose unit is the byte.
func byteFigures(over subject, cpuLimit, speedLimit float64) []figure {
	return []figure{
		{key: speed, title: "GB/s", digits: 2, bar: &bar{over: over, by: atLeast, limit: speedLimit}},
		{key: perGiB, title: "CPU s per GiB", digits: 3, bar: &bar{over: over, by: atMost, limit: cpuLimit}},
		{key: memory, title: "resident MiB"},
	}
}

func hotRows() []row {
	return []row{
		{
			name: "manifest-tag", title: "hot manifest by tag, 64 connections", subjects: servers, figures: requestFigures(1, 1),
			run: hotRequests(64, "", func(h string, s *stock) []request { return []request{get(h, s.Tag)} }),
		},
		{
			name: "manifest-digest", title: "hot manifest by digest, 64 connections", subjects: servers, figures: requestFigures(1, 1),
			run: hotRequests(64, "", func(h string, s *stock) []request { return []request{get(h, s.ByDigest)} }),
		},
		{
			name: "head-tag", title: "HEAD by tag, 64 connections", subjects: servers, figures: requestFigures(1, 1),
			run: hotRequests(64, "", func(h string, s *stock) []request { return []request{headOf(h, s.Tag)} }),
		},
		{
			name: "login-password", title: "hot manifest by tag, clients with a password, 64 connections", subjects: []subject{entrepot, static}, figures: requestFigures(1, 1),
			run: hotRequests(64, password, func(h string, s *stock) []request { return []request{get(h, s.Tag)} }),
		},
		{
			name: "login-token", title: "hot manifest by tag, clients with a token, 64 connections", subjects: []subject{entrepot, static}, figures: requestFigures(1, 1),
			run: hotRequests(64, token, func(h string, s *stock) []request { return []request{get(h, s.Tag)} }),
		},
		{
			name: "blob-1", title: "hot blob of 1 GiB, 1 stream", subjects: servers, figures: byteFigures(static, 1.05, 0.97),
			run: hotStreams(1, 3, manner{}),
		},
		{
			name: "blob-8", title: "hot blob of 1 GiB, 8 streams", subjects: servers, figures: byteFigures(static, 1.05, 0.97),
			run: hotStreams(8, 8, manner{}),
		},
		{
			name: "blob-small", title: "hot blob of 1 MiB, 64 connections", subjects: servers, figures: byteFigures(static, 1.1, 0.95),
			run: hotRequests(64, "", func(h string, s *stock) []request { return []request{get(h, s.Small)} }),
		},
		{
			name: "ranges", title: "ranges of 64 KiB, 16 connections", subjects: servers,
			figures: requestFigures(1.05, 0.95),
			run:     hotRequests(16, "", func(h string, s *stock) []request { return ranges(h, s.Large, 4096, 64<<10) }),
		},
		severalRow("several-ranges", "64 ranges of 64 KiB in one request, 16 connections", 64<<10),
		severalRow("several-small", "64 ranges of 4 KiB in one request, 16 connections", 4<<10),
		{
			name: "tls", title: "TLS, hot blob of 1 GiB, 1 stream", subjects: []subject{entrepot, static, nginxCache},
			figures: byteFigures(static, 1.11, 0.9), run: hotStreams(1, 1, manner{tls: true}),
		},
		{
			name: "readers", title: "1,000 readers at 1 MB/s each", subjects: servers,
			figures: []figure{
				{key: held, title: "part of the rate held", digits: 3, bar: &bar{by: atLeast, limit: 0.99}},
				{key: memory, title: "resident MiB", bar: &bar{by: atMost, limit: 64}},
				{key: perGiB, title: "CPU s per GiB", digits: 3, bar: &bar{over: static, by: atMost, limit: 1.2}},
			},
			run: pacedReaders(1000, 1e6),
		},
	}
}

// severalRow compares requests for several ranges with as many for one.
func severalRow(name, title string, size int64) row {
	const n = 64
	return row{
		name: name, title: title, subjects: []subject{entrepot},
		figures: []figure{
			{key: perMany, title: "CPU s per 100k", digits: 2},
			{key: speed, title: "GB/s", digits: 2},
			{key: ratioSingle, title: "CPU per that of 64 requests", digits: 2, bar: &bar{by: atMost, limit: 1.3}},
			{key: mallocs, title: "allocations per request", digits: 1},
			{key: memory, title: "resident MiB"},
		},
		run: func(ctx context.Context, b *bench, s subject) (sample, error) {
			run, err := b.warm(ctx, s, manner{})
			if err != nil {
				return nil, err
			}
			several, single := severalRanges(run.address, b.hub.Stock.Large, n, size)
			one, err := b.hotLoad(ctx, run, load{address: run.address, connections: 16, requests: single, span: b.o.span})
			if err != nil {
				return nil, err
			}
			x, err := b.hotLoad(ctx, run, load{address: run.address, connections: 16, requests: several, span: b.o.span})
			if err != nil {
				return nil, err
			}
			x[ratioSingle] = x[perMany] / (n * one[perMany])
			return x, nil
		},
	}
}

// hotRequests asks a warm subject again and again, for the time of a sample, by clients
// that log in as said.
func hotRequests(connections int, shown login, ask func(host string, s *stock) []request) func(context.Context, *bench, subject) (sample, error) {
	return func(ctx context.Context, b *bench, s subject) (sample, error) {
		run, err := b.warm(ctx, s, manner{login: shown})
		if err != nil {
			return nil, err
		}
		requests := ask(run.address, &b.hub.Stock)
		for i := range requests {
			requests[i] = requests[i].shown(run.authorization)
		}
		return b.hotLoad(ctx, run, load{address: run.address, connections: connections, requests: requests, span: b.o.span})
	}
}

// hotStreams asks a warm subject for the large blob, count times in all.
func hotStreams(connections, count int, m manner) func(context.Context, *bench, subject) (sample, error) {
	return func(ctx context.Context, b *bench, s subject) (sample, error) {
		run, err := b.warm(ctx, s, m)
		if err != nil {
			return nil, err
		}
		l := load{address: run.address, connections: connections, requests: []request{get(run.address, b.hub.Stock.Large)}, count: count, tls: run.tls}
		return b.hotLoad(ctx, run, l)
	}
}

// tlsSuite is AES-128-GCM, what all of them choose where the CPU has AES.
const tlsSuite = 0x1301

// hotLoad runs a load on a warm subject, which may ask the hub nothing for it:
// distribution does, and that is how it is.
func (b *bench) hotLoad(ctx context.Context, run *server, l load) (sample, error) {
	before, err := b.hub.counts()
	if err != nil {
		return nil, err
	}
	heap := run.mallocs(ctx)
	stop, err := b.profile(ctx, run)
	if err != nil {
		return nil, err
	}
	var t tally
	u, err := b.meter(run, func() (err error) {
		t, err = l.run(ctx)
		return err
	})
	if err = errors.Join(err, stop(), t.err()); err != nil {
		return nil, err
	}
	after, err := b.hub.counts()
	if err != nil {
		return nil, err
	}
	if n := after.Requests - before.Requests; n > 0 && run.subject == entrepot {
		return nil, fmt.Errorf("%d requests to the upstream for what is fresh", n)
	}
	if l.tls != nil && t.suite != tlsSuite {
		return nil, fmt.Errorf("cipher suite %#x and not %#x", t.suite, tlsSuite)
	}
	x := sample{
		rate:    float64(t.requests) / t.elapsed.Seconds(),
		perMany: u.cpu.Seconds() / float64(t.requests) * 1e5,
		speed:   float64(t.bytes) / t.elapsed.Seconds() / 1e9,
		perGiB:  u.cpu.Seconds() / float64(t.bytes) * (1 << 30),
		memory:  float64(u.peak) / mebibyte,
		others:  u.others,
	}
	if heap > 0 {
		x[mallocs] = (run.mallocs(ctx) - heap) / float64(t.requests)
	}
	return x, nil
}

// pacedReaders lets many readers take the large blob, each at its rate.
func pacedReaders(n int, bytesPerSecond int64) func(context.Context, *bench, subject) (sample, error) {
	return func(ctx context.Context, b *bench, s subject) (sample, error) {
		run, err := b.warm(ctx, s, manner{})
		if err != nil {
			return nil, err
		}
		l := load{address: run.address, connections: n, requests: []request{get(run.address, b.hub.Stock.Large)}, span: 3 * b.o.span}
		var t tally
		u, err := b.meter(run, func() (err error) {
			t, err = l.runPaced(ctx, bytesPerSecond)
			return err
		})
		if err = errors.Join(err, t.err()); err != nil {
			return nil, err
		}
		// They hang up in the middle: the subject is to be done with that
		// before the next is measured.
		time.Sleep(300 * time.Millisecond)
		return sample{
			held:   float64(t.bytes) / (float64(int64(n)*bytesPerSecond) * t.elapsed.Seconds()),
			perGiB: u.cpu.Seconds() / float64(t.bytes) * (1 << 30),
			memory: float64(u.peak) / mebibyte,
			others: u.others,
		}, nil
	}
}
