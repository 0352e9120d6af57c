package proxy

import (
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
	"time"

	"github.com/entrepot-dev/entrepot/admin"
)

// Process is a run of the program, for who is no test. Its methods are for one
// goroutine; URL, AdminURL and Log for any.
type Process struct {
	// Dir is the cache directory.
	Dir string

	binary        string
	listen, admin string
	config        string
	env           []string
	ulimit        string
	output        *os.File // in place of log
	log           logBuffer
	cmd           *exec.Cmd // nil while stopped
	ended         chan struct{}
	err           error // of Wait, once ended is closed
}

// Run starts the program at binary, which Build has made, and waits until it is
// ready. dir takes its configuration, and the cache where o names none. Whoever
// calls it ends it by Stop or Kill.
func Run(binary, dir string, o Options) (*Process, error) {
	p := &Process{Dir: o.Dir, binary: binary}
	if p.Dir == "" {
		p.Dir = filepath.Join(dir, "cache")
	}
	p.setEnv(dir, o.Env)
	if err := p.start(dir, o); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *Process) setEnv(home string, more []string) {
	p.env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "GORACE=halt_on_error=1 atexit_sleep_ms=0"}, more...)
}

// start chooses ports and launches. A port that is free now may be another's a
// moment later.
func (p *Process) start(dir string, o Options) (err error) {
	p.ulimit, p.output = o.Ulimit, o.Output
	for tries := 1; ; tries++ {
		if p.listen, p.admin, err = freeAddresses(); err != nil {
			return err
		}
		if p.config, err = writeConfig(dir, p, o); err != nil {
			return err
		}
		if err = p.Launch(); err == nil || tries == 5 || !strings.Contains(p.Log(), "is taken by another program") {
			return err
		}
	}
}

// Launch starts the process, which has been stopped or killed, with the same
// configuration, ports and cache directory, and waits for /readyz.
func (p *Process) Launch() error {
	cmd := exec.Command(p.binary, "serve", "--config", p.config)
	if p.ulimit != "" {
		cmd = exec.Command("/bin/sh", "-c", "ulimit "+p.ulimit+` && exec "$0" "$@"`, p.binary, "serve", "--config", p.config)
	}
	cmd.Env = p.env
	cmd.Dir = filepath.Dir(p.config)
	cmd.Stdout, cmd.Stderr = &p.log, &p.log
	if p.output != nil {
		cmd.Stdout, cmd.Stderr = p.output, p.output
	}
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
	defer c.CloseIdleConnections()
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
func (p *Process) URL() string { return "http://" + p.listen }

// Host is URL's host and port.
func (p *Process) Host() string { return p.listen }

// AdminURL is the operator's listener, without a trailing slash.
func (p *Process) AdminURL() string { return "http://" + p.admin }

// AdminClient gives a client that shows the operator's listener the token of the
// running process. The token is read for each request: a restart makes a new one.
func (p *Process) AdminClient() *http.Client {
	return &http.Client{Transport: withToken{p}, Timeout: patience}
}

type withToken struct{ p *Process }

func (w withToken) RoundTrip(req *http.Request) (*http.Response, error) {
	token, err := admin.ReadToken(w.p.AdminTokenFile())
	if err != nil {
		return nil, err
	}
	req = req.Clone(req.Context())
	req.Header.Set("Authorization", "Bearer "+token.Secret)
	return http.DefaultTransport.RoundTrip(req)
}

// AdminTokenFile is the path of the file with the token of the operator's listener.
func (p *Process) AdminTokenFile() string { return filepath.Join(p.Dir, admin.TokenFile) }

// PID is the process; 0 while it is stopped.
func (p *Process) PID() int {
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// Log is what the process has written so far: the last MiB of it.
func (p *Process) Log() string { return p.log.String() }

// Stop ends the process by SIGTERM and waits for it. Any exit code but 0 is an
// error.
func (p *Process) Stop() error {
	if p.cmd == nil {
		return nil
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop the proxy: %w", err)
	}
	if err := p.wait(); err != nil {
		return err
	}
	if p.err != nil {
		return fmt.Errorf("the proxy ended with %w", p.err)
	}
	return nil
}

// Kill ends the process by SIGKILL, as a crash does, and waits for it.
func (p *Process) Kill() error {
	if p.cmd == nil {
		return nil
	}
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill the proxy: %w", err)
	}
	return p.wait()
}

// Gone tells whether the process has ended though nobody ended it.
func (p *Process) Gone() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

func (p *Process) wait() (err error) {
	select {
	case <-p.ended:
	case <-time.After(patience):
		_ = p.cmd.Process.Kill() // it is an error anyway
		<-p.ended
		err = fmt.Errorf("the proxy has not ended after %s", patience)
	}
	p.cmd = nil
	return err
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
