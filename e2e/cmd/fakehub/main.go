// Command fakehub serves the fake Docker Hub of the tests with some images in
// it, for trying Entrepot by hand. It prints the configuration that makes
// Entrepot mirror it as docker.io.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.yaml.in/yaml/v3"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/image"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:7000", "where the registry listens; its token server and CDN take free ports")
	tls := flag.Bool("tls", false, "serve https; the CA is written to a file in the temporary directory")
	limit := flag.Int("limit", 0, "pulls until 429; 0 for no limit")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, *listen, *tls, *limit); err != nil {
		fmt.Fprintln(os.Stderr, "fakehub:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends.
func run(ctx context.Context, out io.Writer, listen string, tls bool, limit int) error {
	h, err := hub.Start(hub.Options{Address: listen, TLS: tls, Users: map[string]string{"alice": "secret"}})
	if err != nil {
		return err
	}
	defer h.Close()
	fill(h)
	h.LimitPulls(limit, limit, 21600)
	caFile := ""
	if tls {
		caFile = filepath.Join(os.TempDir(), "fakehub-ca.pem")
		if err := os.WriteFile(caFile, h.CA(), 0o644); err != nil {
			return err
		}
	}
	cfg, err := yaml.Marshal(map[string]any{"upstreams": map[string]any{"docker.io": h.Upstream(caFile)}})
	if err != nil {
		return err
	}
	fmt.Fprintf(out, `A fake Docker Hub listens at %s.
It has library/app:1.0 (OCI index), library/old:1.0 (Docker list), library/big:1.0 (64 MiB),
charts/app:1.2.3 (Helm), and alice/private:1.0 (user alice, password secret).

Entrepot's configuration for it:

%s`, h.URL(), cfg)
	<-ctx.Done()
	fmt.Fprintf(out, "\nIt was asked: %+v\n", h.Counts())
	return nil
}

// fill pushes the sample images.
func fill(h *hub.Hub) {
	app := image.Index(image.Options{Seed: 1, Layers: []image.Layer{{Size: 1 << 20}, {Size: 1 << 20, Compression: image.Zstd}}})
	h.Push("library/app", "1.0", app)
	h.Push("library/app", "latest", app)
	subject := app.Descriptor()
	h.Push("library/app", "", image.Artifact(2, "application/vnd.example.sbom", 4<<10, &subject))
	h.Push("library/app", image.SignatureTag(app.Digest), image.Signature(3, v1.Descriptor{Digest: app.Digest}, "docker.io/library/app"))
	h.Push("library/old", "1.0", image.Index(image.Options{Seed: 4, Flavour: image.Docker}))
	h.Push("library/big", "1.0", image.New(image.Options{Seed: 5, Layers: []image.Layer{{Size: 64 << 20}}}))
	h.Push("charts/app", "1.2.3", image.HelmChart(6, "app", "1.2.3"))
	h.Push("alice/private", "1.0", image.New(image.Options{Seed: 7}))
	h.MakePrivate("alice/private", "alice")
}
