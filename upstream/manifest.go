package upstream

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/oci"
)

// manifestTypes is what we take, the newest first. Schema 1 is not among them:
// its bytes are signed in a way that no digest of the spec covers.
var manifestTypes = []string{
	v1.MediaTypeImageIndex,
	v1.MediaTypeImageManifest,
	oci.MediaTypeDockerManifestList,
	oci.MediaTypeDockerManifest,
	oci.MediaTypeOCIArtifactManifest,
	oci.MediaTypeORASArtifactManifest,
}

func (r *Registry) manifestAsk(op, method, repo, ref string) *ask {
	return &ask{
		op: op, method: method, repo: repo, path: "manifests/" + ref,
		header: http.Header{"Accept": {strings.Join(manifestTypes, ", ")}},
		what:   r.image(repo, ref), absent: oci.CodeManifestUnknown,
	}
}

// image names a reference as people write it.
func (r *Registry) image(repo, ref string) string {
	if strings.Contains(ref, ":") {
		return r.name + "/" + repo + "@" + ref
	}
	return r.name + "/" + repo + ":" + ref
}

// Resolve asks with HEAD what ref, a tag or a digest, stands for now. It never
// becomes a GET, which Docker Hub counts as a pull. The descriptor's digest is
// empty if the upstream does not say it; its size is -1 if that is not said.
// Its media type is empty if the one that is said is not that of a manifest.
// The error of a HEAD that was refused, or is not worth sending because HEAD does
// not work here, is marked as a Hint.
func (r *Registry) Resolve(ctx context.Context, repo, ref string) (v1.Descriptor, error) {
	a := r.manifestAsk("resolve", http.MethodHead, repo, ref)
	key := headKey("manifest", repo)
	if r.skipsHead(key) {
		return v1.Descriptor{}, r.headless(a)
	}
	var d v1.Descriptor
	f := r.do(ctx, a, func(res *answer) *failure {
		if res.StatusCode != http.StatusOK {
			return r.garbled(res, "answered %d to a HEAD", res.StatusCode)
		}
		d = v1.Descriptor{MediaType: declaredType(res.Header), Digest: headerDigest(res.Header), Size: res.ContentLength}
		if isGzip(res.Header) {
			d.Size = -1 // that is the size of the compressed form
		}
		if oci.IsSchema1(d.MediaType) {
			return r.schema1(res)
		}
		return nil
	})
	switch {
	case f == nil:
		r.heads.worked(key)
	case isHint(f):
		r.heads.refused(key)
		return v1.Descriptor{}, hint(f)
	default:
		return v1.Descriptor{}, f.err
	}
	if d.Digest == "" {
		if asked, err := digest.Parse(ref); err == nil {
			d.Digest = asked
		}
	}
	return d, nil
}

// Manifest fetches a manifest or index of at most oci.MaxManifestSize bytes.
// The digest is computed from the bytes; where ref is a digest, the two agree.
func (r *Registry) Manifest(ctx context.Context, repo, ref string) (*oci.Manifest, error) {
	return r.fetchManifest(ctx, r.manifestAsk("manifest", http.MethodGet, repo, ref), ref)
}

// fetchManifest is Manifest by the ask a.
func (r *Registry) fetchManifest(ctx context.Context, a *ask, ref string) (*oci.Manifest, error) {
	a.pull = true
	var m *oci.Manifest
	c := &claim{}
	f := r.do(ctx, a, func(res *answer) *failure {
		var f *failure
		m, f = r.readManifest(ctx, res, ref, c)
		return f
	})
	if f != nil {
		return nil, f.err
	}
	r.heads.contradicted(headKey(a.op, a.repo))
	if c.digest == "" {
		return m, nil
	}
	// Either the header of the tag's answer is wrong, or its bytes are: those of a damaged file
	// are the same each time. If the upstream has what the header named, the bytes are wrong.
	named, err := r.Manifest(ctx, a.repo, c.digest.String())
	switch {
	case err == nil:
		return named, nil
	case oci.IsAbsent(err) || oci.IsRefused(err):
		// Clients don't look at the header: what a tag stands for has the digest of its bytes.
		return m, nil
	default:
		return nil, err
	}
}

// claim is what the answers to a GET by tag said of the manifest's digest, where that isn't the
// digest of their bytes.
type claim struct {
	// got is the digest of the bytes that came first.
	got digest.Digest
	// digest is what the header named when the same bytes came again.
	digest digest.Digest
}

// readManifest reads the manifest ref out of res. If the header of a tag's answer names a digest
// that its bytes don't have, it asks once more, and notes in c that the same bytes came again.
func (r *Registry) readManifest(ctx context.Context, res *answer, ref string, c *claim) (*oci.Manifest, *failure) {
	if res.StatusCode != http.StatusOK {
		return nil, r.garbled(res, "answered %d to a GET", res.StatusCode)
	}
	// The bytes take room until they are parsed, which may have to wait for its turn.
	room := &room{memory: r.memory}
	defer room.leave()
	want, err := digest.Parse(ref)
	isTag := err != nil
	if isTag {
		want = headerDigest(res.Header) // the upstream should mean what it sends
	}
	raw, f := r.readSmall(ctx, res, oci.MaxManifestSize, room, want)
	if f != nil {
		if f.err.Code == oci.CodeSizeInvalid {
			f.err.Code = oci.CodeManifestInvalid
		}
		return nil, f
	}
	algorithm := digest.Canonical
	if want != "" {
		algorithm = want.Algorithm()
	}
	m := &oci.Manifest{Digest: algorithm.FromBytes(raw), Bytes: raw}
	if isTag && m.Digest != want && m.Digest == c.got {
		c.digest = want
		m.Digest = digest.Canonical.FromBytes(raw)
		want = ""
	}
	if want != "" && m.Digest != want {
		r.metrics.DigestMismatches.WithLabelValues(r.name).Inc()
		r.refuse(res.ep)
		f := r.garbled(res, "sent a manifest for %s whose digest is not %s, as it should be", res.ask.what, want)
		if isTag && c.got == "" {
			c.got, f.again = m.Digest, anybody
		}
		return nil, f
	}
	if m.MediaType, f = r.manifestType(res, raw); f != nil {
		return nil, f
	}
	return m, nil
}

// smallTimeout bounds the time in which a body comes that is read whole before any
// of it is used: one that moves just enough not to stall would else hold memory and
// a connection for years.
const smallTimeout = 2 * time.Minute

// errTooSlow is the cause with which such a request is cancelled.
var errTooSlow = errors.New("the bytes came too slowly")

// readSmall reads a whole body of at most most bytes, which take room; the caller gives
// that back when it is done with them. It undoes the gzip of proxies that compress what
// they were asked not to. A body that breaks off is accepted if the bytes that came are
// those of want, which may be "": some servers leave out the end of a chunked body.
// Otherwise the caller checks the bytes.
func (r *Registry) readSmall(ctx context.Context, res *answer, most int64, room *room, want digest.Digest) ([]byte, *failure) {
	tooLarge := func() *failure {
		f := r.garbled(res, "sent more than the %d bytes that are taken", most)
		f.err.Code = oci.CodeSizeInvalid
		return f
	}
	if res.ContentLength > most {
		return nil, tooLarge()
	}
	late := time.AfterFunc(smallTimeout, func() { res.body.cancel(errTooSlow) })
	defer late.Stop()
	raw, broken := io.ReadAll(room.reader(io.LimitReader(res.body, most+1)))
	if errors.Is(broken, errNoRoom) {
		return nil, r.crowded(res)
	}
	if isGzip(res.Header) && bytes.HasPrefix(raw, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(bytes.NewReader(raw))
		if err == nil {
			raw, err = io.ReadAll(room.reader(io.LimitReader(z, most+1)))
		}
		switch {
		case errors.Is(err, errNoRoom):
			return nil, r.crowded(res)
		case err != nil && broken == nil:
			return nil, r.garbled(res, "sent what is not gzip, though it says so")
		}
	}
	switch {
	case int64(len(raw)) > most:
		return nil, tooLarge()
	case broken != nil && (want == "" || want.Algorithm().FromBytes(raw) != want):
		return nil, r.broken(ctx, res.from, broken)
	}
	return raw, nil
}

// refuse passes ep over for a while: what it sent was not what was asked for.
func (r *Registry) refuse(ep *endpoint) {
	ep.rest(afterRefusal)
	r.log.Warn("bytes from the upstream had not the digest that they were asked for by", zap.String("host", ep.host), zap.Duration("passed_over", afterRefusal))
}

// manifestType tells the media type of a manifest: the one that the body itself
// declares, which is under the digest; else what the upstream declares; else
// what its shape shows. What is no manifest by any of them is a failure of the
// endpoint, so that another is tried.
func (r *Registry) manifestType(res *answer, raw []byte) (string, *failure) {
	t := oci.MediaTypeOf(raw, res.Header.Get("Content-Type"))
	if oci.IsSchema1(t) {
		return "", r.schema1(res)
	}
	if _, err := oci.ParseManifest(raw, t); err != nil {
		return "", r.garbled(res, "sent what is not a manifest for %s", res.ask.what)
	}
	return t, nil
}

func (r *Registry) schema1(res *answer) *failure {
	return &failure{status: res.StatusCode, err: &oci.Error{Code: oci.CodeUnsupported, Status: http.StatusBadRequest, Message: fmt.Sprintf(
		"%s has a manifest of Docker's schema 1 at upstream %s, which is not supported any more; whoever owns the image can push it again with a current client", res.ask.what, r.name)}}
}

// declaredType gives the Content-Type of a HEAD, without its parameters, where it
// says something of a manifest; else "". Servers without a word of their own
// send a general type.
func declaredType(h http.Header) string {
	t, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil || !oci.IsIndex(t) && !oci.IsManifest(t) && !oci.IsSchema1(t) {
		return ""
	}
	return t
}

// headerDigest gives Docker-Content-Digest; "" where it is missing, wrong, or of
// an algorithm that is not served.
func headerDigest(h http.Header) digest.Digest {
	d, err := oci.ParseDigest(strings.TrimSpace(h.Get("Docker-Content-Digest")))
	if err != nil {
		return ""
	}
	return d
}
