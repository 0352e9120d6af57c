package server

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/metrics"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// shelf is a Content made of maps.
type shelf struct {
	manifests    map[string]*cache.Manifest // by Target.String()
	blobs        map[digest.Digest]*parcel
	tags         []string
	referrers    []v1.Descriptor
	repositories []string
	outcome      cache.Outcome
	err          error
	panics       bool

	mu    sync.Mutex
	hints []oci.Span
	// ctx is that of the last call.
	ctx context.Context
}

func (s *shelf) call(ctx context.Context) error {
	if s.panics {
		panic("the shelf fell down")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ctx = ctx
	return s.err
}

func (s *shelf) Manifest(ctx context.Context, t oci.Target, a rewrite.Accept) (*cache.Manifest, cache.Outcome, error) {
	if err := s.call(ctx); err != nil {
		return nil, s.outcome, err
	}
	m := s.manifests[t.String()]
	if m == nil {
		return nil, s.outcome, oci.Errorf(oci.CodeManifestUnknown, "no manifest %s", t)
	}
	return m, s.outcome, nil
}

func (s *shelf) Describe(ctx context.Context, t oci.Target, a rewrite.Accept) (*cache.Manifest, cache.Outcome, error) {
	m, o, err := s.Manifest(ctx, t, a)
	if err != nil {
		return nil, o, err
	}
	d := *m
	d.Bytes = nil
	return &d, o, nil
}

func (s *shelf) Blob(ctx context.Context, t oci.Target, hint oci.Span) (cache.Blob, cache.Outcome, error) {
	if err := s.call(ctx); err != nil {
		return nil, s.outcome, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hints = append(s.hints, hint)
	if b := s.blobs[t.Digest]; b != nil {
		return b, s.outcome, nil
	}
	return nil, s.outcome, oci.Errorf(oci.CodeBlobUnknown, "no blob %s", t)
}

func (s *shelf) Stat(ctx context.Context, t oci.Target) (int64, cache.Outcome, error) {
	b, o, err := s.Blob(ctx, t, oci.Span{})
	if err != nil {
		return 0, o, err
	}
	return b.Size(), o, nil
}

func (s *shelf) Tags(ctx context.Context, t oci.Target) ([]string, cache.Outcome, error) {
	return s.tags, s.outcome, s.call(ctx)
}

func (s *shelf) Referrers(ctx context.Context, t oci.Target) ([]v1.Descriptor, cache.Outcome, error) {
	return s.referrers, s.outcome, s.call(ctx)
}

func (s *shelf) Repositories(ctx context.Context, upstream, after string, n int) ([]string, error) {
	var names []string
	for _, name := range s.repositories {
		if name > after && len(names) < n && (upstream == "" || strings.HasPrefix(name, upstream+"/")) {
			names = append(names, name)
		}
	}
	return names, s.call(ctx)
}

// parcel is a Blob of bytes. Its send, where set, replaces the sending.
type parcel struct {
	bytes  []byte
	send   func(w io.Writer, span oci.Span) (int64, error)
	closed chan struct{} // where set, gets a value on each Close
	whole  bool          // it can't send several spans
}

func (p *parcel) Size() int64 { return int64(len(p.bytes)) }

func (p *parcel) Send(w io.Writer, span oci.Span) (int64, error) {
	if p.send != nil {
		return p.send(w, span)
	}
	n, err := w.Write(p.bytes[span.From:span.To])
	return int64(n), err
}

func (p *parcel) Prepare([]oci.Span) bool { return !p.whole }

func (p *parcel) Close() error {
	if p.closed != nil {
		p.closed <- struct{}{}
	}
	return nil
}

var (
	blobBytes    = bytes.Repeat([]byte("0123456789"), 100_000)
	blobDigest   = digest.FromBytes(blobBytes)
	emptyDigest  = digest.FromBytes(nil)
	manifestBody = []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}`)
	manifestSum  = digest.FromBytes(manifestBody)
)

func newShelf() *shelf {
	m := &cache.Manifest{Digest: manifestSum, MediaType: v1.MediaTypeImageManifest, Size: int64(len(manifestBody)), Bytes: manifestBody}
	chosen := *m
	chosen.Negotiated = true
	index := *m
	index.MediaType = v1.MediaTypeImageIndex
	return &shelf{
		manifests: map[string]*cache.Manifest{
			"docker.io/library/nginx:1":                   m,
			"docker.io/library/nginx:chosen":              &chosen,
			"docker.io/library/nginx:index":               &index,
			"docker.io/library/index@" + string(m.Digest): &index,
			"docker.io/library/nginx@" + string(m.Digest): m,
			"ghcr.io/org/app:1":                           m,
		},
		blobs: map[digest.Digest]*parcel{
			blobDigest:  {bytes: blobBytes},
			emptyDigest: {},
		},
		tags: []string{"1", "1.27", "latest", "v2"},
		referrers: []v1.Descriptor{
			{MediaType: v1.MediaTypeImageManifest, Digest: manifestSum, Size: 10, ArtifactType: "application/sig"},
			{MediaType: v1.MediaTypeImageManifest, Digest: blobDigest, Size: 20, ArtifactType: "application/sbom"},
		},
		repositories: []string{"docker.io/library/alpine", "docker.io/library/nginx", "ghcr.io/org/app"},
		outcome:      cache.Outcome{Status: cache.Hit},
	}
}

// start serves content on a free port of the loopback until the test's end.
func start(t testing.TB, content Content, change ...func(*Options)) (*Server, string) {
	t.Helper()
	router, err := rewrite.NewRouter(rewrite.Routing{Default: "docker.io", Upstreams: map[string][]string{"docker.io": nil, "ghcr.io": nil}})
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Router: router, Content: content, Log: zap.NewNop(), Metrics: metrics.Discard()}
	for _, c := range change {
		c(&o)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := New(o)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = s.Shutdown(ctx)
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s, "http://" + l.Addr().String()
}

func blobPath(d digest.Digest) string { return fmt.Sprintf("/v2/library/nginx/blobs/%s", d) }
