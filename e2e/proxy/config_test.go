package proxy

import (
	"os"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/entrepot-dev/entrepot/e2e/hub"
)

func TestExtraConfigurationIsLaidOverTheGeneratedKeyByKey(t *testing.T) {
	h := hub.New(t, hub.Options{TLS: true})
	p := &Process{Dir: "/somewhere", listen: "127.0.0.1:1", admin: "127.0.0.1:2"}
	path, err := writeConfig(t.TempDir(), p, Options{
		Upstreams: map[string]*hub.Hub{"docker.io": h},
		Config:    `{cache: {offline: true}, platforms: [linux/arm64], upstreams: {docker.io: {stall_timeout: 1s}}}`,
	})
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Cache struct {
			Dir     string
			Offline bool
		}
		Platforms []string
		Upstreams map[string]struct {
			Endpoints    []string
			StallTimeout string `yaml:"stall_timeout"`
			TLS          struct{ CA string }
		}
	}
	if err := yaml.Unmarshal(b, &got); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	u := got.Upstreams["docker.io"]
	if got.Cache.Dir != "/somewhere" || !got.Cache.Offline || len(got.Platforms) != 1 || u.StallTimeout != "1s" || len(u.Endpoints) != 1 || u.Endpoints[0] != h.URL() {
		t.Errorf("got\n%s", b)
	}
	if ca, err := os.ReadFile(u.TLS.CA); err != nil || string(ca) != string(h.CA()) {
		t.Errorf("the CA file: %v", err)
	}
}

func TestTheLogsEndIsKept(t *testing.T) {
	var l logBuffer
	for range 5 {
		if _, err := l.Write([]byte(strings.Repeat("x", maxLog-1) + "\n")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Write([]byte("the end")); err != nil {
		t.Fatal(err)
	}
	if s := l.String(); len(s) > 3*maxLog || !strings.HasSuffix(s, "\nthe end") || !strings.HasPrefix(s, "(") {
		t.Errorf("want the end of it, got %d bytes that begin with %.40q", len(s), s)
	}
}
