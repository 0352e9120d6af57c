package app

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/configs"
	"github.com/entrepot-dev/entrepot/doctor"
)

func TestDoctorWritesTheConfigurationOfAClientOnce(t *testing.T) {
	r := startServing(t, nil)
	root := t.TempDir()
	path := filepath.Join(root, "etc/docker/daemon.json")
	t.Setenv("DOCKER_HOST", "") // no daemon of this machine
	// From an engine that used the classic image store, to which daemon.json alone counts.
	if err := os.MkdirAll(filepath.Join(root, "var/lib/docker/overlay2/l"), 0o755); err != nil {
		t.Fatal(err)
	}
	doctor := func(more ...string) (e examined, got result) {
		t.Helper()
		got = runCommand(nil, append([]string{"doctor", "--output", "json", "--url", r.url, "--client", "docker", "--root", root}, more...)...)
		if got.code != 0 {
			t.Errorf("%v: %+v", more, got)
		}
		if err := json.Unmarshal([]byte(got.stdout), &e); err != nil || len(e.Files) != 1 {
			t.Fatalf("%v: %s", err, got.stdout)
		}
		return e, got
	}
	e, _ := doctor()
	if f := e.Files[0]; f.Exists || f.Complete || f.Written || !strings.Contains(f.Says, r.url) || f.Path != path {
		t.Errorf("want what to make of a file that is not there, got %+v", f)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(`{"http-proxy": "http://user:hunter2@squid:3128"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, write := range [][]string{nil, {"--write"}} {
		if _, got := doctor(write...); strings.Contains(got.stdout+got.stderr, "hunter2") {
			t.Errorf("what others have put in is shown: %s", got.stdout)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(text), r.url) || !strings.Contains(string(text), "hunter2") {
		t.Errorf("want the mirror beside what was there, got %s, %v", text, err)
	}
	e, _ = doctor("--write")
	if f := e.Files[0]; !f.Complete || f.Written || f.Backup != "" {
		t.Errorf("there was nothing to do, got %+v", f)
	}

	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := runCommand(nil, "doctor", "--url", r.url, "--client", "docker", "--root", root, "--write")
	if got.code != 1 || !strings.Contains(got.stdout, "no JSON object") || !strings.Contains(got.stdout, `"registry-mirrors": ["`+r.url+`"]`) {
		t.Errorf("want why it is left alone, and what to put in: %+v", got)
	}
	for _, args := range [][]string{{"--client", "rkt"}, {"--write"}, {"--root", root}, {"--client"}} {
		if got := runCommand(nil, append([]string{"doctor"}, args...)...); got.code != 2 {
			t.Errorf("%v: want exit code 2, got %+v", args, got)
		}
	}
}

// A relative --root is in the working directory, and never the real root.
func TestDoctorWritesBelowARelativeRoot(t *testing.T) {
	r := startServing(t, nil)
	t.Setenv("DOCKER_HOST", "") // no daemon of this machine
	t.Chdir(t.TempDir())
	if err := os.MkdirAll("rt/var/lib/docker/overlay2/l", 0o755); err != nil {
		t.Fatal(err)
	}
	got := runCommand(nil, "doctor", "--url", r.url, "--client", "docker", "--no-pull", "--root", "rt", "--write")
	if text, err := os.ReadFile("rt/etc/docker/daemon.json"); err != nil || !strings.Contains(string(text), r.url) {
		t.Errorf("want the file below rt: %v, %s\n%+v", err, text, got)
	}
}

// TestDoctorPullsNothingForAnotherRoot has a client in the path that notes that it ran.
func TestDoctorPullsNothingForAnotherRoot(t *testing.T) {
	environ := []string{"ENTREPOT_CACHE_OFFLINE=true"} // no upstream is asked
	r := startServing(t, environ)
	bin, root := t.TempDir(), t.TempDir()
	ran := filepath.Join(bin, "ran")
	if err := os.WriteFile(filepath.Join(bin, "podman"), []byte("#!/bin/sh\n: >"+ran+"\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	args := []string{"doctor", "--url", r.url, "--admin-listen", strings.TrimPrefix(r.admin, "http://"), "--cache-dir", filepath.Join(r.dir, "cache"), "--client", "podman", "--root", root}
	got := runCommand(environ, args...)
	if _, err := os.Stat(ran); err == nil || got.code != 0 || !strings.Contains(got.stdout, "nothing was pulled: the podman of this host does not read the files in "+root) {
		t.Errorf("want why nothing was pulled, and no pull: %v, %+v", err, got)
	}
	got = runCommand(environ, append(args, "--image", "app")...)
	if _, err := os.Stat(ran); err != nil {
		t.Errorf("want the pull of the image that was named: %v, %+v", err, got)
	}
}

// TestDoctorAsksNothingOffline gives the flag while the proxy is online.
func TestDoctorAsksNothingOffline(t *testing.T) {
	var asked atomic.Bool
	upstream := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Store(true) }))
	defer upstream.Close()
	text := "upstreams:\n  docker.io: {endpoints: [" + upstream.URL + "]}\n"
	for name := range configs.Default().Upstreams {
		if name != "docker.io" {
			text += "  " + name + ": null\n"
		}
	}
	file := writeFile(t, "entrepot.yml", text)
	r := startServing(t, nil, "--config", file)
	args := []string{"doctor", "--config", file, "--admin-listen", strings.TrimPrefix(r.admin, "http://"), "--cache-dir", filepath.Join(r.dir, "cache")}
	asked.Store(false)
	if got := runCommand(nil, append(args, "--offline")...); asked.Load() || !strings.Contains(got.stdout, "offline") {
		t.Errorf("want no request to the upstream: %+v", got)
	}
	if got := runCommand(nil, args...); !asked.Load() {
		t.Errorf("want a request without the flag: %+v", got)
	}
}

// TestDoctorLooksAtTheListenerOfTheRunningProxy has a proxy that a flag gave another address.
func TestDoctorLooksAtTheListenerOfTheRunningProxy(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	free.Close()
	environ := []string{"ENTREPOT_CACHE_OFFLINE=true", "ENTREPOT_LISTEN=127.0.0.1:1"}
	r := startServing(t, environ, "--listen", address)
	got := runCommand(environ, "doctor", "--admin-listen", strings.TrimPrefix(r.admin, "http://"), "--cache-dir", filepath.Join(r.dir, "cache"))
	if !strings.Contains(got.stdout, "http://"+address+" answers as Entrepot") || strings.Contains(got.stdout, "nothing listens") {
		t.Errorf("want the address of the running proxy: %+v", got)
	}
}

// TestDoctorSaysThatACertificateExpired looks at listeners whose certificates are not valid now.
func TestDoctorSaysThatACertificateExpired(t *testing.T) {
	for _, c := range []struct {
		left         time.Duration
		want, advice string
	}{
		{-48 * time.Hour, "expired on ", "replace the files of tls.cert and tls.key"},
		{48 * time.Hour, "unknown authority", "an authority that this machine and its clients trust"},
	} {
		cert, key := writePair(t, t.TempDir(), c.left)
		file := writeFile(t, "entrepot.yml", "tls: {cert: "+cert+", key: "+key+"}\n")
		r := startServing(t, nil, "--config", file)
		at := strings.Replace(r.url, "http://127.0.0.1", "https://localhost", 1)
		got := runCommand(nil, "doctor", "--url", at)
		if !strings.Contains(got.stdout, c.want) || !strings.Contains(got.stdout, c.advice) {
			t.Errorf("want %q and %q: %+v", c.want, c.advice, got)
		}
	}
}

func TestFindingsMoveNoCursor(t *testing.T) {
	var b strings.Builder
	if err := writeFindings(&b, []doctor.Finding{{Check: "docker pull", Status: doctor.Failure, Seen: "it says \x1b[2J\rok\nand \x1b[1mmore", Advice: "see \x1b]0;x\a"}}); err != nil {
		t.Fatal(err)
	}
	if got := b.String(); strings.ContainsAny(got, "\x1b\r\a") || !strings.Contains(got, "it says ?[2J?ok\n") || !strings.Contains(got, "and ?[1mmore\n") {
		t.Errorf("printed %q", got)
	}
}
