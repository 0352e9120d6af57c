package main

import (
	"context"
	"errors"
	"time"
)

func processRows() []row {
	return []row{
		{
			name: "idle", title: "resident when idle after start; start to answering", subjects: servers,
			figures: []figure{
				{key: memory, title: "resident MiB", digits: 1, bar: &bar{by: atMost, limit: 25}},
				{key: startup, title: "start to answering, ms", digits: 1, bar: &bar{by: atMost, limit: 30}},
			},
			run: func(ctx context.Context, b *bench, s subject) (sample, error) { return b.rest(ctx, s, manner{}) },
		},
		{
			name: "start-full", title: "start with 1,000,000 cached blobs", subjects: []subject{entrepot},
			figures: []figure{
				{key: startup, title: "start to answering, ms", digits: 1, bar: &bar{by: atMost, limit: 1000}},
				{key: perBlob, title: "more resident, bytes per blob", digits: 1, bar: &bar{by: atMost, limit: 100}},
				{key: memory, title: "resident MiB", digits: 1},
				{key: ownMemory, title: "of it not mapped from files, MiB", digits: 1},
			},
			run: startFull,
		},
	}
}

// rest starts a subject and lets it rest.
func (b *bench) rest(ctx context.Context, s subject, m manner) (x sample, err error) {
	run, err := b.start(ctx, s, m)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, run.stop()) }()
	u, err := b.meter(run, func() error {
		select {
		case <-time.After(b.o.span):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return sample{memory: float64(u.peak) / mebibyte, ownMemory: float64(u.own) / mebibyte, startup: run.startup.Seconds() * 1000, others: u.others}, err
}
