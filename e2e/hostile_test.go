package e2e

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// hostility is an upstream that means harm, and what becomes of asking it.
type hostility struct {
	// path is asked for, below the repository; several times at once, if times
	// says so.
	path  string
	times int
	// headers are those of the request: name, value, name, value.
	headers []string
	// answer is what the upstream says, to all that it is asked.
	answer http.HandlerFunc
	// statuses are those that are right; a 200 of which the body is cut off
	// counts as 0.
	statuses []int
	// words are in the message of the error.
	words []string
}

const zeroes = "sha256:0000000000000000000000000000000000000000000000000000000000000000"

// rawly answers with bytes that net/http would not send: write is called until it
// fails or gives false.
func rawly(write func(io.Writer) bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer c.Close()
		for write(buf) && buf.Flush() == nil && r.Context().Err() == nil {
		}
		_ = buf.Flush() // the other side is gone where it fails
	}
}

// once is rawly for what is said once, and then nothing, until the other side
// goes.
func once(message string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		c, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer c.Close()
		_, _ = buf.WriteString(message)
		_ = buf.Flush()
		_, _ = io.Copy(io.Discard, c)
	}
}

// endlessly sends a piece again and again behind a beginning.
func endlessly(contentType, begin, piece string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", contentType)
		_, err := io.WriteString(w, begin)
		for many := strings.Repeat(piece, 64<<10/len(piece)+1); err == nil; {
			_, err = io.WriteString(w, many)
		}
	}
}

func saying(contentType, body string, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", contentType)
		for i := 0; i+1 < len(headers); i += 2 {
			w.Header().Add(headers[i], headers[i+1])
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		if r.Method != http.MethodHead {
			_, _ = io.WriteString(w, body)
		}
	}
}

func zipped(body io.Reader) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := io.Copy(z, body); err != nil {
		panic(err)
	}
	if err := z.Close(); err != nil {
		panic(err)
	}
	return b.String()
}

// naming gives a manifest with n layers.
func naming(n int) string {
	var b strings.Builder
	b.WriteString(`{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageManifest + `","layers":[`)
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"digest":"sha256:%064x"}`, i)
	}
	return b.String() + `]}`
}

// hostilities are by the names of their repositories. elsewhere is a host that is
// to be asked for nothing.
func hostilities(elsewhere string) map[string]hostility {
	const tag, tags, index, manifest = "manifests/1.0", "tags/list", v1.MediaTypeImageIndex, v1.MediaTypeImageManifest
	pages := func(link func(r *http.Request) string, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			saying("application/json", body, "Link", link(r))(w, r)
		}
	}
	var page atomic.Int64
	next := func(r *http.Request) string {
		return fmt.Sprintf(`<%s?last=%d>; rel="next"`, r.URL.Path, page.Add(1))
	}
	many := `{"tags":[` + strings.TrimSuffix(strings.Repeat(`"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",`, 150_000), ",") + `]}`
	// A gigabyte in 64 members (RFC 1952, section 2.2): making it at once takes minutes.
	bomb := strings.Repeat(zipped(io.LimitReader(blank{}, 16<<20)), 64)
	token := func(answer http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/token") {
				answer(w, r)
				return
			}
			repo := strings.Split(r.URL.Path, "/")[1]
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/%s/token",service="x"`, r.Host, repo))
			w.WriteHeader(http.StatusUnauthorized)
		}
	}
	challenge := func(realm string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="x"`, realm))
			w.WriteHeader(http.StatusUnauthorized)
		}
	}
	redirect := func(to func(r *http.Request) string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header()["Location"] = []string{to(r)}
			w.WriteHeader(http.StatusTemporaryRedirect)
		}
	}
	to := func(s string) func(*http.Request) string { return func(*http.Request) string { return s } }
	failed := []int{502, 504}
	return map[string]hostility{
		// Manifests.
		"large-manifest": {path: tag, answer: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(64<<20))
			endlessly(manifest, "{", " ")(w, r)
		}, statuses: failed, words: []string{"4194304"}},
		"endless-manifest":   {path: tag, times: 8, answer: endlessly(manifest, `{"layers":[`, "{},"), statuses: failed},
		"100000-layers":      {path: tag, answer: saying(manifest, naming(100_000)), statuses: failed, words: []string{"4194304"}},
		"40000-layers":       {path: tag, answer: saying(manifest, naming(40_000)), statuses: []int{200}},
		"empty-layers":       {path: tag, times: 8, answer: saying(manifest, `{"mediaType":"`+manifest+`","layers":[`+strings.Repeat("{},", 1_390_000)+`{}]}`), statuses: []int{502, 503}},
		"deep-json":          {path: tag, answer: saying(manifest, strings.Repeat(`{"layers":[`, 300_000)), statuses: failed},
		"deep-unknown-json":  {path: tag, answer: saying(manifest, `{"mediaType":"`+manifest+`","x":`+strings.Repeat("[", 2_000_000)+strings.Repeat("]", 2_000_000)+"}"), statuses: failed},
		"both-kinds":         {path: tag, answer: saying(manifest, `{"mediaType":"`+manifest+`","manifests":[],"layers":[]}`), statuses: failed},
		"no-json":            {path: tag, answer: saying("text/html", "<html>\x1b[31m"), statuses: failed},
		"gzip-manifest":      {path: tag, answer: saying(manifest, zipped(strings.NewReader(naming(3))), "Content-Encoding", "gzip"), statuses: []int{200}},
		"gzip-bomb":          {path: tag, times: 4, answer: saying(manifest, bomb, "Content-Encoding", "gzip"), statuses: failed, words: []string{"4194304"}},
		"gzip-nonsense":      {path: tag, answer: saying(manifest, "\x1f\x8b"+strings.Repeat("x", 1000), "Content-Encoding", "gzip"), statuses: failed},
		"short-manifest":     {path: tag, answer: once("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nContent-Type: " + manifest + "\r\n\r\n{}"), statuses: failed},
		"two-lengths":        {path: tag, answer: once("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}}"), statuses: failed},
		"lying-digest":       {path: tag, answer: saying(manifest, naming(1), "Docker-Content-Digest", zeroes), statuses: failed},
		"another-digest":     {path: "manifests/" + zeroes, answer: saying(manifest, naming(1)), statuses: failed},
		"index-in-index":     {path: tag, headers: []string{"Accept", manifest}, answer: saying(index, `{"mediaType":"`+index+`","manifests":[{"mediaType":"`+index+`","digest":"`+zeroes+`","platform":{"os":"linux","architecture":"amd64"}}]}`), statuses: failed},
		"index-of-itself":    {path: tag, headers: []string{"Accept", manifest}, answer: saying(index, `{"mediaType":"`+index+`","manifests":[{"mediaType":"`+manifest+`","digest":"`+zeroes+`","platform":{"os":"linux","architecture":"amd64"}}]}`), statuses: failed},
		"odd-platforms":      {path: tag, headers: []string{"Accept", manifest}, answer: saying(index, `{"mediaType":"`+index+`","manifests":[{"mediaType":"evil\r\nX-Forged: y","digest":"`+zeroes+`","platform":{"os":"\u001b[31m","architecture":"\u0000\n"}}]}`), statuses: []int{404}},
		"odd-content-type":   {path: tag, answer: saying("application/x\x1b[31m\x00", naming(1)), statuses: []int{200, 502}},
		"unsolicited-answer": {path: tag, answer: once("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n\x1b[31m\n"), statuses: []int{404, 502}},
		"a-bad-word": {path: tag, answer: func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(403)
			_, _ = io.WriteString(w, `{"errors":[{"code":"DENIED\n\u001b","message":"see \u001b[31m\nhttps://evil.test/?token=x \u202e\u009b and `+strings.Repeat("x", 9000)+`"}]}`)
		}, statuses: []int{403, 502}},
		"an-endless-word": {path: tag, answer: func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(403)
			endlessly("application/json", `{"errors":[`, "{},")(w, r)
		}, statuses: []int{403}},
		// Heads of answers.
		"endless-header": {path: tag, answer: rawly(headers("X: y\r\n")), statuses: failed},
		"endless-line":   {path: tag, answer: rawly(headers(strings.Repeat("y", 1000))), statuses: failed},
		"endless-hints": {path: tag, answer: rawly(func(w io.Writer) bool {
			_, err := io.WriteString(w, "HTTP/1.1 103 Early Hints\r\n\r\n")
			return err == nil
		}), statuses: failed},
		"dripping-header": {path: tag, answer: rawly(func(w io.Writer) bool {
			time.Sleep(50 * time.Millisecond)
			_, err := w.Write([]byte("H"))
			return err == nil
		}), statuses: failed},
		"no-http": {path: tag, answer: once("SSH-2.0-OpenSSH\r\n"), statuses: failed},
		"silence": {path: tag, answer: once(""), statuses: failed},
		// Lists.
		"endless-tags":        {path: tags, times: 4, answer: endlessly("application/json", `{"tags":[`, `"",`), statuses: failed, words: []string{"list of tags"}},
		"empty-tags":          {path: tags, answer: saying("application/json", `{"tags":[`+strings.Repeat(`"",`, 2_700_000)+`""]}`), statuses: failed},
		"endless-pages":       {path: tags, answer: pages(next, many), statuses: failed, words: []string{"does not end"}},
		"endless-small-pages": {path: tags, answer: pages(next, `{"tags":["a"]}`), statuses: failed, words: []string{"does not end"}},
		"endless-small-referrers": {path: "referrers/" + zeroes, answer: func(w http.ResponseWriter, r *http.Request) {
			saying(index, `{"manifests":[{"digest":"`+zeroes+`"}]}`, "Link", next(r))(w, r)
		}, statuses: failed, words: []string{"does not end"}},
		"pages-in-a-circle": {path: tags, answer: pages(func(r *http.Request) string { return "<" + r.URL.Path + `?last=x>; rel="next"` }, `{"tags":["a"]}`), statuses: failed, words: []string{"does not end"}},
		"page-elsewhere":    {path: tags, answer: pages(to("<http://"+elsewhere+`/v2/a/tags/list>; rel="next"`), `{"tags":["a"]}`), statuses: failed, words: []string{"does not end"}},
		"page-of-a-file":    {path: tags, answer: pages(to(`<file:///etc/passwd>; rel="next"`), `{"tags":["a"]}`), statuses: failed},
		"many-links":        {path: tags, answer: pages(to(strings.Repeat(`<x>; rel="prev", `, 10_000)), `{"tags":["a"]}`), statuses: failed, words: []string{"16384"}},
		"endless-referrers": {path: "referrers/" + zeroes, times: 4, answer: endlessly(index, `{"manifests":[`, "{},"), statuses: failed, words: []string{"list of referrers"}},
		"empty-referrers":   {path: "referrers/" + zeroes, times: 4, answer: saying(index, `{"manifests":[`+strings.Repeat("{},", 2_700_000)+"{}]}"), statuses: []int{502, 503}},
		"deep-referrers":    {path: "referrers/" + zeroes, answer: saying(index, strings.Repeat(`{"manifests":[`, 500_000)), statuses: failed},
		// Tokens.
		"endless-token":     {path: tag, answer: token(endlessly("application/json", `{"token":"`, "x")), statuses: failed},
		"deep-token":        {path: tag, answer: token(saying("application/json", strings.Repeat("[", 1<<20))), statuses: failed},
		"token-of-lines":    {path: tag, answer: token(saying("application/json", `{"token":"x\r\nHost: evil"}`)), statuses: failed},
		"token-elsewhere":   {path: tag, answer: challenge("http://" + elsewhere + "/token"), statuses: []int{403}, words: []string{"realms"}},
		"token-redirected":  {path: tag, answer: token(redirect(to("http://" + elsewhere + "/token"))), statuses: failed},
		"endless-challenge": {path: tag, answer: challenge(strings.Repeat("x", 200_000)), statuses: []int{403, 502}},
		// Redirects.
		"redirect-loop":      {path: "blobs/" + zeroes, answer: redirect(func(r *http.Request) string { return r.URL.Path }), statuses: failed, words: []string{"more than 10 times"}},
		"redirect-longer":    {path: "blobs/" + zeroes, answer: redirect(func(r *http.Request) string { return r.URL.Path + "/x" }), statuses: failed, words: []string{"more than 10 times"}},
		"redirect-elsewhere": {path: "blobs/" + zeroes, answer: redirect(to("http://" + elsewhere + "/x?X-Signature=secret")), statuses: failed, words: []string{"redirect_hosts"}},
		"manifest-elsewhere": {path: tag, answer: redirect(to("//" + elsewhere + "/x")), statuses: failed, words: []string{"redirect_hosts"}},
		"redirect-inside":    {path: "blobs/" + zeroes, answer: redirect(to("https://169.254.169.254/latest/meta-data/")), statuses: failed, words: []string{"redirect_hosts"}},
		"redirect-to-a-file": {path: "blobs/" + zeroes, answer: redirect(to("file:///etc/passwd")), statuses: failed},
		"redirect-of-lines":  {path: "blobs/" + zeroes, answer: once("HTTP/1.1 307 x\r\nLocation: http://x\x0b\x1b[31m/\r\nContent-Length: 0\r\n\r\n"), statuses: failed},
		// Blobs.
		"another-blob":     {path: "blobs/" + zeroes, answer: saying("application/octet-stream", strings.Repeat("x", 100_000)), statuses: []int{0, 502}},
		"zipped-blob":      {path: "blobs/" + digest.FromString("layer").String(), answer: saying("application/octet-stream", zipped(strings.NewReader("layer")), "Content-Encoding", "gzip"), statuses: []int{0, 502}},
		"endless-blob":     {path: "blobs/" + zeroes, answer: endlessly("application/octet-stream", "", "x"), statuses: failed, words: []string{"134217728"}},
		"gigantic-blob":    {path: "blobs/" + zeroes, answer: saying("application/octet-stream", "x", "Content-Range", "bytes 0-0/9223372036854775807"), statuses: []int{0, 502}},
		"range-of-nothing": {path: "blobs/" + zeroes, answer: once("HTTP/1.1 206 x\r\nContent-Range: bytes 9-1/*\r\nContent-Length: 5\r\n\r\nhello"), statuses: failed},
	}
}

// blank is an endless reader of spaces.
type blank struct{}

func (blank) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// headers begins an answer whose header goes on with piece.
func headers(piece string) func(io.Writer) bool {
	return func(w io.Writer) bool {
		_, err := io.WriteString(w, "HTTP/1.1 200 OK\r\nX-0: 1\r\n"+strings.Repeat(piece, 1000))
		return err == nil
	}
}

func TestHostileUpstreamsAreToldOfInWordsWithinBounds(t *testing.T) {
	var strangers atomic.Int64
	elsewhere := recorder(t, "127.0.0.2:0", &strangers)
	cases := hostilities(elsewhere)
	evil := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := strings.Split(r.URL.Path, "/")[1]
		c, ok := cases[name]
		if !ok {
			t.Errorf("the upstream was asked for %s", r.URL.Path)
			return
		}
		c.answer(w, r)
	}))
	defer evil.Close()
	// Each is an upstream of its own, for what one does opens its breaker.
	upstreams := map[string]any{}
	for name := range cases {
		upstreams[name+".test"] = map[string]any{"endpoints": []string{evil.URL + "/" + name},
			"connect_timeout": "2s", "header_timeout": "3s", "stall_timeout": "2s"}
	}
	config, err := json.Marshal(map[string]any{"upstreams": upstreams, "cache": map[string]any{"max_size": "512MiB"}}) // JSON is YAML
	if err != nil {
		t.Fatal(err)
	}
	p := proxy.Start(t, proxy.Options{Dir: nested(t), Config: string(config)})
	before := boundsOf(t, p)
	var peak atomic.Int64
	watching, stop := context.WithCancel(t.Context())
	var watch sync.WaitGroup
	watch.Go(func() {
		for watching.Err() == nil {
			peak.Store(max(peak.Load(), residentBytes(t, p.PID())))
			time.Sleep(20 * time.Millisecond)
		}
	})
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var all sync.WaitGroup
			for i := range max(c.times, 1) {
				path := fmt.Sprintf("/v2/%s.test/a%d/%s", name, i, c.path)
				all.Go(func() { hostile(t, p, path, c) })
			}
			all.Wait()
		})
	}
	stop()
	watch.Wait()
	if n := strangers.Load(); n != 0 {
		t.Errorf("%d connections came to the host elsewhere, want none", n)
	}
	t.Logf("memory: %d MiB at the beginning, %d MiB at most", before.rss>>20, peak.Load()>>20)
	if most := before.rss + 384<<20; peak.Load() > most && !proxy.Raced {
		t.Errorf("the process took %d MiB, want at most %d", peak.Load()>>20, most>>20)
	}
	get(t, p, "/v2/")
	evil.CloseClientConnections() // idle ones are kept for a while, a few for each upstream
	before.wantKept(t, p, 384<<20)
	wantOneLineEach(t, p.Log())
	for _, secret := range []string{"X-Signature", "token=x"} {
		if strings.Contains(p.Log(), secret) {
			t.Errorf("the log tells %q", secret)
		}
	}
}

// askHostile asks for path, and once more where others take up all the memory that
// there is for manifests and lists: that is not what the case is about.
func askHostile(t *testing.T, p *proxy.Proxy, path string, c hostility) (a answer, err error) {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for {
		res, err := open(ctx, p, http.MethodGet, path, c.headers...)
		if err != nil {
			return a, err
		}
		a = answer{method: http.MethodGet, url: path, status: res.StatusCode, header: res.Header}
		a.body, a.err = io.ReadAll(io.LimitReader(res.Body, 1<<30))
		_ = res.Body.Close() // it has been read
		if a.status != http.StatusServiceUnavailable || !bytes.Contains(a.body, []byte("limits.manifests")) || slices.Contains(c.statuses, a.status) {
			return a, nil
		}
		if a.header.Get("Retry-After") == "" {
			t.Errorf("want Retry-After, got %s", a)
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return a, nil
		}
	}
}

// hostile asks for path and checks what c says of the answer.
func hostile(t *testing.T, p *proxy.Proxy, path string, c hostility) {
	a, err := askHostile(t, p, path, c)
	if err != nil {
		t.Errorf("%s: %v", path, err)
		return
	}
	status := a.status
	if a.err != nil {
		status = 0
	}
	if !slices.Contains(c.statuses, status) {
		t.Errorf("want one of %v, got %s", c.statuses, a)
	}
	if a.header.Get("X-Forged") != "" {
		t.Errorf("a header was forged: %s", a)
	}
	if a.status < 400 {
		return
	}
	var e struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(a.body, &e) != nil || len(e.Errors) != 1 || e.Errors[0].Code == "" || len(e.Errors[0].Message) > 1000 ||
		strings.ContainsFunc(string(a.body), func(r rune) bool { return r < ' ' && r != '\n' || r >= 0x7f && r < 0xa0 || r == 0x202e }) {
		t.Errorf("want an error in words, got %s", a)
	}
	if status != 503 {
		for _, w := range c.words {
			if !strings.Contains(string(a.body), w) {
				t.Errorf("want %q in the message, got %s", w, a)
			}
		}
	}
}

// recorder counts the connections that are made to an address, and gives it.
func recorder(t *testing.T, addr string, count *atomic.Int64) string {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	var ended sync.WaitGroup
	ended.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			count.Add(1)
			_ = c.Close()
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		ended.Wait()
	})
	return l.Addr().String()
}
