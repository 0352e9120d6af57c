package configs

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"go.yaml.in/yaml/v3"
)

func TestDaemonJSONIsWhatTheDaemonTakes(t *testing.T) {
	var daemon struct {
		Mirrors []string `json:"registry-mirrors"`
	}
	d := json.NewDecoder(bytes.NewReader(readExample(t, "clients/daemon.json")))
	d.DisallowUnknownFields()
	if err := d.Decode(&daemon); err != nil {
		t.Fatal(err)
	}
	if len(daemon.Mirrors) != 1 || daemon.Mirrors[0] != "http://cache:5000" {
		t.Errorf("want the mirror http://cache:5000 (with a path the daemon refuses it), got %v", daemon.Mirrors)
	}
}

// TestHostsFilesAreWhatTheClientsTake holds that the cache may do what its clients need, and not be pushed to.
func TestHostsFilesAreWhatTheClientsTake(t *testing.T) {
	for file, capabilities := range map[string][]string{
		"clients/docker/_default/hosts.toml":      {"pull", "resolve", "referrers"},
		"clients/containerd/_default/hosts.toml":  {"pull", "resolve"},
		"clients/containerd/docker.io/hosts.toml": {"pull", "resolve"},
	} {
		var hosts struct {
			Server string
			Host   map[string]struct{ Capabilities []string }
		}
		if err := toml.Unmarshal(readExample(t, file), &hosts); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if got := hosts.Host["http://cache:5000"].Capabilities; !slices.Equal(got, capabilities) {
			t.Errorf("%s: want the capabilities %v, got %v", file, capabilities, got)
		}
	}
}

func TestYAMLExamplesAreYAML(t *testing.T) {
	for _, file := range []string{"clients/registries.yaml", "deploy/compose.yml", "deploy/kubernetes.yaml"} {
		d := yaml.NewDecoder(bytes.NewReader(readExample(t, file)))
		n := 0
		for {
			var v map[string]any
			if err := d.Decode(&v); err != nil {
				if n == 0 || err.Error() != "EOF" {
					t.Errorf("%s: document %d: %v", file, n, err)
				}
				break
			}
			n++
		}
	}
}

func TestKubernetesConfigurationLoads(t *testing.T) {
	d := yaml.NewDecoder(bytes.NewReader(readExample(t, "deploy/kubernetes.yaml")))
	for {
		var object struct {
			Kind string
			Data map[string]string
		}
		if err := d.Decode(&object); err != nil {
			t.Fatalf("no ConfigMap found: %v", err)
		}
		if object.Kind != "ConfigMap" {
			continue
		}
		file := filepath.Join(t.TempDir(), "entrepot.yml")
		if err := os.WriteFile(file, []byte(object.Data["entrepot.yml"]), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg, err := Load(Source{File: file})
		if err != nil {
			t.Fatal(err)
		}
		if cfg.Admin.Listen != ":5001" {
			t.Errorf("probes reach the pod from outside: want admin.listen :5001, got %s", cfg.Admin.Listen)
		}
		return
	}
}

// TestComposeFileRuns loads the settings that the Compose file gives the program.
func TestComposeFileRuns(t *testing.T) {
	var file struct {
		Services map[string]struct{ Environment map[string]string }
	}
	if err := yaml.Unmarshal(readExample(t, "deploy/compose.yml"), &file); err != nil {
		t.Fatal(err)
	}
	var environ []string
	for name, value := range file.Services["entrepot"].Environment {
		environ = append(environ, name+"="+value)
	}
	cfg, err := Load(Source{Environ: environ})
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Admin.Listen != ":5001" || !slices.Contains(cfg.Admin.Hosts, "entrepot") {
		t.Errorf("want the admin listener published and asked as entrepot, got %+v", cfg.Admin)
	}
}

// TestKubernetesServiceIsClosed holds that strangers outside of the cluster do not
// reach a cache that asks nobody who they are, and that Prometheus finds the metrics.
func TestKubernetesServiceIsClosed(t *testing.T) {
	d := yaml.NewDecoder(bytes.NewReader(readExample(t, "deploy/kubernetes.yaml")))
	services, scraped := 0, false
	for {
		var object struct {
			Kind string
			Spec struct {
				Type     string
				Template struct {
					Metadata struct{ Annotations map[string]string }
				}
			}
		}
		if err := d.Decode(&object); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if object.Kind == "Service" {
			services++
			if object.Spec.Type != "" && object.Spec.Type != "ClusterIP" {
				t.Errorf("the service is a %s, and the configuration has no auth", object.Spec.Type)
			}
		}
		a := object.Spec.Template.Metadata.Annotations
		scraped = scraped || a["prometheus.io/scrape"] == "true" && a["prometheus.io/port"] == "5001"
	}
	if services != 1 || !scraped {
		t.Errorf("%d services, scraped: %v", services, scraped)
	}
}

// variable is how a text names one of ours.
var variable = regexp.MustCompile(`ENTREPOT_[A-Z0-9_]+`)

func TestVariablesInExamplesAreKeys(t *testing.T) {
	known := map[string]bool{"ENTREPOT_CONFIG": true}
	cfg := Default()
	l := &loader{cfg: cfg, where: map[string]place{}}
	for _, name := range []string{"deploy/compose.yml", "deploy/entrepot.service", "reference.yml"} {
		for _, v := range variable.FindAllString(string(readExample(t, name)), -1) {
			if known[v] || strings.HasSuffix(v, "_") {
				continue
			}
			l.problems = nil
			l.readEnviron([]string{v + "=1"})
			for _, p := range l.problems {
				if strings.Contains(p.Message, "no such key") {
					t.Errorf("%s: %s", name, p.Problem)
				}
			}
		}
	}
}

func readExample(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
