package clients

import (
	"path/filepath"
	"testing"

	"github.com/entrepot-dev/entrepot/e2e/image"
)

func TestHelmPullsAChart(t *testing.T) {
	helm := need(t, "helm")
	w := newWorld(t)
	chart := image.HelmChart(3, "app", "1.2.3")
	w.other.Push("org/charts/app", "1.2.3", chart)
	var tgz []byte
	for _, l := range chart.Layers("") {
		if l.MediaType == image.MediaTypeHelmChart {
			tgz = chart.Blobs[l.Digest]
		}
	}
	w.twice(t, func(t *testing.T) {
		for _, version := range []string{"1.2.3", ">=1.0.0"} {
			dir := t.TempDir()
			run(t, nil, helm, "pull", "oci://"+w.proxy.Host()+"/ghcr.io/org/charts/app", "--version", version, "--plain-http", "-d", dir)
			wantFile(t, filepath.Join(dir, "app-1.2.3.tgz"), tgz)
		}
	})
}
