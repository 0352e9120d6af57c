package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// others pulls a small blob and a manifest again and again, as the others do
// who are not to notice anything, and gives the median time of a pull.
func others(t *testing.T, p *proxy.Proxy, paths ...string) time.Duration {
	t.Helper()
	var took []time.Duration
	for range 100 {
		begun := time.Now()
		for _, path := range paths {
			get(t, p, path)
		}
		took = append(took, time.Since(begun))
	}
	slices.Sort(took)
	return took[len(took)/2]
}

// unmoved fails where others wait much longer than they did alone. A machine
// that is busy makes ten of one; someone who is waited for makes thousands.
func unmoved(t *testing.T, what string, alone, among time.Duration) {
	t.Helper()
	t.Logf("median time of a pull: %v alone, %v among %s (%.1fx)", alone, among, what, float64(among)/float64(alone))
	if among > 50*alone+50*time.Millisecond {
		t.Errorf("a pull takes %v among %s, and %v alone", among, what, alone)
	}
}

// dial opens a bare connection with a small buffer on this side.
func dial(t *testing.T, p *proxy.Proxy) *net.TCPConn {
	t.Helper()
	c, err := (&net.Dialer{Timeout: limit}).DialContext(t.Context(), "tcp", p.Host())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	tcp := c.(*net.TCPConn)
	_ = tcp.SetReadBuffer(32 << 10) // a wish
	return tcp
}

// residentBytes is what the process has in memory.
func residentBytes(t *testing.T, pid int) int64 {
	t.Helper()
	n, err := resident(pid)
	if errors.Is(err, fs.ErrNotExist) {
		t.Skipf("there is no /proc to read the memory of a process from: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// resident is residentBytes for a process that may be ending, which has no memory.
func resident(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("no VmRSS in /proc/%d/status", pid)
}

// smallPaths pushes and pulls what others pull.
func smallPaths(t *testing.T, h *hub.Hub, p *proxy.Proxy) []string {
	t.Helper()
	_, _, blob := blobOf(h, "library/small", 9, 10_000)
	paths := []string{"/v2/library/small/manifests/1.0", blob}
	for _, path := range paths {
		get(t, p, path)
	}
	return paths
}

func TestAThousandSlowReadersStopNobodyAndTakeLittleMemory(t *testing.T) {
	const readers, rate, perReader = 1000, 100_000, 64 << 10
	h, p := start(t, believing)
	small := smallPaths(t, h, p)
	_, content, path := blobOf(h, "library/big", 1, 16<<20)
	get(t, p, path)
	p.WaitIdle(t)
	alone := others(t, p, small...)
	before := residentBytes(t, p.PID())

	ctx, cancel := context.WithCancel(t.Context())
	var ready, ended sync.WaitGroup
	var taken, broken atomic.Int64
	for range readers {
		c := dial(t, p)
		ready.Add(1)
		ended.Go(func() {
			if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: cache\r\n\r\n", path); err != nil {
				broken.Add(1)
				ready.Done()
				return
			}
			b := make([]byte, rate/5)
			for first := true; ctx.Err() == nil; first = false {
				n, err := io.ReadFull(c, b)
				taken.Add(int64(n))
				if first {
					ready.Done()
				}
				if err != nil {
					broken.Add(1)
					return
				}
				time.Sleep(time.Second / 5) // this is what makes it slow
			}
		})
	}
	ready.Wait()
	if n := p.Metrics(t).Sum("entrepot_requests_in_flight"); n < readers {
		t.Errorf("want %d transfers under way, got %v", readers, n)
	}
	among := others(t, p, small...)
	during := residentBytes(t, p.PID())
	cancel()
	ended.Wait()
	unmoved(t, "1000 slow readers", alone, among)
	each := (during - before) / readers
	t.Logf("memory: %d MiB before, %d MiB with %d readers of a blob of %d MiB: %d bytes each", before>>20, during>>20, readers, len(content)>>20, each)
	if each > perReader && !proxy.Raced {
		t.Errorf("want at most %d bytes for each reader, got %d", perReader, each)
	}
	if n := broken.Load(); n > 0 {
		t.Errorf("%d of the slow readers were cut off; all took %d bytes", n, taken.Load())
	}
}

func TestFiveHundredHalfSentRequestsStopNobodyAndAreEnded(t *testing.T) {
	const senders = 500
	h, p := start(t, "limits: {header_timeout: 3s}\n"+believing)
	small := smallPaths(t, h, p)
	alone := others(t, p, small...)
	var conns []net.Conn
	for range senders {
		c := dial(t, p)
		if _, err := io.WriteString(c, "GET /v2/library/small/manifests/1.0 HTTP/1.1\r\nHost: ca"); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	unmoved(t, "500 half-sent requests", alone, others(t, p, small...))
	for i, c := range conns {
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatalf("half-sent request %d: %v", i, err)
		}
		a := answer{method: "half a GET", status: res.StatusCode, header: res.Header}
		a.body, a.err = io.ReadAll(res.Body)
		a.wantError(t, http.StatusRequestTimeout, "UNSUPPORTED")
		if !res.Close {
			t.Errorf("half-sent request %d: the connection is kept", i)
		}
	}
	until(t, "the connections to be closed", func() bool { return p.Metrics(t).Sum("entrepot_connections") < senders/10 })
}

// A reader that takes nothing is cut off; one that takes a little now and then,
// for much longer, is not.
func TestAReaderThatStopsIsCutOffAndASlowOneIsNot(t *testing.T) {
	t.Parallel()
	const stall = 2 * time.Second
	h, p := start(t, fmt.Sprintf("limits: {stall_timeout: %s}\n%s", stall, believing))
	_, content, path := blobOf(h, "library/big", 1, 64<<20)
	get(t, p, path)
	stopped, slow := dial(t, p), dial(t, p)
	for _, c := range []net.Conn{stopped, slow} {
		if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: cache\r\nConnection: close\r\n\r\n", path); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "both to be answered", func() bool { return p.Metrics(t).Sum("entrepot_requests_in_flight") == 2 })
	r := bufio.NewReaderSize(slow, 16<<10)
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 0, len(content))
	b := make([]byte, 16<<10)
	for begun := time.Now(); time.Since(begun) < 4*stall; time.Sleep(stall / 20) {
		n, err := io.ReadFull(res.Body, b)
		got = append(got, b[:n]...)
		if err != nil {
			t.Fatalf("the slow reader was cut off after %d bytes: %v", len(got), err)
		}
	}
	until(t, "the one that stopped to be cut off", func() bool { return p.Metrics(t).Sum("entrepot_requests_in_flight") <= 1 })
	rest, err := io.ReadAll(res.Body)
	if err != nil {
		t.Errorf("the slow reader, hurrying at the end: %v", err)
	}
	wantBytes(t, "the slow reader's", content, append(got, rest...))
	part, _ := io.ReadAll(stopped) // what the system still held for it
	if len(part) >= len(content) {
		t.Error("the one that stopped got it all")
	}
}

func TestWhatIsOneTooManyIsRefusedInWords(t *testing.T) {
	h, p := start(t, "limits: {connections: 20, connections_per_address: 10, requests: 2}\n"+believing)
	_, _, path := blobOf(h, "library/big", 1, 64<<20)
	get(t, p, path)
	raw.CloseIdleConnections()
	one := func() answer {
		c := dial(t, p)
		if _, err := io.WriteString(c, "GET /v2/library/big/manifests/1.0 HTTP/1.1\r\nHost: cache\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		a := answer{method: "GET", url: "/v2/library/big/manifests/1.0", status: res.StatusCode, header: res.Header}
		a.body, a.err = io.ReadAll(res.Body)
		return a
	}
	for range 2 { // two that take their time
		if _, err := fmt.Fprintf(dial(t, p), "GET %s HTTP/1.1\r\nHost: cache\r\n\r\n", path); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "both to be answered", func() bool { return p.Metrics(t).Sum("entrepot_requests_in_flight") == 2 })
	a := one()
	a.wantError(t, http.StatusServiceUnavailable, "UNAVAILABLE")
	a.wantHeader(t, "Retry-After", "2")
	until(t, "the address's connections to be used up", func() bool { a = one(); return a.status == http.StatusTooManyRequests })
	a.wantError(t, http.StatusTooManyRequests, "TOOMANYREQUESTS")
	a.wantHeader(t, "Retry-After", "2")
	m := p.Metrics(t)
	for _, name := range []string{"requests", "connections_per_address"} {
		if m.Sum("entrepot_refused_total", "limit", name) < 1 {
			t.Errorf("what limits.%s refused is not counted", name)
		}
	}
	if n := m.Sum("entrepot_connections"); n != 10 {
		t.Errorf("want 10 connections, got %v", n)
	}
}

// The process is given fewer files than its limits ask for. Whoever comes beyond
// them is refused, and what is cached is served to those who are in.
func TestFewFilesLowerTheLimits(t *testing.T) {
	const files = 300
	h := hub.New(t, hub.Options{})
	p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Config: believing, Ulimit: fmt.Sprintf("-n %d", files)})
	until(t, "the log says it", func() bool { return strings.Contains(p.Log(), "the limits were lowered") })
	m := p.Metrics(t)
	if n := m.Sum("entrepot_limit", "limit", "files"); n != files {
		t.Errorf("want a limit of %d files, got %v", files, n)
	}
	allowed := m.Sum("entrepot_limit", "limit", "connections")
	if allowed < 1 || allowed+m.Sum("entrepot_limit", "limit", "requests") > files {
		t.Errorf("%v connections with %d files", allowed, files)
	}
	_, content, path := blobOf(h, "library/big", 1, 1<<20)
	wantBytes(t, "before the crowd", content, get(t, p, path).body)
	var crowd []net.Conn
	for range 2 * files {
		crowd = append(crowd, dial(t, p))
	}
	until(t, "refusals", func() bool { return p.Metrics(t).Sum("entrepot_refused_total") > 0 })
	wantBytes(t, "within the crowd, on a kept connection", content, get(t, p, path).body)
	for _, c := range crowd {
		_ = c.Close()
	}
	until(t, "the crowd to be gone", func() bool { return p.Metrics(t).Sum("entrepot_connections") < 10 })
	raw.CloseIdleConnections()
	wantBytes(t, "after the crowd", content, get(t, p, path).body)
	if n := p.Metrics(t).Sum("entrepot_refused_total", "limit", "files"); n > 0 {
		t.Errorf("%v connections met a shortage of files in spite of the limits", n)
	}
}

func TestTheSoftLimitOfFilesIsRaisedToTheHardOne(t *testing.T) {
	h := hub.New(t, hub.Options{})
	p := proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Ulimit: "-n 2000 && ulimit -Sn 100"})
	if n := p.Metrics(t).Sum("entrepot_limit", "limit", "files"); n < 1999 { // the Go runtime leaves one out
		t.Errorf("want the hard limit of 2000 files, got %v", n)
	}
}
