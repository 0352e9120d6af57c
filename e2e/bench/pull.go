package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"sync"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// puller pulls as a Docker daemon does: the ping, the token where one is wanted,
// the tag by HEAD, its manifest by digest, the blobs a few at a time, through
// redirects. It throws away what comes.
type puller struct {
	base   string // of the registry, without a trailing slash
	client *http.Client
	token  string
}

// newPuller gives a puller that knows nothing and has no connection yet.
func newPuller(base string) *puller {
	return &puller{base: base, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16, ReadBufferSize: 256 << 10}}}
}

// newFarPuller makes a puller that speaks TLS and HTTP/2 with a hub whose authority is ca.
func newFarPuller(base string, ca []byte) *puller {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	t := &http.Transport{MaxIdleConnsPerHost: 16, ReadBufferSize: 256 << 10, ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: pool}}
	return &puller{base: base, client: &http.Client{Transport: t}}
}

// close ends the connections.
func (p *puller) close() { p.client.CloseIdleConnections() }

var challengePart = regexp.MustCompile(`(realm|service)="([^"]*)"`)

// login asks whether a token is wanted, and gets one.
func (p *puller) login(ctx context.Context, repository string) error {
	p.token = ""
	res, err := p.do(ctx, http.MethodGet, p.base+"/v2/")
	if err != nil {
		return err
	}
	res.Body.Close()
	if res.StatusCode == http.StatusOK {
		return nil
	}
	parts := map[string]string{}
	for _, m := range challengePart.FindAllStringSubmatch(res.Header.Get("WWW-Authenticate"), -1) {
		parts[m[1]] = m[2]
	}
	if res.StatusCode != http.StatusUnauthorized || parts["realm"] == "" {
		return fmt.Errorf("/v2/: %s", res.Status)
	}
	q := url.Values{"service": {parts["service"]}, "scope": {"repository:" + repository + ":pull"}}
	res, err = p.do(ctx, http.MethodGet, parts["realm"]+"?"+q.Encode())
	if err != nil {
		return err
	}
	defer res.Body.Close()
	var answer struct{ Token string }
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&answer); err != nil || answer.Token == "" {
		return errors.Join(fmt.Errorf("token: %s", res.Status), err)
	}
	p.token = answer.Token
	return nil
}

// do sends a request with further headers, given as names and values in turns.
func (p *puller) do(ctx context.Context, method, url string, header ...string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", v1.MediaTypeImageIndex+", "+v1.MediaTypeImageManifest)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	if p.token != "" {
		// net/http leaves it out when a redirect leads to another host.
		req.Header.Set("Authorization", "Bearer "+p.token)
	}
	return p.client.Do(req)
}

// open asks for an item and gives its body, which the caller closes.
func (p *puller) open(ctx context.Context, i item) (io.ReadCloser, error) {
	res, err := p.do(ctx, http.MethodGet, p.base+i.path())
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK || i.Size > 0 && res.ContentLength != i.Size {
		res.Body.Close()
		return nil, fmt.Errorf("GET %s: %s, %d bytes and not %d", i.path(), res.Status, res.ContentLength, i.Size)
	}
	return res.Body, nil
}

// blob pulls a blob and tells when its first byte came.
func (p *puller) blob(ctx context.Context, i item) (first time.Time, err error) {
	body, err := p.open(ctx, i)
	if err != nil {
		return first, err
	}
	defer body.Close()
	return drain(body, i)
}

// discards are what bodies are read into.
var discards = sync.Pool{New: func() any { return new([256 << 10]byte) }}

// drain reads an item's body to its end.
func drain(body io.Reader, i item) (first time.Time, err error) {
	buffer := discards.Get().(*[256 << 10]byte)
	defer discards.Put(buffer)
	var got int64
	for {
		n, err := body.Read(buffer[:])
		if n > 0 && first.IsZero() {
			first = time.Now()
		}
		got += int64(n)
		if err == io.EOF {
			break
		}
		if err != nil {
			return first, fmt.Errorf("GET %s: after %d bytes: %w", i.path(), got, err)
		}
	}
	if got != i.Size {
		return first, fmt.Errorf("GET %s: %d bytes and not %d", i.path(), got, i.Size)
	}
	return first, nil
}

// image pulls an image by tag, parallel blobs at a time.
func (p *puller) image(ctx context.Context, ref imageRef, parallel int) error {
	if err := p.login(ctx, ref.Repository); err != nil {
		return err
	}
	config, layers, err := p.manifest(ctx, ref)
	if err != nil {
		return err
	}
	var total int64
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, i := range append([]item{config}, layers...) {
		total += i.Size
		g.Go(func() error {
			_, err := p.blob(ctx, i)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if total != ref.Bytes {
		return fmt.Errorf("%s has %d bytes and not %d", ref.Repository, total, ref.Bytes)
	}
	return nil
}

// manifest asks for an image's manifest by its tag, as a Docker daemon does, and gives the
// blobs in it.
func (p *puller) manifest(ctx context.Context, ref imageRef) (config item, layers []item, err error) {
	root := item{Repository: ref.Repository, Reference: ref.Tag, Manifest: true}
	res, err := p.do(ctx, http.MethodHead, p.base+root.path())
	if err != nil {
		return config, nil, err
	}
	res.Body.Close()
	root.Reference, root.Size = res.Header.Get("Docker-Content-Digest"), res.ContentLength
	if res.StatusCode != http.StatusOK {
		return config, nil, fmt.Errorf("HEAD %s: %s", root.path(), res.Status)
	}
	if root.Reference == "" {
		root.Reference = ref.Tag // nginx as a cache of a HEAD that it made a GET
	}
	body, err := p.open(ctx, root)
	if err != nil {
		return config, nil, err
	}
	defer body.Close()
	var m v1.Manifest
	if err := json.NewDecoder(io.LimitReader(body, 4<<20)).Decode(&m); err != nil {
		return config, nil, fmt.Errorf("GET %s: %w", root.path(), err)
	}
	for _, d := range m.Layers {
		layers = append(layers, blobItem(ref.Repository, d))
	}
	return blobItem(ref.Repository, m.Config), layers, nil
}

// fetch asks for an item where no token is wanted.
func fetch(ctx context.Context, c *http.Client, base string, i item) (io.ReadCloser, error) {
	return (&puller{base: base, client: c}).open(ctx, i)
}
