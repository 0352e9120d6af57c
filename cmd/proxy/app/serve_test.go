package app

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// asProgram in the environment makes the test's binary be the program itself.
const asProgram = "TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		Main()
		return // not reached: main exits
	}
	os.Exit(m.Run())
}

// running is a proxy that serves in this process.
type running struct {
	url, admin string
	dir        string // that of its directories
	signals    chan os.Signal
	ended      chan int
}

// startServing serves until the test ends and gives what its log says of it.
func startServing(t *testing.T, environ []string, args ...string) *running {
	t.Helper()
	r := &running{signals: make(chan os.Signal, 2), ended: make(chan int, 1), dir: t.TempDir()}
	stderr, write := io.Pipe()
	p := process{
		args:    append([]string{"serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--cache-dir", filepath.Join(r.dir, "cache")}, args...),
		environ: environ, stdout: io.Discard, stderr: write,
		signals: func() (<-chan os.Signal, func()) { return r.signals, func() {} },
	}
	// It ends with the command, which the signals below end at the latest.
	go func() {
		code := p.run()
		_ = write.Close()
		r.ended <- code
	}()
	t.Cleanup(func() {
		r.signals <- syscall.SIGTERM
		if code, open := <-r.ended; open && code != 0 {
			t.Errorf("the proxy ended with %d", code)
		}
	})
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		var line struct{ Message, Listen, Admin string }
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatalf("want JSON lines, got %q", lines.Text())
		}
		if line.Message == "serving" {
			r.url, r.admin = "http://"+line.Listen, "http://"+line.Admin
			go func() { _, _ = io.Copy(io.Discard, stderr) }() // ends with the command
			return r
		}
	}
	t.Fatal("the proxy ended before it served")
	return nil
}

// wait gives the exit code.
func (r *running) wait() int {
	code := <-r.ended
	close(r.ended)
	return code
}

func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestServeAnswersOnBothListeners(t *testing.T) {
	r := startServing(t, nil)
	for url, want := range map[string]string{
		r.url + "/v2/":       "{}",
		r.admin + "/healthz": "ok\n",
		r.admin + "/readyz":  "ok\n",
		r.admin + "/metrics": "entrepot_build_info",
	} {
		if status, body := get(t, url); status != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: want 200 and %q, got %d and %q", url, want, status, body)
		}
	}
	got := runCommand(nil, "healthcheck", "--admin-listen", strings.TrimPrefix(r.admin, "http://"))
	if got.code != 0 || got.stdout != "ok\n" {
		t.Errorf("healthcheck: want ok, got %+v", got)
	}
	asJSON := runCommand(nil, "healthcheck", "--admin-listen", strings.TrimPrefix(r.admin, "http://"), "-o", "json")
	if asJSON.code != 0 || !strings.Contains(asJSON.stdout, `"status": "ok"`) {
		t.Errorf("healthcheck -o json: %+v", asJSON)
	}
	// This command's own settings have another directory of the cache.
	for args, want := range map[string]string{"": "dir: ", "-o json": `"dir": "`} {
		shown := runCommand(nil, append([]string{"config", "show", "--running", "--admin-listen", strings.TrimPrefix(r.admin, "http://")}, strings.Fields(args)...)...)
		if shown.code != 0 || !strings.Contains(shown.stdout, want+filepath.Join(r.dir, "cache")) {
			t.Errorf("config show --running %s: want the cache in %s, got %+v", args, r.dir, shown)
		}
	}
}

// A transfer that runs when the signal comes is finished; clients that look
// for a healthy one are sent elsewhere meanwhile.
func TestSignalLetsARunningTransferFinish(t *testing.T) {
	const manifest = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}`
	asked, release := make(chan struct{}, 8), make(chan struct{})
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-release
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		_, _ = io.WriteString(w, manifest)
	}))
	defer upstream.Close()
	file := writeFile(t, "entrepot.yml", "upstreams: {docker.io: {endpoints: [\""+upstream.URL+"\"]}}\n")
	r := startServing(t, nil, "--config", file)

	type answer struct {
		status int
		body   string
	}
	answered := make(chan answer, 1)
	go func() {
		resp, err := http.Get(r.url + "/v2/library/app/manifests/latest")
		if err != nil {
			answered <- answer{body: err.Error()}
			return
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		answered <- answer{resp.StatusCode, string(b)}
	}()
	<-asked
	r.signals <- syscall.SIGTERM
	for {
		if status, _ := get(t, r.admin+"/readyz"); status == http.StatusServiceUnavailable {
			break
		}
	}
	if status, _ := get(t, r.admin+"/healthz"); status != http.StatusOK {
		t.Errorf("/healthz while shutting down: want 200, got %d", status)
	}
	close(release)
	if got := <-answered; got != (answer{200, manifest}) {
		t.Errorf("want the manifest, got %+v", got)
	}
	if code := r.wait(); code != 0 {
		t.Errorf("want exit code 0, got %d", code)
	}
}

func TestWhatKeepsItFromServingIsOneSentence(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	once, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free := once.Addr().String()
	once.Close()
	file := writeFile(t, "file", "not a directory")
	cert, _ := writePair(t, t.TempDir(), time.Hour)
	for _, c := range []struct {
		name, config string
		environ      []string
		args         []string
		want         string
	}{
		{name: "port", args: []string{"--listen", taken.Addr().String()}, want: "listen: " + taken.Addr().String() + " is taken by another program; stop that one, or set listen (--listen) to another address"},
		{name: "admin port", args: []string{"--admin-listen", taken.Addr().String()}, want: "admin.listen: " + taken.Addr().String() + " is taken by another program; stop that one, or set admin.listen (--admin-listen) to another address"},
		{name: "one port", args: []string{"--listen", free, "--admin-listen", free}, want: "admin.listen: " + free + " has the port of listen, " + free + "; set one of them (--admin-listen, --listen) to another"},
		{name: "directory", args: []string{"--cache-dir", filepath.Join(file, "cache")}, want: "set cache.dir (--cache-dir, ENTREPOT_CACHE_DIR) to a directory that this user may write to"},
		{name: "certificate", config: "tls: {cert: " + cert + ", key: /none.key}", want: "tls.key: open /none.key: no such file or directory; set it to a PEM file that entrepot can read"},
		{name: "password file", config: "upstreams: {ghcr.io: {credentials: {username: a, password_file: /none}}}", want: "upstreams.ghcr.io.credentials.password_file: read the password: open /none: no such file or directory"},
		{name: "password variable", config: "upstreams: {ghcr.io: {credentials: {username: a, password_env: HUB_PASSWORD}}}", environ: []string{"HUB_PASSWORD="}, want: "upstreams.ghcr.io.credentials.password_env: the environment variable HUB_PASSWORD is not set, or empty"},
		{name: "docker config", config: "upstreams: {ghcr.io: {credentials: {docker_config: /none.json}}}", want: "upstreams.ghcr.io.credentials.docker_config: "},
		{name: "roots", config: "upstreams: {ghcr.io: {tls: {ca: /none.pem}}}", want: "upstreams.ghcr.io.tls.ca"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := writeFile(t, "entrepot.yml", "log: {format: json}\n"+c.config+"\n")
			args := append([]string{"serve", "--config", config, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--cache-dir", t.TempDir()}, c.args...)
			got := runCommand(c.environ, args...)
			if got.code != 1 || !strings.Contains(got.stderr, c.want) || strings.Count(got.stderr, "\n") != 1 {
				t.Errorf("want exit code 1 and one line with %q, got %+v", c.want, got)
			}
		})
	}
}

func TestCredentialsComeFromWhereTheConfigurationSays(t *testing.T) {
	asked := make(chan string, 4)
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, ok := r.BasicAuth()
		if !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		asked <- user + ":" + password
		w.WriteHeader(http.StatusNotFound)
	}))
	defer upstream.Close()
	password := writeFile(t, "password", "from-file\n")
	for name, c := range map[string]struct {
		credentials string
		want        string
	}{
		"inline":      {`{username: alice, password: inline}`, "alice:inline"},
		"file":        {`{username: alice, password_file: ` + password + `}`, "alice:from-file"},
		"environment": {`{username: alice, password_env: REGISTRY_PASSWORD}`, "alice:from-env"},
	} {
		t.Run(name, func(t *testing.T) {
			file := writeFile(t, "entrepot.yml", "upstreams: {docker.io: {endpoints: [\""+upstream.URL+"\"], credentials: "+c.credentials+"}}\n")
			r := startServing(t, []string{"REGISTRY_PASSWORD=from-env"}, "--config", file)
			if status, body := get(t, r.url+"/v2/library/app/manifests/latest"); status != http.StatusNotFound {
				t.Errorf("want 404, got %d %s", status, body)
			}
			if got := <-asked; got != c.want {
				t.Errorf("want %s, got %s", c.want, got)
			}
		})
	}
}

// These run main in a process of its own: what only the system can tell.
func TestProgramEndsWithItsExitCode(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
	}{
		{[]string{"--version"}, 0},
		{[]string{"--listen", "nowhere"}, 2},
		{[]string{"--nosuch"}, 2},
	} {
		cmd := exec.Command(os.Args[0], c.args...)
		cmd.Env = []string{asProgram + "=1"}
		out, _ := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != c.code {
			t.Errorf("%v: want %d, got %d: %s", c.args, c.code, got, out)
		}
	}
}

func TestProgramServesUntilASignalAndEndsWithZero(t *testing.T) {
	for _, signal := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		dir := t.TempDir()
		cmd := exec.Command(os.Args[0], "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--cache-dir", dir)
		cmd.Env = []string{asProgram + "=1"}
		var stdout bytes.Buffer
		cmd.Stdout = &stdout
		stderr, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// Nobody reads this on a terminal: every line is JSON, and there is no banner.
		lines := bufio.NewScanner(stderr)
		var url, last string
		for lines.Scan() {
			var line struct{ Message, Listen string }
			if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
				t.Errorf("a line of the log is not JSON: %q: %v", lines.Text(), err)
			}
			last = line.Message
			if line.Message != "serving" {
				continue
			}
			url = "http://" + line.Listen
			if status, body := get(t, url+"/v2/"); status != 200 {
				t.Errorf("%s: want 200, got %d %s", url, status, body)
			}
			if err := cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("after %s: want exit code 0, got %v", signal, err)
		}
		if url == "" || last != "stopped" || stdout.Len() > 0 {
			t.Errorf("after %s: want an end in order and nothing on stdout; the last line was %q, stdout:\n%s", signal, last, stdout.String())
		}
	}
}

func TestProgramEndsAtOnceOnASecondSignal(t *testing.T) {
	asked, release := make(chan struct{}, 8), make(chan struct{})
	upstream := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		asked <- struct{}{}
		<-release
	}))
	defer upstream.Close()
	defer close(release)
	file := writeFile(t, "entrepot.yml", "shutdown_timeout: 1h\nupstreams: {docker.io: {endpoints: [\""+upstream.URL+"\"], header_timeout: 1h}}\n")
	cmd := exec.Command(os.Args[0], "--config", file, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--cache-dir", t.TempDir())
	cmd.Env = []string{asProgram + "=1"}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stderr)
	// until reads the log up to a message, and gives the line.
	until := func(message string) (line struct{ Message, Listen string }) {
		for lines.Scan() {
			_ = json.Unmarshal(lines.Bytes(), &line) // the last line is a sentence
			if strings.Contains(lines.Text(), message) {
				return line
			}
		}
		t.Fatalf("the log ends without %q", message)
		return line
	}
	url := "http://" + until("serving").Listen
	go func() {
		if resp, err := http.Get(url + "/v2/library/app/manifests/latest"); err == nil {
			_ = resp.Body.Close()
		}
	}()
	<-asked
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	until("shutting down")
	// One that comes right after the first does not count.
	again := time.NewTicker(sameSignal)
	defer again.Stop()
	ended := make(chan struct{})
	defer func() { <-ended }()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		defer close(ended)
		for {
			select {
			case <-again.C:
				_ = cmd.Process.Signal(syscall.SIGTERM) // fails once it has ended
			case <-stop:
				return
			}
		}
	}()
	until("ended by a second signal")
	_, _ = io.Copy(io.Discard, stderr)
	_ = cmd.Wait() // its word is the exit code
	if got := cmd.ProcessState.ExitCode(); got != 1 {
		t.Errorf("want exit code 1, got %d", got)
	}
}

func TestStartTouchesNoUpstream(t *testing.T) {
	var connections atomic.Int32
	upstream := httptest.NewUnstartedServer(http.NotFoundHandler())
	upstream.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	upstream.Start()
	defer upstream.Close()
	file := writeFile(t, "entrepot.yml", "upstreams: {docker.io: {endpoints: [\""+upstream.URL+"\"], credentials: {username: alice, password: secret}}}\n")
	r := startServing(t, nil, "--config", file)
	for _, url := range []string{r.url + "/v2/", r.url + "/v2/_catalog", r.admin + "/healthz", r.admin + "/readyz", r.admin + "/metrics"} {
		if status, body := get(t, url); status != http.StatusOK {
			t.Errorf("%s: want 200, got %d %s", url, status, body)
		}
	}
	if got := connections.Load(); got != 0 {
		t.Errorf("want no connection to the upstream, got %d", got)
	}
	_, _ = get(t, r.url+"/v2/library/app/manifests/latest")
	if connections.Load() == 0 {
		t.Error("the test sees no connections at all")
	}
}
