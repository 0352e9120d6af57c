package server

import (
	"fmt"
	"io"
	"net/netip"
	"runtime/debug"
	"strings"
	"time"
	"unsafe"

	"github.com/valyala/fasthttp"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/access"
	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// exchange is one request and its answer, from the header to the last byte. It
// is the response's body stream too, so that fasthttp tells it (Close) when all
// is sent. It is reused.
type exchange struct {
	s     *Server
	by    *admission
	ctx   *fasthttp.RequestCtx
	begin time.Time

	request rewrite.Request
	ns      string
	caller  *access.Caller // nil where nobody was asked for
	at      netip.Addr     // of the client; not valid where that is the peer
	target  oci.Target     // its Upstream is empty where none was found
	outcome cache.Outcome
	status  int
	err     error // why it is not answered, or not to the end
	// challenged is set where the caller is asked who it is.
	challenged bool

	// The body is bytes, or span of blob; or, if parts is set, several spans of either.
	bytes []byte
	blob  cache.Blob
	span  oci.Span
	parts *byteranges
	// length is the number of bytes of the body.
	length int64
	// held has bytes, if other clients may be reading them too.
	held *heldBody

	out     pacer
	scratch []byte // for header values
}

var _ fasthttp.BodyWriterTo = (*exchange)(nil)

func (s *Server) handle(ctx *fasthttp.RequestCtx) {
	x := s.acquire(ctx)
	defer func() {
		if v := recover(); v != nil {
			x.panicked(v)
			x.release()
			x.fail(fmt.Errorf("panic: %v", v))
		}
	}()
	own(ctx.Conn()).enter(answering)
	if s.requests.Load() > s.maxRequests {
		x.refuseRequest()
		return
	}
	x.answer()
}

func (s *Server) acquire(ctx *fasthttp.RequestCtx) *exchange {
	x := s.pool.Get().(*exchange)
	*x = exchange{s: s, by: s.admit.Load(), ctx: ctx, begin: ctx.Time(), scratch: x.scratch[:0], out: pacer{putsOff: x.out.putsOff}}
	s.requests.Add(1)
	s.metrics.RequestsInFlight.Inc()
	return x
}

// answer finds who answers a request, and leaves the answer in the response.
func (x *exchange) answer() {
	var err error
	x.request, err = rewrite.ParseRequest(inPlace(x.ctx.RequestURI()))
	x.ns, _ = rewrite.QueryValue(x.request.Query, "ns")
	if err != nil || x.request.Resource != rewrite.Root && (x.request.Resource != rewrite.Unknown || strings.HasPrefix(x.request.Path, "/v2")) {
		x.known(headerAPIVersion, valueAPIVersion)
	}
	if n := x.ctx.Request.Header.ContentLength(); n > 0 || n == -1 {
		// Nothing here has use for a body. That the next request begins where
		// this server takes a body to end is not to matter to anyone.
		x.ctx.Response.SetConnectionClose()
	}
	switch {
	case !x.ctx.IsGet() && !x.ctx.IsHead():
		x.refusePush()
		return
	case err != nil:
		x.fail(err)
		return
	}
	if x.ns != "" {
		if _, ok := x.s.router.Upstream(x.ns); ok {
			// "OCI-Namespace" of distribution-spec, "Registry Proxying".
			x.header("OCI-Namespace", x.ns)
		}
	}
	if x.request.Resource == rewrite.Root {
		x.send(fasthttp.StatusOK, "text/plain; charset=utf-8", []byte(greeting))
		return
	}
	if err = x.identify(); err != nil {
		x.fail(err)
		return
	}
	switch x.request.Resource {
	case rewrite.Ping:
		if x.pinged() {
			return
		}
		x.send(fasthttp.StatusOK, jsonType, []byte("{}"))
		return
	case rewrite.CatalogPath:
		x.catalog()
		return
	case rewrite.UploadPath:
		x.fail(&oci.Error{Code: "BLOB_UPLOAD_UNKNOWN", Status: fasthttp.StatusNotFound, Message: "nothing is uploaded here: " + readOnly})
		return
	case rewrite.Unknown:
		if x.token() {
			return
		}
		x.fail(&oci.Error{Code: oci.CodeUnsupported, Status: fasthttp.StatusNotFound,
			Message: "this path is not one of the registry API, which lies under /v2/; if this is a mirror's URL, write it without a path"})
		return
	}
	if x.target, err = x.s.router.Route(x.request.Name, x.ns, inPlace(x.ctx.Host())); err != nil {
		x.fail(err)
		return
	}
	if err = x.allowed(); err != nil {
		x.fail(err)
		return
	}
	x.target.Tag, x.target.Digest, x.target.AsOf = x.request.Tag, x.request.Digest, x.request.AsOf
	if !x.admitted() {
		return
	}
	switch x.request.Resource {
	case rewrite.ManifestPath:
		x.manifest()
	case rewrite.BlobPath:
		x.sendBlob()
	case rewrite.TagsPath:
		x.tags()
	case rewrite.ReferrersPath:
		x.referrers()
	}
}

// inPlace gives b, a part of the request, as a string without a copy: good until
// the answer is sent, when fasthttp reads the next request into the same bytes. So
// is what the exchange's request and target hold.
func inPlace(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) } // #nosec G103 -- nothing of it outlives the request

const (
	greeting = "This is Entrepot, a caching proxy of container registries.\n" +
		"The registry API lies under /v2/; point a container engine's registry mirror here.\n"
	readOnly = "this cache is read-only; push to the registry that the image belongs to"
	jsonType = "application/json"
)

// refusePush answers whatever would change something. The body, which may be
// gigabytes, is not read; so the connection ends here.
func (x *exchange) refusePush() {
	x.header("Allow", "GET, HEAD")
	x.ctx.Response.SetConnectionClose()
	x.fail(&oci.Error{Code: oci.CodeUnsupported, Status: fasthttp.StatusMethodNotAllowed,
		Message: "pushing, mounting and deleting are not supported: " + readOnly})
}

func (x *exchange) header(key, value string) { x.ctx.Response.Header.Set(key, value) }

// Names of headers that go with most answers, as they are written: fasthttp need
// not make them so each time.
var (
	headerAPIVersion   = []byte("Docker-Distribution-Api-Version")
	headerDigest       = []byte("Docker-Content-Digest")
	headerETag         = []byte("Etag")
	headerAcceptRanges = []byte("Accept-Ranges")
	headerContentRange = []byte("Content-Range")
	headerCacheStatus  = []byte("Cache-Status")
	headerAge          = []byte("Age")
	headerVary         = []byte("Vary")
	headerLocation     = []byte("Location")

	valueAPIVersion = []byte("registry/2.0")
	valueBytes      = []byte("bytes")
	valueAccept     = []byte("Accept")
)

// known sets one of those.
func (x *exchange) known(key, value []byte) { x.ctx.Response.Header.SetCanonical(key, value) }

// send makes b the answer's body. b must not be changed after.
func (x *exchange) send(status int, contentType string, b []byte) {
	x.bytes = b
	x.stream(status, contentType, int64(len(b)))
}

// stream makes the exchange itself the answer's body of size bytes. On HEAD and
// 304 the header alone is sent.
func (x *exchange) stream(status int, contentType string, size int64) {
	x.status, x.length = status, size
	x.outcomeHeaders()
	x.ctx.Response.SetStatusCode(status) // before the length, which 304 leaves out
	x.ctx.Response.Header.SetContentType(contentType)
	x.ctx.Response.SetBodyStream(x, int(size))
}

// Read is never called: fasthttp uses WriteTo.
func (x *exchange) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// SupportsBodyWriteTo makes fasthttp use WriteTo, and so sendfile.
func (x *exchange) SupportsBodyWriteTo() bool { return true }

// WriteTo sends the body to fasthttp's writer. Any error makes fasthttp close
// the connection, so that the client sees a body that is too short.
func (x *exchange) WriteTo(w io.Writer) (n int64, err error) {
	defer func() {
		if v := recover(); v != nil {
			x.panicked(v)
			err = fmt.Errorf("panic: %v", v)
		}
		n = x.out.sent
		if err != nil && x.err == nil {
			x.err = err
		}
	}()
	x.out = pacer{
		w: w, conn: x.ctx.Conn(), stall: x.s.stall, last: x.begin, putsOff: x.out.putsOff,
		direct: x.ctx.Response.ImmediateHeaderFlush && x.s.tls == nil, left: x.length,
	}
	if c := own(x.out.conn); c != nil {
		x.out.socket = c.socket
	}
	switch {
	case x.parts != nil:
		err = x.sendParts()
	case x.blob != nil:
		err = x.sendSpan(x.span)
	default:
		_, err = x.out.Write(x.bytes)
	}
	return x.out.sent, err
}

// sendSpan sends a span of the blob, or of the bytes if there is no blob.
func (x *exchange) sendSpan(span oci.Span) error {
	if span.From == span.To {
		return nil
	}
	if x.blob == nil {
		_, err := x.out.Write(x.bytes[span.From:span.To])
		return err
	}
	before, want := x.out.sent, span.To-span.From
	_, err := x.blob.Send(&x.out, span)
	if sent := x.out.sent - before; err == nil && sent != want {
		err = fmt.Errorf("%w: sent %d bytes of %d", io.ErrUnexpectedEOF, sent, want)
	}
	return err
}

// Close is called by fasthttp when the body is sent or will not be.
func (x *exchange) Close() error {
	x.release()
	x.forgetRange()
	x.record()
	s := x.s
	*x = exchange{scratch: x.scratch, out: pacer{putsOff: x.out.putsOff}}
	s.pool.Put(x)
	return nil
}

// release closes the blob, and lets go of the body that is held.
func (x *exchange) release() {
	if x.held != nil {
		x.held.release()
		x.held = nil
	}
	if x.blob == nil {
		return
	}
	if err := x.blob.Close(); err != nil && x.err == nil {
		x.err = fmt.Errorf("close blob: %w", err)
	}
	x.blob = nil
}

func (x *exchange) panicked(v any) {
	x.s.log.Error("panic while answering a request", zap.String("panic", fmt.Sprint(v)), zap.ByteString("stack", debug.Stack()))
}
