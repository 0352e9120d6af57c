package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/entrepot-dev/entrepot/e2e/image"
	"github.com/entrepot-dev/entrepot/oci"
)

// client does one thing after another, as some client does.
type client struct {
	w    *world
	rnd  *rand.Rand
	http *http.Client
}

// anything is what clients say that take every manifest.
var anything = strings.Join([]string{
	v1.MediaTypeImageIndex, v1.MediaTypeImageManifest, oci.MediaTypeDockerManifestList, oci.MediaTypeDockerManifest, "*/*",
}, ", ")

// errRefused is an answer that says that the thing can not be had now, errCut one
// that broke off, errGone one that did not come: all are the client's lot while an
// upstream fails or the process is killed.
var (
	errRefused = errors.New("refused")
	errCut     = errors.New("broken off")
	errGone    = errors.New("no process")
)

// wrong is what must not be.
type wrong struct{ what string }

func (e *wrong) Error() string { return e.what }

func wrongf(format string, args ...any) error { return &wrong{fmt.Sprintf(format, args...)} }

// actions are what clients do, more often what is there more than once.
var actions = []struct {
	name string
	do   func(c *client, ctx context.Context, e *entry) error
}{
	{"pull", (*client).pull}, {"pull", (*client).pull}, {"pull", (*client).pull}, {"pull", (*client).pull},
	{"range", (*client).ranged}, {"range", (*client).ranged},
	{"chunks", (*client).chunks}, {"chunks", (*client).chunks},
	{"head", (*client).heads}, {"head", (*client).heads},
	{"tags", (*client).tags}, {"referrers", (*client).referrers},
	{"leave", (*client).leave}, {"leave", (*client).leave},
	{"slow", (*client).slow},
	{"condition", (*client).conditional},
	{"crane", (*client).crane},
	{"oras", (*client).oras},
}

// run does things until ctx ends.
func (c *client) run(ctx context.Context) {
	defer c.http.CloseIdleConnections()
	for ctx.Err() == nil {
		a := actions[c.rnd.IntN(len(actions))]
		e := c.w.corpus.choose(c.rnd)
		c.w.note(func(r *report) { r.actions[a.name]++ })
		err := a.do(c, ctx, e)
		var bad *wrong
		if errors.As(err, &bad) {
			c.w.violation("%s of %s/%s: %s", a.name, e.source.name, e.repo, bad.what)
		}
		if err != nil {
			sleep(ctx, time.Duration(10+c.rnd.IntN(100))*time.Millisecond)
		}
	}
}

// do sends a request. It returns an answer of status 200, 206 or 304; it counts all others,
// and returns an error. They are violations unless they say "not now", or a quirk explains
// them because the registry itself denies what is there. Those of a calm source are
// violations unless a quirk explains them.
func (c *client) do(ctx context.Context, method, path string, headers ...string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.w.url+path, nil)
	if err != nil {
		return nil, err
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	began := time.Now()
	res, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() == nil {
			c.w.note(func(r *report) { r.gone++ })
		}
		return nil, fmt.Errorf("%w: %w", errGone, err)
	}
	switch res.StatusCode {
	case http.StatusOK, http.StatusPartialContent, http.StatusNotModified:
		return res, nil
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	c.w.note(func(r *report) { r.refused[res.StatusCode]++ })
	s, repo, op := c.w.asked(method, path)
	excused := c.w.excused(s, repo, op, res.StatusCode, began)
	switch {
	case s.calm && !excused:
		return nil, wrongf("%s %s: %s %s: no quirk of this repository explains it", method, path, res.Status, body)
	case excused:
	case slices.Contains([]int{http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout}, res.StatusCode):
	default:
		return nil, wrongf("%s %s: %s %s: what is there is said to be otherwise", method, path, res.Status, body)
	}
	var doc struct {
		Errors []struct{ Code, Message string }
	}
	if method != http.MethodHead && err == nil && (json.Unmarshal(body, &doc) != nil || len(doc.Errors) == 0 || doc.Errors[0].Message == "") {
		return nil, wrongf("%s %s: %s without the spec's error: %q", method, path, res.Status, body)
	}
	return nil, errRefused
}

// read reads a body to its end and compares it with want. Only a body that ends as its
// length says counts as complete. A complete body may have wrong bytes only if it is a range
// that the proxy marks as unverified.
func (c *client) read(ctx context.Context, res *http.Response, what string, want []byte) error {
	defer res.Body.Close()
	early := isUnverified(res)
	if res.ContentLength != int64(len(want)) {
		// A fetch that began before anybody knew the size believes its upstream
		// until the digest tells otherwise. The answer must not be complete then.
		n, err := io.Copy(io.Discard, res.Body)
		if err == nil {
			return wrongf("%s: a complete answer of %d bytes, and it has %d", what, n, len(want))
		}
		c.w.note(func(r *report) { r.cut++ })
		return errCut
	}
	buf := make([]byte, 64<<10)
	at := 0
	for {
		n, err := res.Body.Read(buf)
		// What comes before the digest is known may be wrong; it must not be
		// complete then.
		same := at+n <= len(want) && bytes.Equal(buf[:n], want[at:at+n])
		at += n
		if !same {
			rest, err := io.Copy(io.Discard, res.Body)
			if err == nil && early {
				c.w.note(func(r *report) { r.early++ })
				return errCut
			}
			if err == nil {
				return wrongf("%s: a complete answer of %d bytes with wrong ones among those up to %d", what, int64(at)+rest, at)
			}
			c.w.note(func(r *report) { r.cut++ })
			return errCut
		}
		switch {
		case err == io.EOF && at == len(want):
			c.w.note(func(r *report) { r.whole++; r.bytes += int64(at) })
			return nil
		case err == io.EOF:
			return wrongf("%s: it ends well after %d bytes of %d", what, at, len(want))
		case err != nil:
			if ctx.Err() == nil {
				c.w.note(func(r *report) { r.cut++ })
			}
			return errCut
		}
	}
}

// manifest gets a manifest and compares it with the truth. It gives what the tag
// stands for.
func (c *client) manifest(ctx context.Context, e *entry, ref string) (*image.Image, digest.Digest, error) {
	res, err := c.do(ctx, http.MethodGet, e.path("manifests", ref), "Accept", anything)
	if err != nil {
		return nil, "", err
	}
	d, i := digest.Digest(res.Header.Get("Docker-Content-Digest")), e.image
	if !strings.Contains(ref, ":") {
		if i = c.w.corpus.standsFor(e, ref, d); i == nil {
			res.Body.Close()
			return nil, "", wrongf("%s stands for %q, which it never was", ref, d)
		}
	}
	m, ok := i.Manifests[d]
	if !ok || strings.Contains(ref, ":") && ref != d.String() {
		res.Body.Close()
		return nil, "", wrongf("%s is given as %q", ref, d)
	}
	if got := res.Header.Get("Content-Type"); got != m.MediaType {
		res.Body.Close()
		return nil, "", wrongf("%s is of type %q, and %q is said", ref, m.MediaType, got)
	}
	return i, d, c.read(ctx, res, "manifest "+ref, m.Bytes)
}

func (c *client) tag() string {
	if c.rnd.IntN(3) == 0 {
		return movingTag
	}
	return fixedTag
}

// pull gets an image as a daemon does: tag, platform, config and layers, three at a
// time.
func (c *client) pull(ctx context.Context, e *entry) error {
	i, d, err := c.manifest(ctx, e, c.tag())
	if err != nil {
		return err
	}
	if len(i.Platforms) > 1 {
		platforms := slices.Sorted(maps.Keys(i.Platforms))
		e := &entry{source: e.source, repo: e.repo, image: i}
		if _, d, err = c.manifest(ctx, e, i.Platforms[platforms[c.rnd.IntN(len(platforms))]].String()); err != nil {
			return err
		}
	}
	m := i.Parsed(d)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(3)
	for _, l := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		g.Go(func() error { return c.blob(ctx, e, l.Digest, i.Blobs[l.Digest]) })
	}
	return g.Wait()
}

func (c *client) blob(ctx context.Context, e *entry, d digest.Digest, want []byte) error {
	res, err := c.do(ctx, http.MethodGet, e.path("blobs", d.String()))
	if err != nil {
		return err
	}
	if got := res.Header.Get("Docker-Content-Digest"); got != d.String() || res.StatusCode != http.StatusOK {
		res.Body.Close()
		return wrongf("%s is answered %s as %q", d, res.Status, got)
	}
	return c.read(ctx, res, "blob "+d.String(), want)
}

// someBlob gives one of e's blobs that is not empty, the larger the likelier.
func (c *client) someBlob(e *entry) (digest.Digest, []byte) {
	all := slices.Sorted(maps.Keys(e.image.Blobs))
	a, b := all[c.rnd.IntN(len(all))], all[c.rnd.IntN(len(all))]
	if len(e.image.Blobs[b]) > len(e.image.Blobs[a]) {
		a = b
	}
	return a, e.image.Blobs[a]
}

// ranged gets a few ranges of a blob, which may be cold.
func (c *client) ranged(ctx context.Context, e *entry) error {
	d, content := c.someBlob(e)
	for range 1 + c.rnd.IntN(4) {
		from := c.rnd.IntN(len(content))
		to := from + 1 + c.rnd.IntN(len(content)-from)
		spec := fmt.Sprintf("bytes=%d-%d", from, to-1)
		switch c.rnd.IntN(4) {
		case 0:
			spec, to = fmt.Sprintf("bytes=%d-", from), len(content)
		case 1:
			spec, to = fmt.Sprintf("bytes=-%d", len(content)-from), len(content)
		}
		if err := c.span(ctx, e, d, content, spec, from, to); err != nil {
			return err
		}
	}
	return nil
}

// isUnverified reports whether the proxy says that res, a range, was sent before the
// digest of the whole blob was verified.
func isUnverified(res *http.Response) bool {
	return res.StatusCode == http.StatusPartialContent && strings.Contains(res.Header.Get("Cache-Status"), "unverified-range")
}

func (c *client) span(ctx context.Context, e *entry, d digest.Digest, content []byte, spec string, from, to int) error {
	res, err := c.do(ctx, http.MethodGet, e.path("blobs", d.String()), "Range", spec)
	if err != nil {
		return err
	}
	want := fmt.Sprintf("bytes %d-%d/%d", from, to-1, len(content))
	got := res.Header.Get("Content-Range")
	early := isUnverified(res)
	if res.StatusCode == http.StatusPartialContent && !strings.HasSuffix(got, fmt.Sprintf("/%d", len(content))) {
		// Of another size: see read.
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			res.Body.Close()
			c.w.note(func(r *report) { r.cut++ })
			return errCut
		}
		if early && strings.HasPrefix(got, fmt.Sprintf("bytes %d-%d/", from, to-1)) {
			res.Body.Close()
			c.w.note(func(r *report) { r.early++ })
			return errCut
		}
	}
	if res.StatusCode != http.StatusPartialContent || got != want {
		res.Body.Close()
		return wrongf("%s of %s: %s %q, want 206 %q", spec, d, res.Status, got, want)
	}
	return c.read(ctx, res, spec+" of "+d.String(), content[from:to])
}

// chunks gets a blob as containerd does: eight ranges without an end at once, each
// closed where its chunk ends. The client verifies what it puts together; so does
// this one.
func (c *client) chunks(ctx context.Context, e *entry) error {
	d, content := c.someBlob(e)
	const parallel = 8
	got := make([]byte, len(content))
	g, ctx := errgroup.WithContext(ctx)
	for n := range parallel {
		from, to := n*len(content)/parallel, (n+1)*len(content)/parallel
		if from == to {
			continue
		}
		g.Go(func() error {
			res, err := c.do(ctx, http.MethodGet, e.path("blobs", d.String()), "Range", fmt.Sprintf("bytes=%d-", from))
			if err != nil {
				return err
			}
			defer res.Body.Close()
			if want := fmt.Sprintf("bytes %d-", from); res.StatusCode != http.StatusPartialContent || !strings.HasPrefix(res.Header.Get("Content-Range"), want) {
				return wrongf("bytes=%d- of %s: %s %q", from, d, res.Status, res.Header.Get("Content-Range"))
			}
			if _, err := io.ReadFull(res.Body, got[from:to]); err != nil {
				if ctx.Err() == nil {
					c.w.note(func(r *report) { r.cut++ })
				}
				return errCut
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if !bytes.Equal(got, content) {
		// Chunks before the last are given out while the digest is not known;
		// containerd then finds out, and asks again.
		c.w.note(func(r *report) { r.cut++ })
		return errCut
	}
	c.w.note(func(r *report) { r.whole++; r.bytes += int64(len(got)) })
	return nil
}

// heads asks for what is there, without bodies.
func (c *client) heads(ctx context.Context, e *entry) error {
	tag := c.tag()
	res, err := c.do(ctx, http.MethodHead, e.path("manifests", tag), "Accept", anything)
	if err != nil {
		return err
	}
	res.Body.Close()
	d := digest.Digest(res.Header.Get("Docker-Content-Digest"))
	i := c.w.corpus.standsFor(e, tag, d)
	if i == nil || res.ContentLength != int64(len(i.Bytes())) {
		return wrongf("HEAD of %s: %q of %d bytes", tag, d, res.ContentLength)
	}
	b, content := c.someBlob(e)
	if res, err = c.do(ctx, http.MethodHead, e.path("blobs", b.String())); err != nil {
		return err
	}
	res.Body.Close()
	if res.ContentLength != int64(len(content)) || res.Header.Get("Docker-Content-Digest") != b.String() {
		return wrongf("HEAD of %s: %q of %d bytes, and it has %d", b, res.Header.Get("Docker-Content-Digest"), res.ContentLength, len(content))
	}
	c.w.note(func(r *report) { r.whole += 2 })
	return nil
}

func (c *client) tags(ctx context.Context, e *entry) error {
	res, err := c.do(ctx, http.MethodGet, "/v2/"+e.source.name+"/"+e.repo+"/tags/list")
	if err != nil {
		return err
	}
	defer res.Body.Close()
	var list struct{ Tags []string }
	if err := json.NewDecoder(res.Body).Decode(&list); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) {
			return errCut
		}
		return wrongf("tags: %v", err)
	}
	if !slices.Equal(list.Tags, []string{fixedTag, movingTag, spareTag}) {
		return wrongf("tags: %v", list.Tags)
	}
	c.w.note(func(r *report) { r.whole++ })
	return nil
}

// referrers asks for what refers to an image. A registry that doesn't say so has no list.
func (c *client) referrers(ctx context.Context, e *entry) error {
	res, err := c.do(ctx, http.MethodGet, e.path("referrers", e.image.Digest.String()))
	if err != nil {
		return err
	}
	defer res.Body.Close()
	var list v1.Index
	if err := json.NewDecoder(res.Body).Decode(&list); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) {
			return errCut
		}
		return wrongf("referrers: %v", err)
	}
	if len(list.Manifests) > 1 || len(list.Manifests) == 1 && list.Manifests[0].Digest != e.referrer {
		return wrongf("referrers: %v", list.Manifests)
	}
	c.w.note(func(r *report) { r.whole++ })
	return nil
}

// leave begins to get a blob and goes away.
func (c *client) leave(ctx context.Context, e *entry) error {
	d, content := c.someBlob(e)
	ctx, cancel := context.WithTimeout(ctx, time.Duration(c.rnd.IntN(1000))*time.Millisecond)
	defer cancel()
	from := c.rnd.IntN(len(content))
	res, err := c.do(ctx, http.MethodGet, e.path("blobs", d.String()), "Range", "bytes="+strconv.Itoa(from)+"-")
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, _ = io.CopyN(io.Discard, res.Body, c.rnd.Int64N(int64(len(content))))
	c.w.note(func(r *report) { r.left++ })
	return nil
}

// slow reads a blob in small pieces at first.
func (c *client) slow(ctx context.Context, e *entry) error {
	d, content := c.someBlob(e)
	res, err := c.do(ctx, http.MethodGet, e.path("blobs", d.String()))
	if err != nil {
		return err
	}
	res.Body = &slowBody{ReadCloser: res.Body, ctx: ctx, left: 20}
	return c.read(ctx, res, "blob "+d.String(), content)
}

type slowBody struct {
	io.ReadCloser
	ctx  context.Context
	left int
}

func (b *slowBody) Read(p []byte) (int, error) {
	if b.left > 0 {
		b.left--
		p = p[:min(len(p), 4<<10)]
		sleep(b.ctx, 50*time.Millisecond)
	}
	return b.ReadCloser.Read(p)
}

// conditional asks for a manifest that it has.
func (c *client) conditional(ctx context.Context, e *entry) error {
	d := e.image.Digest
	res, err := c.do(ctx, http.MethodGet, e.path("manifests", fixedTag), "Accept", anything, "If-None-Match", `"`+d.String()+`"`)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusNotModified {
		res.Body.Close()
		return wrongf("If-None-Match of what it is: %s", res.Status)
	}
	res.Body.Close()
	c.w.note(func(r *report) { r.whole++ })
	return nil
}
