package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// bench is one run: the hub, the subjects, and what they are asked for.
type bench struct {
	o           options
	dir         string // of all that is written, removed at the end
	hub         *hubProcess
	tools       tools
	certificate certificate

	hot      map[string]*server // by subject and manner
	laidOut  bool               // nginx's files are there
	full     string             // a cache with many blobs; empty until it is made
	launched int                // how many servers were started
}

// tools are the programs that are measured; where one is absent, why.
type tools struct {
	entrepot, nginx, distribution string
	absent                        map[subject]string
}

// errAbsent is the error of a subject that can not be had here.
type errAbsent string

func (e errAbsent) Error() string { return string(e) }

// open builds and starts what all rows need.
func open(ctx context.Context, o options) (b *bench, err error) {
	b = &bench{o: o, hot: map[string]*server{}}
	if b.dir, err = os.MkdirTemp(o.dir, "entrepot-bench-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if b.certificate, err = newCertificate(b.dir); err != nil {
		return b, err
	}
	b.tools = tools{entrepot: filepath.Join(b.dir, "entrepot"), absent: map[subject]string{}}
	if o.program != "" {
		b.tools.entrepot = o.program
	} else {
		b.o.progress("building Entrepot")
		if err := buildEntrepot(ctx, b.tools.entrepot); err != nil {
			return b, err
		}
	}
	b.o.progress("looking for the peers")
	if b.tools.nginx, err = lookNginx(); err != nil {
		b.tools.absent[static], b.tools.absent[nginxCache] = err.Error(), err.Error()
	}
	if !o.measures(distribution) {
		b.tools.absent[distribution] = "not asked for"
	} else if b.tools.distribution, err = buildDistribution(ctx); err != nil {
		b.tools.absent[distribution] = err.Error()
	}
	b.o.progress("making the hub's content")
	if b.hub, err = startHub(o.sizes); err != nil {
		return b, err
	}
	return b, nil
}

// close ends all processes and removes what was written.
func (b *bench) close() error {
	var errs []error
	for _, s := range b.hot {
		errs = append(errs, s.stop())
	}
	if b.hub != nil {
		errs = append(errs, b.hub.close())
	}
	return errors.Join(append(errs, os.RemoveAll(b.dir))...)
}

// manner says how a subject is to be started.
type manner struct {
	// plain puts it before the hub without tokens and redirects, which nginx
	// always is.
	plain bool
	// far puts it before the hub that speaks TLS and HTTP/2.
	far bool
	tls bool
	// login is what clients show to be known; Entrepot then answers nobody else.
	// The peers are shown it, too, and take no notice.
	login login
	// cache is a directory that Entrepot is to use; one of its own if empty.
	cache string
}

// start starts a subject with an empty cache; the caller stops it.
func (b *bench) start(ctx context.Context, s subject, m manner) (*server, error) {
	if why := b.tools.absent[s]; why != "" {
		return nil, errAbsent(why)
	}
	b.launched++
	dir := filepath.Join(b.dir, fmt.Sprintf("%03d-%s", b.launched, strings.ReplaceAll(string(s), " ", "-")))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	from := b.hub.Full
	if m.plain {
		from = b.hub.Plain
	}
	if m.far {
		from = b.hub.Far
	}
	var l launch
	var err error
	switch s {
	case entrepot:
		l, err = b.entrepotLaunch(dir, from, m)
	case static:
		l, err = b.nginxStaticLaunch(dir, m.tls)
	case nginxCache:
		l, err = b.nginxCacheLaunch(dir, m.tls)
	case distribution:
		l, err = b.distributionLaunch(dir, from)
	default:
		err = fmt.Errorf("%s is no process", s)
	}
	if err != nil {
		return nil, err
	}
	l.authorization = m.login.authorization()
	return l.start(ctx)
}

// warm gives a subject that runs and has all that the hot rows ask for. It is
// started once and stopped at the end.
func (b *bench) warm(ctx context.Context, s subject, m manner) (*server, error) {
	key := fmt.Sprint(s, m)
	if have := b.hot[key]; have != nil {
		return have, nil
	}
	if err := b.hub.shape(0, 0); err != nil {
		return nil, err
	}
	stock := b.hub.Stock
	items := []item{stock.Tag, stock.ByDigest, stock.Large, stock.Medium, stock.Small}
	if s == static && !b.laidOut {
		if err := b.writeFiles(ctx, items...); err != nil {
			return nil, err
		}
		b.laidOut = true
	}
	run, err := b.start(ctx, s, m)
	if err != nil {
		return nil, err
	}
	b.hot[key] = run
	// Twice: the second time shows that it is kept, and has it in the page cache.
	for range 2 {
		for _, i := range items {
			if _, err := run.once(ctx, i); err != nil {
				return nil, fmt.Errorf("warm %s: %w", s, err)
			}
		}
	}
	return run, nil
}
