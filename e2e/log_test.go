package e2e

import (
	"bufio"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// fifo makes a FIFO and gives both of its ends, of which the first reads.
func fifo(t *testing.T) (reader, writer *os.File) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	// One end cannot be opened without the other, unless it does not block.
	reader, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	writer, err = os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = reader.Close(), writer.Close() })
	return reader, writer
}

// loggedTo runs a hub and the program as its mirror, which logs to output.
func loggedTo(t *testing.T, output *os.File, ulimit string) (*hub.Hub, *proxy.Proxy) {
	t.Helper()
	h := hub.New(t, hub.Options{})
	return h, proxy.Start(t, proxy.Options{
		Upstreams: map[string]*hub.Hub{"docker.io": h}, Config: believing + "\nlog: {format: console}", Output: output, Ulimit: ulimit,
	})
}

// wordy makes a line of the log as long as a client can.
var wordy = strings.Repeat("x", 8000)

// A log whose reader sleeps holds up no request, hit or miss, nor the readiness
// check, and not the end. The lines that are dropped are counted; once the reader
// takes some again, a line tells of them.
func TestALogReaderThatSleepsStopsNothing(t *testing.T) {
	reader, writer := fifo(t)
	h, p := loggedTo(t, writer, "")
	small := smallPaths(t, h, p)
	dropped := func() float64 { return p.Metrics(t).Sum("entrepot_log_lines_dropped_total") }
	fill := func() {
		was := dropped()
		for n := 0; dropped() == was && n < 100; n++ { // each line has about 700 bytes, the buffers megabytes
			for range 500 {
				get(t, p, small[0], "User-Agent", wordy)
			}
		}
		if dropped() == was {
			t.Errorf("lines beyond every buffer are not counted as dropped: %v before, the same after", was)
		}
	}
	fill()
	_, content, path := blobOf(h, "library/cold", 5, 1<<20)
	wantBytes(t, "a miss beside a log that nobody reads", content, get(t, p, path).body)
	if res, err := http.Get(p.AdminURL() + "/readyz"); err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("/readyz: want 200, got %v, %v", res, err)
	}

	// The reader wakes up.
	told := make(chan bool, 1)
	go func() { // ends with the reader
		lines := bufio.NewReader(reader)
		found := false
		for {
			line, err := lines.ReadString('\n')
			if strings.Contains(line, "log lines dropped") && !found {
				found = true
				told <- true
			}
			if err != nil {
				return
			}
		}
	}()
	select {
	case <-told:
	case <-time.After(limit):
		t.Error("no line of the log tells how many were dropped")
	}
}

// The program ends in order, with 0, while nobody reads its log.
func TestALogReaderThatSleepsDoesNotHoldUpTheEnd(t *testing.T) {
	_, writer := fifo(t)
	h, p := loggedTo(t, writer, "")
	small := smallPaths(t, h, p)
	for range 200 { // far more than a pipe holds
		get(t, p, small[0], "User-Agent", wordy)
	}
	p.Stop(t)
	// Nor the next start, though the pipe is full.
	if err := p.Launch(); err != nil {
		t.Fatal(err)
	}
	get(t, p, small[0])
}

// A log whose reader leaves ends nothing, neither a transfer that is under way,
// whatever the program's parent thinks of SIGPIPE.
func TestALogReaderThatLeavesEndsNothing(t *testing.T) {
	for name, shell := range map[string]string{"": "", "ignored by the parent": "-n 1024 && trap '' PIPE"} {
		t.Run(name, func(t *testing.T) {
			reader, writer := fifo(t)
			h, p := loggedTo(t, writer, shell)
			_, content, path := blobOf(h, "library/big", 3, 8<<20)
			res, err := open(t.Context(), p, http.MethodGet, path)
			if err != nil {
				t.Fatal(err)
			}
			half := make([]byte, len(content)/2)
			if _, err := io.ReadFull(res.Body, half); err != nil {
				t.Fatal(err)
			}
			_ = reader.Close()
			small := smallPaths(t, h, p)
			for range 300 {
				get(t, p, small[0])
			}
			rest, err := readAndClose(res.Body, nil)
			if err != nil {
				t.Error(err)
			}
			wantBytes(t, "a transfer while the log's reader left", content, append(half, rest...))
			if p.Gone() {
				t.Fatal("the program has ended with its log's reader")
			}
			until(t, "the lines that nobody took to be counted", func() bool { return p.Metrics(t).Sum("entrepot_log_lines_dropped_total") > 0 })
			p.Stop(t)
		})
	}
}

// The last line of a program that cannot start is not lost in a buffer.
func TestTheReasonWhyItDoesNotStartIsTheLastLine(t *testing.T) {
	h, p := start(t, "")
	_ = h
	second, err := proxy.Run(proxy.Binary(t), t.TempDir(), proxy.Options{Config: "listen: " + p.Host()})
	if err == nil {
		_ = second.Stop()
		t.Fatal("two programs listen at one address")
	}
	if !strings.Contains(err.Error(), "entrepot: listen: "+p.Host()+" is taken by another program") {
		t.Errorf("want the reason, got %v", err)
	}
}
