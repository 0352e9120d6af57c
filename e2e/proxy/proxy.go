package proxy

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/e2e/hub"
)

// patience bounds every wait for the process: far more than any takes, so that
// a slow machine fails nothing, and a hang ends.
const patience = 60 * time.Second

// Proxy is a running entrepot process of a test. Its methods are for the test's
// goroutine; URL, AdminURL and Log for any.
type Proxy struct{ *Process }

// New runs the program as a mirror of one hub, as docker.io.
func New(t testing.TB, h *hub.Hub) *Proxy {
	t.Helper()
	return Start(t, Options{Upstreams: map[string]*hub.Hub{"docker.io": h}})
}

// Start runs the program and waits until it is ready. It ends with the test at
// the latest; its log is printed if the test has failed, and a data race or a
// panic in it fails the test.
func Start(t testing.TB, o Options) *Proxy {
	t.Helper()
	p := &Proxy{&Process{Dir: o.Dir, binary: Binary(t)}}
	if p.Dir == "" {
		p.Dir = filepath.Join(t.TempDir(), "cache")
	}
	p.setEnv(t.TempDir(), o.Env)
	dir := t.TempDir()
	t.Cleanup(func() {
		if p.cmd != nil {
			p.Stop(t)
		}
		log := p.Log()
		for _, bad := range []string{"WARNING: DATA RACE", "panic: ", "fatal error: "} {
			if strings.Contains(log, bad) {
				t.Errorf("the proxy's log has %q", bad)
			}
		}
		if t.Failed() {
			b, _ := os.ReadFile(p.config)
			t.Logf("the proxy's configuration:\n%s\nthe proxy's log:\n%s", b, log)
		}
	})
	if err := p.start(dir, o); err != nil {
		t.Fatal(err)
	}
	return p
}

// Stop ends the process by SIGTERM and waits for it. Any exit code but 0 fails
// the test.
func (p *Proxy) Stop(t testing.TB) {
	t.Helper()
	if err := p.Process.Stop(); err != nil {
		t.Error(err)
	}
}

// Kill ends the process by SIGKILL, as a crash does, and waits for it.
func (p *Proxy) Kill(t testing.TB) {
	t.Helper()
	if err := p.Process.Kill(); err != nil {
		t.Error(err)
	}
}

// Restart stops the process, where it runs, and starts it again with the same
// configuration, ports and cache directory.
func (p *Proxy) Restart(t testing.TB) {
	t.Helper()
	p.Stop(t)
	if err := p.Launch(); err != nil {
		t.Fatal(err)
	}
}

// Until waits for what cond tells, asking it again and again; the test fails if
// that does not come.
func Until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for !cond() {
		select {
		case <-ctx.Done():
			t.Fatalf("still waiting for %s after %s", what, patience)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Config is the path of the configuration file, for other commands of the
// program.
func (p *Proxy) Config() string { return p.config }
