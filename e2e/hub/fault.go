package hub

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// Fault is something that goes wrong with requests. Make one with the functions
// below, narrow it with its methods, give it to Inject:
//
//	h.Inject(hub.Answer(hub.ManifestHead, 503).Times(3))
//	undo := h.Inject(hub.CutAfter(1 << 20).On(layer))
//
// A Fault is a value: each method gives a changed copy.
type Fault struct {
	kind   Kind
	on     digest.Digest
	repo   string
	times  int // zero: until it is undone
	after  int // matching requests that are spared first
	status int
	header http.Header
	body   string
	delay  time.Duration
	until  <-chan struct{}
	rate   int64 // bytes per second
	end    ending
	at     int64
	ranges bool // ignore Range
	length int64
	extra  int64 // bytes that follow the blob's last
	vague  bool  // no Content-Length
	bare   bool  // no Docker-Content-Digest
	lie    bool  // another one
	expire bool
	zip    string // the Content-Encoding of an answer that is compressed on the way

	// act, if it is set, sees the request before anything else and says whether it has
	// answered it.
	act         func(h *Hub, w http.ResponseWriter, r *http.Request) bool
	scopePrefix string               // see NameScopes
	token       func(map[string]any) // see TokenAnswer
	gzip        bool                 // see GzipToken

	// list, later and digestTags are in quirk_list.go.
	list       *listQuirk
	later      bool
	digestTags bool
	// uncounted is Uncounted.
	uncounted bool
}

// ending is how the body of a blob goes wrong, at byte Fault.at of the blob's
// answer (flip: of the blob).
type ending int

const (
	whole ending = iota
	cut
	rst
	stall
	truncate
	flip
)

// Answer makes requests of a kind be answered with status. 401, 429 and such
// carry the error JSON of Docker Hub; see With for headers and Saying for
// another body.
func Answer(k Kind, status int) Fault {
	return Fault{kind: k, status: status, body: errorJSON(codeFor(status), http.StatusText(status))}
}

// TooManyRequests is Docker Hub's second limit, on all requests of an address:
// 429 with a plain body and no rate limit headers.
func TooManyRequests(k Kind) Fault {
	return Fault{kind: k, status: http.StatusTooManyRequests, body: "Too Many Requests (HAP429).\n", header: http.Header{"Content-Type": {"text/html"}}}
}

// Hold makes requests of a kind wait until the channel is closed, before
// anything of the answer is sent.
func Hold(k Kind, until <-chan struct{}) Fault { return Fault{kind: k, until: until} }

// Delay makes requests of a kind wait before they are answered.
func Delay(k Kind, d time.Duration) Fault { return Fault{kind: k, delay: d} }

// Slow sends blobs at that many bytes per second.
func Slow(bytesPerSecond int64) Fault { return Fault{kind: blobs, rate: bytesPerSecond} }

// CutAfter closes the connection after n bytes of a blob's answer, which all
// arrive.
func CutAfter(n int64) Fault { return Fault{kind: blobs, end: cut, at: n} }

// ResetAfter resets the connection after n bytes of a blob's answer, of which
// those that the client has not read yet are lost.
func ResetAfter(n int64) Fault { return Fault{kind: blobs, end: rst, at: n} }

// StallAfter sends nothing more after n bytes of a blob's answer, until the
// client goes away, the fault is undone or the channel is closed, which may be
// nil. Then the rest is sent, unless the client has gone.
func StallAfter(n int64, until <-chan struct{}) Fault {
	return Fault{kind: blobs, end: stall, at: n, until: until}
}

// TruncateAfter ends a blob's answer after n bytes as if that were all: without
// a Content-Length, properly.
func TruncateAfter(n int64) Fault { return Fault{kind: blobs, end: truncate, at: n} }

// Flip changes one bit of byte n of a blob; narrowed by Of(ManifestGet), of a
// manifest.
func Flip(n int64) Fault { return Fault{kind: blobs, end: flip, at: n} }

// IgnoreRange answers requests for a range of a blob with 200 and all of it.
func IgnoreRange() Fault { return Fault{kind: blobs, ranges: true} }

// WrongLength adds delta to the Content-Length of a blob's answer.
func WrongLength(delta int64) Fault { return Fault{kind: blobs, length: delta} }

// Append sends n bytes more than the blob has, and says so in Content-Length.
func Append(n int64) Fault { return Fault{kind: blobs, extra: n} }

// NoLength leaves Content-Length out of a blob's answer: its end is where the
// connection says so.
func NoLength() Fault { return Fault{kind: blobs, vague: true} }

// WrongDigest says in Docker-Content-Digest of manifest answers, and of blobs
// that the registry sends itself, that they are something else. Narrow it with
// Of for one kind.
func WrongDigest() Fault { return Fault{kind: Any, lie: true} }

// NoDigest leaves Docker-Content-Digest out of manifest answers, as some
// registries do. Narrow it with Of for other kinds.
func NoDigest() Fault { return Fault{kind: manifests, bare: true} }

// ExpireURL makes the CDN find the signature of the URL it is asked for to have
// expired: 403, as object stores say it.
func ExpireURL() Fault { return Fault{kind: CDNGet, expire: true} }

// blobs is whoever sends the bytes of blobs: the CDN, or the registry without
// one. manifests is both of GET and HEAD.
const (
	blobs     Kind = "blob bytes"
	manifests Kind = "manifest"
)

// Of narrows the fault to requests of a kind.
func (f Fault) Of(k Kind) Fault { f.kind = k; return f }

// On narrows the fault to requests for that blob, or for that manifest by
// digest.
func (f Fault) On(d digest.Digest) Fault { f.on = d; return f }

// In narrows the fault to a repository. The CDN does not know repositories: a
// fault of its requests never matches.
func (f Fault) In(repository string) Fault { f.repo = repository; return f }

// Times lets the fault happen to the next n matching requests only.
func (f Fault) Times(n int) Fault { f.times = n; return f }

// After spares the first n matching requests.
func (f Fault) After(n int) Fault { f.after = n; return f }

// With adds a header to the answer of Answer: With("Retry-After", "7").
func (f Fault) With(key, value string) Fault {
	f.header = f.header.Clone()
	if f.header == nil {
		f.header = http.Header{}
	}
	f.header.Set(key, value)
	return f
}

// Saying replaces the body of Answer.
func (f Fault) Saying(body string) Fault { f.body = body; return f }

// rule is a fault in force.
type rule struct {
	Fault
	left   int
	spare  int
	undone chan struct{}
}

// Inject puts a fault in force and gives the function that ends it, which may
// be called more than once. Of several faults that match a request all happen.
func (h *Hub) Inject(f Fault) (undo func()) {
	r := &rule{Fault: f, left: f.times, spare: f.after, undone: make(chan struct{})}
	h.mu.Lock()
	h.faults = append(h.faults, r)
	h.mu.Unlock()
	return func() { h.undo(func(o *rule) bool { return o == r }) }
}

// Mend ends all faults; Down, BlackHole and BreakTLS are not among them.
func (h *Hub) Mend() { h.undo(func(*rule) bool { return true }) }

func (h *Hub) undo(which func(*rule) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.faults = slices.DeleteFunc(h.faults, func(r *rule) bool {
		if !which(r) {
			return false
		}
		close(r.undone)
		return true
	})
}

// ask is what the faults are matched with.
type ask struct {
	kind   Kind
	repo   string
	digest digest.Digest
	// bytes is set where this request's answer has the bytes of a blob.
	bytes bool
	// later is set for a page of a list behind the first.
	later bool
}

func (f *Fault) matches(a ask) bool {
	switch f.kind {
	case Any, a.kind:
	case blobs:
		if !a.bytes {
			return false
		}
	case registryKinds:
		if a.kind == Token || a.kind == CDNGet {
			return false
		}
	case manifests:
		if a.kind != ManifestGet && a.kind != ManifestHead {
			return false
		}
	case lists:
		if a.kind != Tags && a.kind != Referrers {
			return false
		}
	default:
		return false
	}
	return (f.on == "" || f.on == a.digest) && (f.repo == "" || f.repo == a.repo) && (!f.later || a.later)
}

// trouble takes the faults that a request meets, and counts them as happened.
func (h *Hub) trouble(a ask) []*rule {
	h.mu.Lock()
	defer h.mu.Unlock()
	var met []*rule
	for _, r := range h.faults {
		if !r.matches(a) || (r.times > 0 && r.left == 0) {
			continue
		}
		if r.spare > 0 {
			r.spare--
			continue
		}
		r.left--
		met = append(met, r)
	}
	return met
}

// before does what the faults do ahead of the answer. It tells whether they
// have answered.
func (h *Hub) before(w http.ResponseWriter, r *http.Request, met []*rule) (answered bool) {
	for _, f := range met {
		if f.end == whole && f.until != nil {
			h.wait(r, f, f.until)
		}
		if f.delay > 0 {
			t := time.NewTimer(f.delay)
			select {
			case <-t.C:
			case <-f.undone:
			case <-r.Context().Done():
			case <-h.done.Done():
			}
			t.Stop()
		}
	}
	for _, f := range met {
		if f.act != nil && f.act(h, w, r) {
			return true
		}
		if f.status == 0 {
			continue
		}
		w.Header().Set("Content-Type", "application/json")
		for k, v := range f.header {
			w.Header()[k] = v
		}
		w.WriteHeader(f.status)
		if r.Method != http.MethodHead {
			_, _ = w.Write([]byte(f.body)) // the client may be gone
		}
		return true
	}
	return false
}

// wait holds r until the channel is closed or the fault is undone. It does not
// return where the client or the hub goes away first.
func (h *Hub) wait(r *http.Request, f *rule, until <-chan struct{}) {
	select {
	case <-until: // a nil channel never is
	case <-f.undone:
	case <-r.Context().Done():
		panic(http.ErrAbortHandler)
	case <-h.done.Done():
		panic(http.ErrAbortHandler)
	}
}

func codeFor(status int) string {
	switch status {
	case http.StatusUnauthorized:
		return "UNAUTHORIZED"
	case http.StatusForbidden:
		return "DENIED"
	case http.StatusNotFound:
		return "MANIFEST_UNKNOWN"
	case http.StatusTooManyRequests:
		return "TOOMANYREQUESTS"
	case http.StatusServiceUnavailable:
		return "UNAVAILABLE"
	}
	return "UNKNOWN"
}

func errorJSON(code, message string) string {
	return fmt.Sprintf(`{"errors":[{"code":%q,"message":%q}]}`+"\n", code, strings.ReplaceAll(message, "\n", " "))
}
