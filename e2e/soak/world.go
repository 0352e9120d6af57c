package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// world is one run: the registries, the process, and what has been seen.
type world struct {
	o       options
	sources []*source
	corpus  *corpus
	url     string
	host    string
	out     io.Writer

	mu     sync.Mutex
	report *report
	// windows are the quirks of calm sources so far.
	windows []*window
}

// note changes the report.
func (w *world) note(f func(*report)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(w.report)
}

// violation notes what must not be, and says it at once.
func (w *world) violation(format string, args ...any) {
	v := fmt.Sprintf(format, args...)
	w.note(func(r *report) {
		fmt.Fprintf(w.out, "%s VIOLATION %s\n", time.Now().UTC().Format(time.TimeOnly), v)
		r.violations = append(r.violations, v)
	})
}

// patience bounds what the end of a run waits for.
const patience = 3 * time.Minute

// run does the whole of it. An error is one of the program's own: the run told
// nothing.
func run(ctx context.Context, o options, binary, dir string, out io.Writer) (*report, error) {
	w := &world{o: o, out: out, report: &report{o: o, actions: map[string]int64{}, refused: map[int]int64{}, troubles: map[string]int64{}, quirks: map[string]int64{}}}
	began := time.Now()
	var hubs []*hub.Hub
	for _, opts := range []hub.Options{{}, {}, {TLS: true, NoCDN: true}, {Auth: hub.Open, NoCDN: true}} {
		h, err := hub.Start(opts)
		if err != nil {
			return nil, err
		}
		defer h.Close()
		hubs = append(hubs, h)
	}
	// docker.io has two endpoints, ghcr.io has one, without a CDN. calm.test never fails;
	// it has quirks, as the others have too.
	calm := &source{name: "calm.test", hubs: hubs[3:], calm: true}
	w.sources = []*source{{name: "docker.io", hubs: hubs[:2]}, {name: "ghcr.io", hubs: hubs[2:3]}, calm}
	w.corpus = newCorpus(o, w.sources)
	p, err := proxy.Run(binary, dir, proxy.Options{
		Upstreams: map[string]*hub.Hub{"docker.io": hubs[0], "ghcr.io": hubs[2], calm.name: hubs[3]},
		Config: fmt.Sprintf(`
cache: {max_size: %d, memory: 8MiB}
log: {level: info}
shutdown_timeout: 2s
upstreams:
  docker.io: {%[2]s, tags: [{match: "*:%[3]s", immutable: true}, {match: "*", ttl: 1s}], endpoints: [%[4]q, %[5]q], realms: [%[6]q, %[7]q], redirect_hosts: [%[8]q, %[9]q]}
  ghcr.io: {%[2]s, tags: [{match: "*", ttl: 0s}]}
  calm.test: {tags: [{match: "*", ttl: 0s}]}
`, o.maxSize(), "connect_timeout: 1s, header_timeout: 2s, stall_timeout: 2s", fixedTag,
			hubs[0].URL(), hubs[1].URL(), hubs[0].Realm(), hubs[1].Realm(), hubs[0].CDNHost(), hubs[1].CDNHost()),
	})
	if err != nil {
		return nil, err
	}
	defer func() { _ = p.Kill() }() // where it did not come to its end
	w.url, w.host = p.URL(), p.Host()
	w.report.images, w.report.corpusSize = len(w.corpus.entries), w.corpus.size
	if w.report.first, err = atRest(p); err != nil {
		return nil, err
	}
	fmt.Fprintf(out, "soak: %s, seed %d: %d names with %s, a cache of %s; the process is %d\n",
		o.length, o.seed, len(w.corpus.entries), mib(w.corpus.size), mib(o.maxSize()), p.PID())

	// Clients, faults and moves end with storm; the process is this goroutine's.
	storm, end := context.WithTimeout(ctx, o.length)
	defer end()
	var g sync.WaitGroup
	for n, s := range w.sources {
		for m, h := range s.hubs {
			rnd := rand.New(rand.NewPCG(o.seed, uint64(200+10*n+m)))
			g.Go(func() { w.pester(storm, s, h, rnd, harmless(s.calm), everyRepo) })
		}
	}
	rnd := rand.New(rand.NewPCG(o.seed, 300))
	g.Go(func() { w.pester(storm, calm, hubs[3], rnd, harmful(), w.anyRepo(calm, rnd)) })
	for n, h := range hubs[:3] {
		g.Go(func() { w.stir(storm, h, rand.New(rand.NewPCG(o.seed, uint64(100+n)))) })
	}
	g.Go(func() { w.moveTags(storm, rand.New(rand.NewPCG(o.seed, 2))) })
	for n := range o.clients {
		c := w.newClient(uint64(1000 + n))
		g.Go(func() { c.run(storm) })
	}
	err = w.tend(storm, p, rand.New(rand.NewPCG(o.seed, 3)))
	end()
	g.Wait()
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, errors.New("interrupted")
	}

	w.recover(ctx)
	if err := w.settle(p, hubs); err != nil {
		return nil, err
	}
	for _, h := range hubs {
		w.report.upstream += h.Counts().CDNBytes
	}
	w.report.took = time.Since(began)
	return w.report, nil
}

func (w *world) newClient(seed uint64) *client {
	return &client{w: w, rnd: rand.New(rand.NewPCG(w.o.seed, seed)), http: &http.Client{
		Transport:     &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 8},
		Timeout:       2 * time.Minute,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// tend looks at the process every other second, and ends it now and then: by
// SIGKILL or by SIGTERM. After each end what is on disk must be whole.
func (w *world) tend(ctx context.Context, p *proxy.Process, rnd *rand.Rand) error {
	// In a short run there is one kill at least.
	every := min(w.o.every, w.o.length/3)
	next := time.Now().Add(every/2 + time.Duration(rnd.Int64N(int64(every))))
	said := time.Now()
	for {
		sleep(ctx, time.Second)
		if p.Gone() {
			return fmt.Errorf("the process has ended by itself:\n%s", p.Log())
		}
		s, err := look(p)
		if err != nil {
			return err
		}
		w.note(func(r *report) { r.most = r.most.max(s) })
		if ctx.Err() != nil {
			w.account(p)
			return nil
		}
		if time.Since(said) > 30*time.Second {
			said = time.Now()
			w.note(func(r *report) {
				fmt.Fprintf(w.out, "%s %d complete, %d cut, %d kills, %g goroutines, %g files, %s on disk, %d violations\n",
					said.UTC().Format(time.TimeOnly), r.whole, r.cut, r.kills, s.goroutines, s.fds, mib(s.disk), len(r.violations))
			})
		}
		if time.Now().Before(next) {
			continue
		}
		next = time.Now().Add(every/2 + time.Duration(rnd.Int64N(int64(every))))
		w.account(p)
		// What is under way now ends with the process.
		ended := w.open(quirk{name: "an end", may: operations}, nil, "")
		if w.report.kills > 0 && rnd.IntN(3) == 0 {
			began := time.Now()
			err = p.Stop()
			w.note(func(r *report) { r.stops++; r.longest = max(r.longest, time.Since(began)) })
		} else {
			err = p.Kill()
			w.note(func(r *report) { r.kills++ })
		}
		if err != nil {
			w.violation("%v", err)
		}
		if _, err := inspect(p.Dir); err != nil {
			w.violation("after an end of the process: %v", err)
		}
		if err := p.Launch(); err != nil {
			return err
		}
		ended()
	}
}

// account adds up what a process has counted, which ends with it, and looks for what
// must not be in its log.
func (w *world) account(p *proxy.Process) {
	m, err := p.Scrape()
	if err != nil {
		w.violation("%v", err)
		return
	}
	w.note(func(r *report) {
		r.evictions += m.Sum("entrepot_cache_evictions_total")
		r.evicted += m.Sum("entrepot_cache_evicted_bytes_total")
		r.resumes += m.Sum("entrepot_fill_resumes_total")
		r.mismatch += m.Sum("entrepot_digest_mismatches_total")
		r.opened += m.Sum("entrepot_upstream_endpoint_openings_total")
	})
	if n := m.Sum("entrepot_cache_damaged_total"); n > 0 {
		w.violation("the process found %g of its own files damaged", n)
	}
	for _, bad := range []string{"WARNING: DATA RACE", "panic: ", "panic while", "fatal error: "} {
		if log := p.Log(); strings.Contains(log, bad) {
			w.violation("the process's log has %q", bad)
			w.note(func(*report) { fmt.Fprintln(w.out, log) })
		}
	}
}

// recover pulls every image, now that nothing fails any more: that must succeed,
// after a moment for endpoints that were left alone.
func (w *world) recover(ctx context.Context) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var g errgroup.Group
	g.SetLimit(8)
	for n, e := range w.corpus.entries {
		c := w.newClient(uint64(10000 + n))
		g.Go(func() error {
			defer c.http.CloseIdleConnections()
			for {
				err := c.whole(ctx, e)
				var bad *wrong
				switch {
				case err == nil:
					return nil
				case errors.As(err, &bad):
					w.violation("after the last fault: %s/%s: %s", e.source.name, e.repo, bad.what)
					return nil
				case ctx.Err() != nil:
					w.violation("%s after the last fault %s/%s can still not be pulled: %v", patience, e.source.name, e.repo, err)
					return nil
				}
				sleep(ctx, 100*time.Millisecond)
			}
		})
	}
	_ = g.Wait() // what there is to say is a violation
	w.report.final = time.Since(began)
}

// whole pulls all that an image has, by digest.
func (c *client) whole(ctx context.Context, e *entry) error {
	if _, _, err := c.manifest(ctx, e, fixedTag); err != nil {
		return err
	}
	for d := range e.image.Manifests {
		if _, _, err := c.manifest(ctx, e, d.String()); err != nil {
			return err
		}
	}
	for d, content := range e.image.Blobs {
		if err := c.blob(ctx, e, d, content); err != nil {
			return err
		}
	}
	return nil
}

// atRest takes a sample once the goroutines of the start have ended.
func atRest(p *proxy.Process) (sample, error) {
	least, err := look(p)
	for err == nil {
		var s sample
		if s, err = look(p); s.goroutines >= least.goroutines {
			break
		}
		least = s
	}
	return least, err
}

// look takes a sample.
func look(p *proxy.Process) (sample, error) {
	m, err := p.Scrape()
	if err != nil {
		return sample{}, err
	}
	return sample{
		goroutines: m.Sum("go_goroutines"),
		fds:        float64(len(openFiles(p.PID()))),
		memory:     m.Sum("process_resident_memory_bytes"),
		disk:       onDisk(p.Dir),
		limit:      m.Sum("entrepot_cache_limit_bytes"),
	}, nil
}

// onDisk returns how many bytes the blobs and parts in a cache directory take up. A part
// that becomes a blob meanwhile counts once at most; the metrics of the two are of different
// moments.
func onDisk(dir string) (bytes float64) {
	for _, sub := range []string{"blobs", "ingest"} {
		_ = filepath.WalkDir(filepath.Join(dir, sub), func(_ string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return nil // it may be gone
			}
			if info, err := e.Info(); err == nil {
				if st, ok := info.Sys().(*syscall.Stat_t); ok {
					bytes += float64(st.Blocks) * 512
				}
			}
			return nil
		})
	}
	return bytes
}

// openFiles gives what the descriptors of a process stand for; nothing where there
// is no /proc.
func openFiles(pid int) []string {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var names []string
	for _, f := range list {
		if name, err := os.Readlink(dir + "/" + f.Name()); err == nil {
			names = append(names, name)
		}
	}
	return names
}
