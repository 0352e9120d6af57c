package client

import (
	"strings"
	"testing"
)

// Podman refuses a mirror whose location has a second colon.
func TestPodmanIsGivenAPathWithoutAColon(t *testing.T) {
	files, err := planPodman(Site{URL: "http://10.0.0.5:5000", Upstreams: []string{"docker.io", "localhost:21510"}, Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	text := string(files[0].New)
	for _, want := range []string{`prefix = "localhost:21510"`, `location = "localhost:21510"`, `location = "10.0.0.5:5000/localhost_21510"`, `location = "10.0.0.5:5000/docker.io"`} {
		if !strings.Contains(text, want) {
			t.Errorf("want %s in\n%s", want, text)
		}
	}
}
