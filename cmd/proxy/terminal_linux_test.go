package main

import (
	"bufio"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestProgramOnATerminal starts the program as a person does, on a terminal of 80 columns:
// the banner says what it takes, and a request that fails is one short line.
func TestProgramOnATerminal(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := ln.Addr().String()
	_ = ln.Close()
	file := writeFile(t, "entrepot.yml", "upstreams: {docker.io: {endpoints: [\"http://"+dead+"\"]}}\n")
	master, slave := openTerminal(t)
	if err := unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "--config", file, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--cache-dir", t.TempDir())
	cmd.Env = []string{asProgram + "=1"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = slave.Close()
	defer func() { _ = cmd.Process.Kill() }() // it has ended, unless the test has failed

	lines := bufio.NewScanner(master) // the end of the program ends it, with EIO
	var shown []string
	until := func(what string) string {
		t.Helper()
		for lines.Scan() {
			line := strings.TrimRight(lines.Text(), "\r")
			shown = append(shown, line)
			if strings.Contains(line, what) {
				return line
			}
		}
		t.Fatalf("the program ended before it said %q:\n%s", what, strings.Join(shown, "\n"))
		return ""
	}
	_, url, _ := strings.Cut(until("listens  "), "listens  ")
	until("serving")
	for _, want := range []string{`disk     /.*, up to [0-9.]+ [GT]iB: 80% of /`, `login    nobody has to log in`, `clients  on this machine only`} {
		if !regexp.MustCompile(want).MatchString(strings.Join(shown, "\n")) {
			t.Errorf("want %q in the banner:\n%s", want, strings.Join(shown, "\n"))
		}
	}
	for range 2 { // the second request meets an open circuit breaker
		shown = nil
		if status, body := get(t, url+"/v2/library/nginx/manifests/1"); status < 500 {
			t.Errorf("want a failure, got %d %s", status, body)
		}
		get(t, url+"/v2/")
		until(" ping")
		if len(shown) != 2 || !regexp.MustCompile(`^\d\d:\d\d:\d\d (WARN|INFO) 50\d docker.io/library/nginx:1: `+regexp.QuoteMeta(dead)+` refuses the connection`).MatchString(shown[0]) {
			t.Errorf("want one line about the failed request, got\n%s", strings.Join(shown, "\n"))
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, master)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
