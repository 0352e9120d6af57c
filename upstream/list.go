package upstream

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"hash/maphash"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unsafe"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// Bounds of a list that comes in pages.
const (
	maxPages     = 10_000
	maxListBytes = 64 << 20  // that the entries take
	maxListRead  = 512 << 20 // with what comes between them
	maxTags      = 1_000_000
	maxReferrers = 100_000
	// largeList is the size in bytes above which a list is read alone.
	largeList = 2 << 20
	// largePatience is how long a request waits for others' large lists.
	largePatience = 10 * time.Second
	// listTimeout is for all pages together.
	listTimeout = 10 * time.Minute
)

// listKind says how a kind of list is read.
type listKind[E any] struct {
	// name is for messages: "a list of tags".
	name string
	// read reads a page, see oci.ReadTags.
	read func(r io.Reader, buffered func(int64) error, add func(E) error) (isList bool, err error)
	// cost gives the bytes that an entry takes; hash one of what distinguishes it.
	cost func(E) int64
	hash func(*maphash.Hash, E)
	most int // entries
}

var tagLists = listKind[string]{
	name: "a list of tags", read: oci.ReadTags, most: maxTags,
	cost: func(t string) int64 { return int64(len(t)) + int64(unsafe.Sizeof(t)) },
	hash: func(h *maphash.Hash, t string) { _, _ = h.WriteString(t); _ = h.WriteByte(0) },
}

var referrerLists = listKind[v1.Descriptor]{
	name: "a list of referrers", read: oci.ReadDescriptors, most: maxReferrers,
	cost: func(d v1.Descriptor) int64 {
		n := int64(unsafe.Sizeof(d)) + int64(len(d.MediaType)+len(d.Digest)+len(d.ArtifactType))
		for _, u := range d.URLs {
			n += int64(len(u)) + int64(unsafe.Sizeof(u))
		}
		for k, v := range d.Annotations {
			n += int64(len(k)+len(v)) + 2*int64(unsafe.Sizeof(k))
		}
		return n
	},
	hash: func(h *maphash.Hash, d v1.Descriptor) { _, _ = h.WriteString(string(d.Digest)) },
}

func (r *Registry) tagsAsk(repo string) *ask {
	return &ask{op: "tags", method: http.MethodGet, repo: repo, path: "tags/list",
		header: http.Header{"Accept": {"application/json"}},
		what:   "the repository " + r.name + "/" + repo, absent: oci.CodeNameUnknown}
}

// Tags lists all tags of repo, sorted, each once.
func (r *Registry) Tags(ctx context.Context, repo string) ([]string, error) {
	tags, _, f := pages(ctx, r, r.tagsAsk(repo), &tagLists)
	if f != nil {
		return nil, f.err
	}
	slices.Sort(tags)
	return slices.Compact(tags), nil
}

// Referrers lists the manifests whose subject is d. It asks the referrers API, and where
// that answers anything but an index, it reads the index under the tag of the tag schema
// (distribution-spec, "Listing Referrers", "Unavailable Referrers API"). No referrers are
// an empty list. An error that wraps oci.ErrUnconfirmed says that there are none as far as
// the tag shows, though the API answered neither a list nor that it does not exist.
func (r *Registry) Referrers(ctx context.Context, repo string, d digest.Digest) ([]v1.Descriptor, error) {
	a := &ask{op: "referrers", method: http.MethodGet, repo: repo, path: "referrers/" + d.String(),
		header: http.Header{"Accept": {v1.MediaTypeImageIndex}}, optional: true,
		what: "the referrers of " + r.image(repo, d.String()), absent: oci.CodeManifestUnknown}
	all, read, f := pages(ctx, r, a, &referrerLists)
	if f == nil {
		return distinct(all), nil
	}
	// Only what the registry answers to the first page says something about the API.
	if read > 0 || !f.lacksAPI() {
		return nil, f.err
	}
	tag := r.manifestAsk("manifest", http.MethodGet, repo, referrersTag(d))
	tag.optional = true
	m, err := r.fetchManifest(ctx, tag, referrersTag(d))
	var e *oci.Error
	switch {
	case err == nil && oci.IsIndex(m.MediaType) && d.Algorithm().FromBytes(m.Bytes) != d:
		all = nil
		if _, err := oci.ReadDescriptors(bytes.NewReader(m.Bytes), nil, func(d v1.Descriptor) error { all = append(all, d); return nil }); err != nil {
			return nil, r.garbledTag(repo, d)
		}
		return distinct(all), nil
	case err == nil, oci.IsAbsent(err), errors.As(err, &e) && e.Code == oci.CodeUnsupported:
		// There is no such tag, or it isn't an index of referrers. GitLab resolves the tag to
		// the subject itself.
	case f.status >= http.StatusInternalServerError && f.status != http.StatusNotImplemented:
		return nil, f.err
	default:
		return nil, err
	}
	switch {
	case f.status == http.StatusNotFound, f.status == http.StatusMethodNotAllowed, f.status == http.StatusNotImplemented:
		return []v1.Descriptor{}, nil
	case f.status >= http.StatusInternalServerError:
		return nil, f.err
	}
	unconfirmed := unavailable(http.StatusBadGateway, oci.ErrUnconfirmed, "%s", f.err.Message)
	unconfirmed.Answered = f.status
	return nil, unconfirmed
}

// lacksAPI reports whether f, upon the first page of an optional list, is an answer of the
// registry and may say that it has no such API: neither a rate limit, nor a lack of memory
// here, nor a connection that broke.
func (f *failure) lacksAPI() bool {
	return (f.status != 0 || oci.IsRefused(f.err)) && f.status != http.StatusTooManyRequests && !errors.Is(f.err, errNoRoom) && !f.partial
}

func (r *Registry) garbledTag(repo string, d digest.Digest) error {
	return unavailable(http.StatusBadGateway, nil, "upstream %s: the index under %s can not be read", r.name, r.image(repo, referrersTag(d)))
}

// distinct drops what comes again, and keeps the order.
func distinct(all []v1.Descriptor) []v1.Descriptor {
	seen := make(map[digest.Digest]bool, len(all))
	some := make([]v1.Descriptor, 0, len(all))
	for _, d := range all {
		if !seen[d.Digest] {
			seen[d.Digest] = true
			some = append(some, d)
		}
	}
	return some
}

// referrersTag gives the tag under which clients keep d's referrers where the
// registry has no API for them.
func referrersTag(d digest.Digest) string {
	tag := []byte(cut(d.Algorithm().String(), 32) + "-" + cut(d.Encoded(), 64))
	for i, c := range tag {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '.', c == '-':
		default:
			tag[i] = '-'
		}
	}
	return string(tag)
}

func cut(s string, n int) string { return s[:min(n, len(s))] }

// collected is a list that is being read.
type collected[E any] struct {
	kind    *listKind[E]
	r       *Registry
	entries []E
	room    room  // what the entries take, and what is read and not decoded
	pending int64 // the latter
	read    int64 // all bytes
	alone   bool  // it has the right to be large
}

// leave gives back what the list took while it was read.
func (l *collected[E]) leave() {
	l.room.leave()
	if l.alone {
		l.r.large.Release(1)
	}
}

// pages gets a list page by page, all from the endpoint that gave the first. It returns
// the entries and the number of pages that it has read. A page behind the first that
// cannot be had is always a failure to find out, whatever the registry answers: with less
// than all pages there is no list.
func pages[E any](ctx context.Context, r *Registry, a *ask, kind *listKind[E]) ([]E, int, *failure) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	l := &collected[E]{kind: kind, r: r, entries: []E{}, room: room{memory: r.memory}}
	defer l.leave()
	seen := map[url.URL]bool{}
	contents := map[uint64]bool{}
	seed := maphash.MakeSeed()
	for read := range maxPages {
		var next *url.URL
		var last *answer
		begin := len(l.entries)
		f := r.do(ctx, a, func(res *answer) *failure {
			l.drop(begin) // of an attempt before
			if res.StatusCode != http.StatusOK {
				return r.unlisted(res, "answered %d to a GET of a list", res.StatusCode)
			}
			if f := l.readPage(ctx, res); f != nil {
				return f
			}
			var err error
			if next, err = rewrite.NextPage(res.Header.Values("Link"), res.at, res.ep.url(a.repo+"/"+a.path)); err != nil {
				f := r.garbled(res, "sent a list whose end can not be found: %v", err)
				f.partial = true
				return f
			}
			seen[*res.at] = true
			last = res
			return nil
		})
		switch {
		case f != nil && read > 0:
			return nil, read, r.incomplete(a, f)
		case f != nil:
			return nil, read, f
		case next == nil:
			return l.entries, read + 1, nil
		}
		// A registry may link to the first page for ever, by the same URL or by another.
		content := l.hash(seed, begin)
		if seen[*next] || len(l.entries) > begin && contents[content] {
			return nil, read + 1, r.endless(last)
		}
		contents[content] = true
		again := *a
		again.page, again.pin = next, last.ep
		a = &again
	}
	return nil, maxPages, &failure{reason: "protocol", err: unavailable(http.StatusBadGateway, nil, "upstream %s: the list of %s has more than %d pages", r.name, a.what, maxPages)}
}

// drop forgets all entries but the first n.
func (l *collected[E]) drop(n int) {
	for _, e := range l.entries[n:] {
		l.room.give(l.kind.cost(e))
	}
	clear(l.entries[n:])
	l.entries = l.entries[:n]
}

// hash gives one of the entries from the given one on.
func (l *collected[E]) hash(seed maphash.Seed, from int) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	for _, e := range l.entries[from:] {
		l.kind.hash(&h, e)
	}
	return h.Sum64()
}

// What ends the reading of a page, beside the reader's errors.
var (
	errEndless = errors.New("the list does not end")
	errLarge   = errors.New("another large list is being read")
)

// readPage reads one page as it comes.
func (l *collected[E]) readPage(ctx context.Context, res *answer) *failure {
	late := time.AfterFunc(smallTimeout, func() { res.body.cancel(errTooSlow) })
	defer late.Stop()
	defer func() { l.room.give(l.pending); l.pending = 0 }()
	wire := &wireReader{Reader: res.body}
	body, err := plain(res.Header, wire)
	if err != nil {
		return l.unread(ctx, res, wire, false, err)
	}
	// What comes out of gzip is bounded as well.
	body = &countedReader{Reader: body, n: &l.read, most: maxListRead}
	isList, err := l.kind.read(body, l.buffer, func(e E) error {
		if len(l.entries) == l.kind.most {
			return errEndless
		}
		if !l.room.take(l.kind.cost(e)) {
			return errNoRoom
		}
		l.entries = append(l.entries, e)
		return l.grown(ctx)
	})
	if err != nil {
		return l.unread(ctx, res, wire, isList, err)
	}
	if !isList {
		return l.r.unlisted(res, "sent what is not %s", l.kind.name)
	}
	return nil
}

// buffer takes room for n bytes that are read and not decoded.
func (l *collected[E]) buffer(n int64) error {
	if n > l.pending {
		if !l.room.take(n - l.pending) {
			return errNoRoom
		}
		l.pending = n
	}
	return nil
}

// grown bounds what the entries take. A large list is read when it is its turn.
func (l *collected[E]) grown(ctx context.Context) error {
	size := l.room.taken - l.pending
	if size > maxListBytes {
		return errEndless
	}
	if size <= largeList || l.alone {
		return nil
	}
	patience, done := context.WithTimeout(ctx, largePatience)
	defer done()
	if l.r.large.Acquire(patience, 1) != nil {
		return errLarge
	}
	l.alone = true
	return nil
}

// unread makes the failure of a page that could not be read because of err. begun says
// that it is a list as far as it goes.
func (l *collected[E]) unread(ctx context.Context, res *answer, wire *wireReader, begun bool, err error) *failure {
	switch {
	case errors.Is(err, errNoRoom), errors.Is(err, errLarge):
		return l.r.crowded(res)
	case errors.Is(err, errEndless):
		return l.r.endless(res)
	case ctx.Err() != nil, wire.err != nil:
		return l.r.broken(ctx, res.from, orElse(wire.err, err))
	case begun:
		f := l.r.garbled(res, "sent %s that can not be read", l.kind.name)
		f.partial = true
		return f
	}
	return l.r.unlisted(res, "sent what is not %s", l.kind.name)
}

// plain undoes the gzip of proxies that compress what they were asked not to.
func plain(h http.Header, body io.Reader) (io.Reader, error) {
	b := bufio.NewReaderSize(body, 16<<10)
	switch strings.ToLower(strings.TrimSpace(h.Get("Content-Encoding"))) {
	case "gzip", "x-gzip":
		if magic, _ := b.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) { // what is shorter is read as it is
			return gzip.NewReader(b)
		}
	}
	return b, nil
}

// wireReader remembers the error by which a body broke off.
type wireReader struct {
	io.Reader
	err error
}

func (w *wireReader) Read(b []byte) (int, error) {
	n, err := w.Reader.Read(b)
	if err != nil && err != io.EOF {
		w.err = err
	}
	return n, err
}

// countedReader ends with errEndless behind most bytes, counted in n.
type countedReader struct {
	io.Reader
	n    *int64
	most int64
}

func (c *countedReader) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	if *c.n += int64(n); *c.n > c.most {
		return 0, errEndless
	}
	return n, err
}

func orElse(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

// unlisted makes the failure of an answer that is not a list. Where the list is
// optional, the endpoint is none the worse for it.
func (r *Registry) unlisted(res *answer, format string, args ...any) *failure {
	f := r.garbled(res, format, args...)
	if res.ask.optional {
		f.reason, f.again = "", nobody
	}
	return f
}

// incomplete makes the failure of a list out of f, that of a page behind the first.
func (r *Registry) incomplete(a *ask, f *failure) *failure {
	if f.err.Code == oci.CodeUnavailable || f.err.Code == oci.CodeTooManyRequests {
		return f
	}
	g := *f
	g.err = unavailable(http.StatusBadGateway, nil, "upstream %s answered %d to a later page of the list of %s", r.name, f.status, a.what)
	g.err.Answered = f.status
	return &g
}

// endless makes the failure of a list that is longer than any true one.
func (r *Registry) endless(res *answer) *failure {
	f := r.garbled(res, "sends a list for %s that does not end", res.ask.what)
	f.again, f.partial = nobody, true
	return f
}
