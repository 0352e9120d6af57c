package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/e2e/hub"
)

// patience bounds every wait for the process: far more than any takes, so that
// a slow machine fails nothing, and a hang ends.
const patience = 60 * time.Second

// Proxy is a running entrepot process. Its methods are for the test's goroutine;
// URL, AdminURL and Log for any.
type Proxy struct {
	// Dir is the cache directory.
	Dir string

	listen, admin string
	config        string
	env           []string
	log           logBuffer
	cmd           *exec.Cmd // nil while stopped
	ended         chan struct{}
	err           error // of Wait, once ended is closed
}

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
	p := &Proxy{Dir: o.Dir}
	if p.Dir == "" {
		p.Dir = filepath.Join(t.TempDir(), "cache")
	}
	p.env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "GORACE=halt_on_error=1 atexit_sleep_ms=0"}, o.Env...)
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
	// A port that is free now may be another's a moment later.
	for tries := 1; ; tries++ {
		p.listen, p.admin = freeAddress(t), freeAddress(t)
		p.config = p.writeConfig(t, o)
		err := p.launch(t)
		if err == nil {
			return p
		}
		if tries == 5 || !strings.Contains(p.Log(), "is taken by another program") {
			t.Fatal(err)
		}
	}
}

// launch starts the process and waits for /readyz.
func (p *Proxy) launch(t testing.TB) error {
	t.Helper()
	cmd := exec.Command(Binary(t), "serve", "--config", p.config)
	cmd.Env = p.env
	cmd.Dir = filepath.Dir(p.config)
	cmd.Stdout, cmd.Stderr = &p.log, &p.log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the proxy: %w", err)
	}
	ended := make(chan struct{})
	p.cmd, p.ended = cmd, ended
	// It ends with the process, which Stop or Kill ends.
	go func() {
		p.err = cmd.Wait()
		close(ended)
	}()
	c := http.Client{Timeout: 5 * time.Second}
	for deadline := time.Now().Add(patience); ; {
		res, err := c.Get(p.AdminURL() + "/readyz")
		if err == nil {
			_ = res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.New(res.Status)
		}
		select {
		case <-ended:
			p.cmd = nil
			return fmt.Errorf("the proxy ended before it was ready: %w\n%s", p.err, p.Log())
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the proxy is not ready after %s: %w", patience, err)
		}
	}
}

// URL is where clients reach the registry API, without a trailing slash.
func (p *Proxy) URL() string { return "http://" + p.listen }

// Host is URL's host and port.
func (p *Proxy) Host() string { return p.listen }

// AdminURL is the operator's listener, without a trailing slash.
func (p *Proxy) AdminURL() string { return "http://" + p.admin }

// PID is the process; 0 while it is stopped.
func (p *Proxy) PID() int {
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// Log is what the process has written so far: the last MiB of it.
func (p *Proxy) Log() string { return p.log.String() }

// Stop ends the process by SIGTERM and waits for it. Any exit code but 0 fails
// the test.
func (p *Proxy) Stop(t testing.TB) {
	t.Helper()
	if p.cmd == nil {
		return
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("stop the proxy: %v", err)
	}
	p.wait(t)
	if p.err != nil {
		t.Errorf("the proxy ended with %v", p.err)
	}
}

// Kill ends the process by SIGKILL, as a crash does, and waits for it.
func (p *Proxy) Kill(t testing.TB) {
	t.Helper()
	if p.cmd == nil {
		return
	}
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("kill the proxy: %v", err)
	}
	p.wait(t)
}

func (p *Proxy) wait(t testing.TB) {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		_ = p.cmd.Process.Kill() // it is an error anyway
		<-p.ended
		t.Errorf("the proxy has not ended after %s", patience)
	}
	p.cmd = nil
}

// Restart stops the process, where it runs, and starts it again with the same
// configuration, ports and cache directory.
func (p *Proxy) Restart(t testing.TB) {
	t.Helper()
	p.Stop(t)
	if err := p.launch(t); err != nil {
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

// logBuffer keeps the last MiB or so of what is written to it.
type logBuffer struct {
	mu sync.Mutex
	b  []byte
}

const maxLog = 1 << 20

var _ io.Writer = (*logBuffer)(nil)

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = append(l.b, p...)
	if len(l.b) > 2*maxLog {
		l.b = append([]byte(fmt.Sprintf("(%d bytes left out)\n", len(l.b)-maxLog)), l.b[len(l.b)-maxLog:]...)
	}
	return len(p), nil
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.b)
}
