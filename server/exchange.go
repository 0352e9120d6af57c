package server

import (
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"strings"
	"time"

	"github.com/valyala/fasthttp"
	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache"
	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// exchange is one request and its answer, from the header to the last byte. It
// is the response's body stream too, so that fasthttp tells it (Close) when all
// is sent. It is reused.
type exchange struct {
	s     *Server
	ctx   *fasthttp.RequestCtx
	begin time.Time

	request rewrite.Request
	ns      string
	target  rewrite.Target // its Upstream is empty where none was found
	outcome cache.Outcome
	status  int
	err     error // why it is not answered, or not to the end

	// The body is either bytes or span of blob.
	bytes []byte
	blob  cache.Blob
	span  oci.Span

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
	x.answer()
}

func (s *Server) acquire(ctx *fasthttp.RequestCtx) *exchange {
	x := s.pool.Get().(*exchange)
	*x = exchange{s: s, ctx: ctx, begin: ctx.Time(), scratch: x.scratch[:0]}
	s.metrics.RequestsInFlight.Inc()
	return x
}

// answer finds who answers a request, and leaves the answer in the response.
func (x *exchange) answer() {
	var err error
	x.request, err = rewrite.ParseRequest(string(x.ctx.RequestURI()))
	x.ns, _ = rewrite.QueryValue(x.request.Query, "ns")
	if err != nil || strings.HasPrefix(x.request.Path, "/v2") {
		x.header("Docker-Distribution-Api-Version", "registry/2.0")
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
	switch x.request.Resource {
	case rewrite.Root:
		x.send(fasthttp.StatusOK, "text/plain; charset=utf-8", []byte(greeting))
		return
	case rewrite.Ping:
		x.send(fasthttp.StatusOK, jsonType, []byte("{}"))
		return
	case rewrite.CatalogPath:
		x.catalog()
		return
	case rewrite.UploadPath:
		x.fail(&oci.Error{Code: "BLOB_UPLOAD_UNKNOWN", Status: fasthttp.StatusNotFound, Message: "nothing is uploaded here: " + readOnly})
		return
	case rewrite.Unknown:
		x.fail(&oci.Error{Code: oci.CodeUnsupported, Status: fasthttp.StatusNotFound,
			Message: "this path is not one of the registry API, which lies under /v2/"})
		return
	}
	if x.target, err = x.s.router.Route(x.request.Name, x.ns, string(x.ctx.Host())); err != nil {
		x.fail(err)
		return
	}
	x.target.Tag, x.target.Digest = x.request.Tag, x.request.Digest
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

// send makes b the answer's body. b must not be changed after.
func (x *exchange) send(status int, contentType string, b []byte) {
	x.bytes = b
	x.stream(status, contentType, int64(len(b)))
}

// stream makes the exchange itself the answer's body of size bytes. On HEAD and
// 304 the header alone is sent.
func (x *exchange) stream(status int, contentType string, size int64) {
	x.status = status
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
	x.out = pacer{w: w, conn: x.ctx.Conn(), stall: x.s.stall, last: x.begin}
	if x.blob == nil {
		_, err = x.out.Write(x.bytes)
		return x.out.sent, err
	}
	want := x.span.To - x.span.From
	if want == 0 {
		return 0, nil
	}
	_, err = x.blob.Send(&x.out, x.span)
	if err == nil && x.out.sent != want {
		err = fmt.Errorf("%w: sent %d bytes of %d", io.ErrUnexpectedEOF, x.out.sent, want)
	}
	return x.out.sent, err
}

// Close is called by fasthttp when the body is sent or will not be.
func (x *exchange) Close() error {
	x.release()
	x.record()
	s := x.s
	scratch := x.scratch
	*x = exchange{scratch: scratch}
	s.pool.Put(x)
	return nil
}

// release closes the blob.
func (x *exchange) release() {
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

// pacer passes a body on and puts the connection's write deadline off as long
// as the client takes bytes. Runs of a file are passed on in pieces, each by
// sendfile: within one call nobody would see whether it moves.
type pacer struct {
	w     io.Writer
	conn  net.Conn
	stall time.Duration
	last  time.Time // when the deadline was last set
	first time.Time // when the first byte came
	sent  int64
}

// piece bytes in the stall timeout is the slowest that a client may be.
const piece = 512 << 10

func (p *pacer) Write(b []byte) (int, error) {
	written := 0
	for len(b) > 0 {
		p.putOff()
		n, err := p.w.Write(b[:min(len(b), piece)])
		written += n
		p.sent += int64(n)
		if err != nil {
			return written, err
		}
		b = b[n:]
	}
	return written, nil
}

// ReadFrom keeps to what package net turns into sendfile: an *os.File, bare or
// in one *io.LimitedReader.
func (p *pacer) ReadFrom(r io.Reader) (int64, error) {
	dst, ok := p.w.(io.ReaderFrom)
	if !ok {
		return io.Copy(writerOnly{p}, r)
	}
	limited, isLimited := r.(*io.LimitedReader)
	if !isLimited {
		limited = &io.LimitedReader{R: r, N: 1<<63 - 1}
	}
	var part io.LimitedReader
	var total int64
	for limited.N > 0 {
		p.putOff()
		part = io.LimitedReader{R: limited.R, N: min(limited.N, piece)}
		want := part.N
		n, err := dst.ReadFrom(&part)
		limited.N -= n
		total += n
		p.sent += n
		if err != nil || n < want {
			return total, err
		}
	}
	return total, nil
}

func (p *pacer) putOff() {
	now := time.Now()
	if p.first.IsZero() {
		p.first = now
	}
	if now.Sub(p.last) < p.stall/8 {
		return
	}
	p.last = now
	// An error here comes again, with a better word, from the write.
	_ = p.conn.SetWriteDeadline(now.Add(p.stall))
}

type writerOnly struct{ io.Writer }
