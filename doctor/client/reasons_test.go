package client

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http/httpproxy"
)

// wantReason checks that one of the reasons has words.
func wantReason(t *testing.T, found []Reason, words string) {
	t.Helper()
	for _, r := range found {
		if strings.Contains(r.Seen, words) {
			if r.Advice == "" {
				t.Errorf("%q has no advice", r.Seen)
			}
			return
		}
	}
	t.Errorf("want %q among %+v", words, found)
}

func TestAMirrorThatIsMissingIsToldOf(t *testing.T) {
	s := site(t)
	e := &dockerEngine{mirrors: true, dir: dockerDir}
	wantReason(t, []Reason{withoutMirror(s, e, nil)}, "has no mirror, and not http://10.0.0.5:5000")
	wantReason(t, []Reason{withoutMirror(s, e, []string{"https://other.test"})}, "has other mirrors, https://other.test")
	wantReason(t, []Reason{withoutMirror(s, e, []string{"https://10.0.0.5:5000"})}, "the cache is asked by http://10.0.0.5:5000")
	planned(t, "docker", s)
	wantReason(t, []Reason{withoutMirror(s, e, nil)}, "has not read that since it changed")
}

func TestDockerIsAskedWhatItHas(t *testing.T) {
	s := site(t)
	t.Setenv("DOCKER_HOST", "tcp://10.0.0.9:2376") // which the docker command asks
	bin := t.TempDir()
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	docker := func(script string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(bin, "docker"), []byte("#!/bin/sh\n"+script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	docker(fmt.Sprintf("echo '{\"RegistryConfig\":{\"Mirrors\":[\"https://other.test/\",\"%s/\"]},\"HttpProxy\":\"http://u:hunter2@squid:3128\",\"NoProxy\":\"x.test\"}'\n", s.URL))
	found := dockerReasons(t.Context(), s, "docker.io")
	wantReason(t, found, "asks https://other.test before it")
	wantReason(t, found, "the Docker daemon send requests for the cache to squid:3128")
	if strings.Contains(fmt.Sprint(found), "hunter2") {
		t.Errorf("a password is shown: %v", found)
	}
	wantReason(t, dockerReasons(t.Context(), s, "ghcr.io"), "for docker.io alone")
	docker("echo 'some warning\nCannot connect to the Docker daemon' >&2; exit 1\n")
	wantReason(t, dockerReasons(t.Context(), s, "docker.io"), "does not answer: Cannot connect")
}

func TestFilesThatDoNotNameTheCacheAreReasons(t *testing.T) {
	s := site(t)
	wantReason(t, fileReasons(t.Context(), "k3s", s), "registries.yaml is not there")
	put(t, s, "/etc/rancher/k3s/registries.yaml", "mirrors: {}\n")
	wantReason(t, fileReasons(t.Context(), "k3s", s), "registries.yaml does not say")
	put(t, s, "/etc/rancher/k3s/registries.yaml", "mirrors: [1]\n")
	wantReason(t, fileReasons(t.Context(), "k3s", s), "no mapping")
	t.Setenv("CONTAINERS_REGISTRIES_CONF", "/x.conf")
	wantReason(t, podmanReasons(s), "CONTAINERS_REGISTRIES_CONF of this shell names /x.conf")
}

func TestAProxyThatTheCacheIsAskedByIsAReason(t *testing.T) {
	s := site(t)
	d := daemon{environ: []string{"PATH=/bin", "http_proxy=http://squid:3128", "NO_PROXY=10.1.0.0/16"}}
	wantReason(t, proxyReason("it", d.proxies(), s), "of it send requests for the cache to squid:3128")
	d.environ = append(d.environ, "no_proxy=") // of two the one that says something
	d.environ[2] = "NO_PROXY=10.0.0.0/16"
	if found := proxyReason("it", d.proxies(), s); found != nil {
		t.Errorf("want none, got %v", found)
	}
	if found := proxyReason("it", &httpproxy.Config{}, s); found != nil {
		t.Errorf("want none, got %v", found)
	}
}

func TestAProgramIsBounded(t *testing.T) {
	bin := t.TempDir()
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	script := "#!/bin/sh\ncase $1 in\nhang) exec sleep 600;;\nflood) head -c 3000000 /dev/zero; echo end;;\n*) echo one >&2; echo >&2; echo 'the last word' >&2; exit 3;;\nesac\n"
	if err := os.WriteFile(filepath.Join(bin, "client"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := run(t.Context(), time.Second, "client", "hang"); err == nil || !strings.Contains(err.Error(), "within 1s") {
		t.Errorf("want that it has not ended, got %v", err)
	}
	if out, err := run(t.Context(), time.Minute, "client", "flood"); err != nil || len(out) != maxAnswer || !strings.HasSuffix(out, "end\n") {
		t.Errorf("want the end of it, got %d bytes, %v", len(out), err)
	}
	if _, err := run(t.Context(), time.Minute, "client", "fail"); err == nil || err.Error() != "the last word" {
		t.Errorf("got %v", err)
	}
}
