package operator_test

import (
	"time"

	"archive/tar"
	"bytes"
	"encoding/json"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/bundle"
	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/cache/index"
	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/operator"
	"github.com/entrepot-dev/entrepot/upstream"
)

// exercise is a request that the handlers answer with 200. It is an example of
// docs/admin-api.md as well.
type exercise struct {
	// says introduces the example: "What is here of an image".
	says string
	// method and name say what is asked: "GET", "explain".
	method, name string
	// query is what follows the question mark, escaped.
	query string
	// body is what is sent as JSON; nil sends none.
	body any
	// file is the name of a file that is sent, which upload makes; empty sends none.
	file   string
	upload func(w *world) []byte
	// byTheClock says that its events come as time passes: the example has none.
	byTheClock bool
	// saves is the name under which the answer, the bytes of a file, is kept.
	saves string
}

// route is which route it is for: "GET /api/v1/explain".
func (e exercise) route() string { return e.method + " " + operator.Prefix + e.name }

// exercises are done in this order in the world of begin. Each route has one, and each
// parameter is in one.
var exercises = []exercise{
	{says: "What is running", method: "GET", name: "status"},
	{says: "What it may do, and how much it has stored", method: "GET", name: "process"},
	{says: "What is in force, after the rules of docker.io's tags were edited", method: "GET", name: "configuration"},
	{says: "Whether the upstreams answer", method: "GET", name: "upstreams"},
	{says: "Who pulls an image, or asks from an address, for half a minute", method: "POST", name: "watch", query: "seconds=30&repository=library/nginx&client=192.0.2.9&agent=containerd"},
	{says: "This API, for programs that make clients of it", method: "GET", name: "openapi.yaml", saves: "openapi.yaml"},
	{says: "After the rules of docker.io's tags were edited", method: "POST", name: "reload"},
	{says: "What is here of an image", method: "GET", name: "explain", query: "reference=nginx:1.27"},
	{says: "Of what nobody has asked for", method: "GET", name: "explain", query: "reference=ghost:1"},
	{says: "Of a tag that has moved and is held", method: "GET", name: "explain", query: "reference=app:stable"},
	{says: "What a tag stood for", method: "GET", name: "history", query: "reference=app:stable"},
	{says: "All tags of Docker's own images that moved", method: "GET", name: "diff", query: "since=2026-11-01T00:00:00Z&upstream=docker.io&repository=library/*"},
	{says: "Of a move that is wanted", method: "POST", name: "accept", query: "reference=app:stable"},
	{says: "Once more, when there is nothing to accept", method: "POST", name: "accept", query: "reference=app:stable"},
	{says: "All images of Docker's own", method: "GET", name: "images", query: "pattern=docker.io/library/*"},
	{says: "What an image consists of", method: "GET", name: "inspect", query: "reference=nginx:1.27&platform=linux/amd64&cached=true"},
	{says: "The index of an image", method: "GET", name: "manifest", query: "reference=nginx:1.27&cached=true"},
	{says: "The manifest of a platform", method: "GET", name: "manifest", query: "reference=nginx:1.27&platform=linux/arm64"},
	{says: "All bytes of what is here of an image", method: "POST", name: "verify", query: "reference=nginx:1.27&platform=all&cached=true"},
	{says: "That an image is to stay", method: "POST", name: "pin", query: "reference=nginx:1.27"},
	{says: "What is to stay", method: "GET", name: "images", query: "pinned=true"},
	{says: "That it need not stay", method: "POST", name: "unpin", query: "reference=nginx:1.27"},
	{says: "An image layout that does not say what its image is called", method: "POST", name: "import", query: "name=app:2&bytes=10240&replace=true", file: "layout.tar", upload: layout},
	{says: "What clients have pulled since a date", method: "GET", name: "asked", query: "since=2026-11-01T00:00:00Z"},
	{says: "What clients asked for and did not get", method: "GET", name: "missing"},
	{says: "Whether what clients have pulled could be pulled without the upstreams, and an image that nobody has", method: "POST", name: "rehearse", byTheClock: true,
		body: operator.RehearseRequest{Since: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC), Images: []operator.ListedImage{{Reference: "ghost:1"}}, Verify: true}},
	{says: "What it would cost to have an image for two platforms, with its signatures", method: "POST", name: "warm", byTheClock: true,
		body: operator.WarmRequest{
			Images: []operator.ListedImage{{Reference: "nginx:1.27"}}, Platforms: []string{"linux/amd64", "linux/arm64"},
			WithReferrers: true, DryRun: true,
		}},
	{says: "Two images, one of which is not there", method: "POST", name: "warm", byTheClock: true,
		body: operator.WarmRequest{Images: []operator.ListedImage{{Reference: "nginx:1.27", Platforms: []string{"linux/arm64"}}, {Reference: "ghost:1"}}}},
	{says: "What would be in a bundle", method: "POST", name: "export/plan", body: operator.ExportRequest{Images: []operator.ListedImage{{Reference: "nginx:1.27"}}, Platforms: []string{"linux/amd64"}}},
	{says: "A bundle of no more than an index, after its first bytes", method: "POST", name: "export", query: "from=512", body: bundleOfAnIndex(), saves: "bundle.tar"},
	{says: "What would go of the images that nobody has used for long", method: "POST", name: "purge", query: "before=2026-11-01T00:00:00Z&upstream=docker.io&dry=true"},
	{says: "An image, also if it is pinned", method: "POST", name: "purge", query: "reference=app:stable&force=true"},
	{says: "What is left of it and others", method: "POST", name: "gc", query: "dry=true"},
	{says: "The numbers alone", method: "GET", name: "stats", query: "top=0"},
	{says: "At 50 MiB a second", method: "POST", name: "scrub", query: "rate=52428800"},
}

// begin makes what the exercises find: docker.io/library/nginx:1.27 for linux/amd64, of
// three platforms, and docker.io/library/app:stable, which has moved and is held.
func begin(w *world) {
	nginx := image.Index(image.Options{Seed: 1})
	w.hub.Push("library/nginx", "1.27", nginx)
	w.pull("nginx:1.27", nginx, "linux/amd64")
	for seed := range uint64(2) {
		app := image.New(image.Options{Seed: 10 + seed})
		w.hub.Push("library/app", "stable", app)
		w.pull("app:stable", app, "")
	}
}

// layout makes an image layout of one image, as a tar.
func layout(w *world) []byte {
	var b bytes.Buffer
	t := tar.NewWriter(&b)
	add := func(name string, content []byte) {
		w.t.Helper()
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(content)), Mode: 0o644}); err != nil {
			w.t.Fatal(err)
		}
		if _, err := t.Write(content); err != nil {
			w.t.Fatal(err)
		}
	}
	i := image.New(image.Options{Seed: 20})
	index, err := json.Marshal(v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{i.Descriptor()}})
	if err != nil {
		w.t.Fatal(err)
	}
	add(v1.ImageLayoutFile, []byte(`{"imageLayoutVersion":"1.0.0"}`))
	add(v1.ImageIndexFile, index)
	add("blobs/sha256/"+i.Digest.Encoded(), i.Bytes())
	for d, content := range i.Blobs {
		add("blobs/sha256/"+d.Encoded(), content)
	}
	if err := t.Close(); err != nil {
		w.t.Fatal(err)
	}
	return b.Bytes()
}

// bundleOfAnIndex asks for the index that begin makes.
func bundleOfAnIndex() operator.ExportFrom {
	i := image.Index(image.Options{Seed: 1})
	return operator.ExportFrom{
		Contents: &bundle.Contents{
			Version:  bundle.Version,
			Images:   []bundle.Image{{Upstream: "docker.io", Repository: "library/nginx", Tag: "1.27", Digest: i.Digest, MediaType: i.MediaType()}},
			Contents: []bundle.Content{{Digest: i.Digest, Size: int64(len(i.Bytes())), MediaType: i.MediaType(), In: []string{"docker.io/library/nginx"}, Present: true}},
			Digest:   digest.FromString("is not looked at"),
		},
		Docker: []byte("[]"),
	}
}

// schemas are the types that the schemas of openapi.yaml describe.
var schemas = map[string]any{
	"Acceptance":        cache.Acceptance{},
	"BundleContent":     bundle.Content{},
	"BundleContents":    bundle.Contents{},
	"BundleImage":       bundle.Image{},
	"BundleSince":       bundle.Since{},
	"Collected":         cache.Collected{},
	"Asked":             operator.Asked{},
	"AskedDay":          cache.AskedDay{},
	"AskedImage":        cache.AskedImage{},
	"Configuration":     operator.Configuration{},
	"Diff":              operator.Diff{},
	"DiskUse":           cache.DiskUse{},
	"Examination":       upstream.Examination{},
	"ExplainedBlob":     cache.ExplainedBlob{},
	"ExplainedManifest": cache.ExplainedManifest{},
	"ExplainedMove":     cache.ExplainedMove{},
	"Explanation":       cache.Explanation{},
	"ExportFrom":        operator.ExportFrom{},
	"ExportPlan":        bundle.Plan{},
	"ExportRequest":     operator.ExportRequest{},
	"History":           cache.History{},
	"HistoryEntry":      cache.HistoryEntry{},
	"Image":             cache.Image{},
	"ImageConfig":       operator.ImageConfig{},
	"ImagePlatform":     cache.ImagePlatform{},
	"Images":            cache.Images{},
	"Imported":          cache.Imported{},
	"ImportedImage":     cache.ImportedImage{},
	"Inspected":         operator.Inspected{},
	"InspectedManifest": operator.InspectedManifest{},
	"Inspection":        operator.Inspection{},
	"LeftOut":           bundle.LeftOut{},
	"Line":              operator.Line{},
	"ManifestBytes":     operator.ManifestBytes{},
	"ListedImage":       operator.ListedImage{},
	"Missing":           operator.Missing{},
	"MissingImage":      cache.MissingImage{},
	"Move":              cache.Move{},
	"Pinned":            cache.Pinned{},
	"Problem":           operator.Error{},
	"Process":           operator.Process{},
	"Progress":          operator.Progress{},
	"Purged":            cache.Purged{},
	"QuotaLeft":         upstream.QuotaLeft{},
	"Rehearsal":         cache.Rehearsal{},
	"RehearseRequest":   operator.RehearseRequest{},
	"RehearsedImage":    cache.RehearsedImage{},
	"RehearsedPlatform": cache.RehearsedPlatform{},
	"Reloaded":          operator.Reloaded{},
	"Request":           operator.Request{},
	"Scrub":             index.Scrub{},
	"Served":            operator.Served{},
	"Stats":             operator.Stats{},
	"StatsQuota":        operator.StatsQuota{},
	"Status":            operator.Status{},
	"WarmPulls":         cache.WarmPulls{},
	"WarmRequest":       operator.WarmRequest{},
	"Warmed":            cache.Warmed{},
	"WarmedImage":       cache.WarmedImage{},
	"Taken":             bundle.Taken{},
	"Transfer":          operator.Transfer{},
	"UpstreamDiskUse":   cache.UpstreamDiskUse{},
	"Upstreams":         operator.Upstreams{},
	"WatchResult":       operator.WatchResult{},
	"Watched":           operator.Watched{},
}
