package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/entrepot-dev/entrepot/e2e/hub"
	"github.com/entrepot-dev/entrepot/e2e/proxy"
)

// besieged starts a proxy for attacks, with an image in it, and gives the path of
// a blob of that image.
func besieged(t *testing.T) (h *hub.Hub, p *proxy.Proxy, blob string, content []byte) {
	t.Helper()
	h = hub.New(t, hub.Options{})
	p = proxy.Start(t, proxy.Options{Upstreams: map[string]*hub.Hub{"docker.io": h}, Dir: nested(t),
		Config: "limits: {header_timeout: 2s, idle_timeout: 3s}\n" + believing})
	_, content, blob = blobOf(h, "library/app", 1, 100_000)
	get(t, p, "/v2/library/app/manifests/1.0")
	get(t, p, blob)
	p.WaitIdle(t)
	return h, p, blob, content
}

// shoot sends bytes on a connection of its own, as they are, and gives the answers
// that come until the other side closes it or has said nothing for a while.
// methods are those of the requests, where they are not GET.
func shoot(t *testing.T, p *proxy.Proxy, message string, methods ...string) (answers []answer, closed bool) {
	t.Helper()
	c := dial(t, p)
	defer c.Close()
	go func() { _, _ = io.WriteString(c, message) }() // ends with the connection
	r := bufio.NewReader(c)
	for len(answers) < 1000 {
		wait := 5 * time.Second // the first is always there, or the connection's end
		if len(answers) > 0 {
			wait = 200 * time.Millisecond
		}
		_ = c.SetReadDeadline(time.Now().Add(wait))
		if _, err := r.Peek(1); err != nil {
			timeout, ok := err.(net.Error)
			return answers, !ok || !timeout.Timeout()
		}
		_ = c.SetReadDeadline(time.Now().Add(limit))
		req := &http.Request{Method: http.MethodGet}
		if len(answers) < len(methods) {
			req.Method = methods[len(answers)]
		}
		res, err := http.ReadResponse(r, req)
		if err != nil {
			t.Errorf("%.200q: not an answer: %v", message, err)
			return answers, true
		}
		if res.StatusCode == http.StatusContinue {
			continue // an answer follows
		}
		a := answer{method: req.Method, url: fmt.Sprintf("%.200q", message), status: res.StatusCode, header: res.Header}
		a.body, a.err = io.ReadAll(res.Body)
		answers = append(answers, a)
	}
	return answers, false
}

// request makes a GET with header lines.
func request(path string, lines ...string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: cache\r\n" + strings.Join(append(lines, ""), "\r\n") + "\r\n"
}

func TestHostilePathsAreAnsweredInWordsAndReachNobody(t *testing.T) {
	h, p, blob, content := besieged(t)
	sum := strings.TrimPrefix(blob, "/v2/library/app/blobs/sha256:")
	before, asked := boundsOf(t, p), h.Counts()
	long := func(n int) string { return strings.Repeat("a", n) }
	for _, c := range []struct {
		path   string
		status int
		code   string
	}{
		// Percent signs are read once, and what they make is judged as if it
		// had been written so.
		{"/v2/library%2fapp/manifests/1.0", 200, ""},
		{"/%76%32/library/app/manifests/1.0", 200, ""},
		{"/v2/library%252fapp/manifests/1.0", 400, "NAME_INVALID"},
		{"/v2/library%25252fapp/manifests/1.0", 400, "NAME_INVALID"},
		{"/v2/library%5capp/manifests/1.0", 400, "NAME_INVALID"},
		{`/v2/library\app/manifests/1.0`, 400, "NAME_INVALID"},
		{"/v2/library%c0%afapp/manifests/1.0", 400, "NAME_INVALID"},
		{"/v2/library%ef%bc%8fapp/manifests/1.0", 400, "NAME_INVALID"},
		{"/v2/library/app/manifests/%", 400, "NAME_INVALID"},
		{"/v2/library/app/manifests/%zz", 400, "NAME_INVALID"},
		// Dots.
		{"/v2/../../etc/passwd", 404, "UNSUPPORTED"},
		{"/../../../../etc/passwd", 404, "UNSUPPORTED"},
		{"/v2/../v2/library/app/manifests/1.0", 400, "NAME_INVALID"},
		{"/v2/library/../library/app/manifests/1.0", 400, "NAME_INVALID"},
		{"/v2/./library/app/manifests/1.0", 400, "NAME_INVALID"},
		{"/v2/%2e%2e/%2e%2e/etc/manifests/1.0", 400, "NAME_INVALID"},
		{"/v2/..%2f..%2fblobs/manifests/1.0", 400, "NAME_INVALID"},
		{"/v2/library/app/manifests/..", 404, "TAG_INVALID"},
		{"/v2/library/app/manifests/..%2f..%2f..%2findex.db", 404, "TAG_INVALID"},
		{"/v2/library/app/blobs/../../../../etc/passwd", 400, "DIGEST_INVALID"},
		{"/v2/library/app/blobs/sha256:../../../../../etc/passwd", 400, "DIGEST_INVALID"},
		{"/v2/library/app/blobs/sha256:" + strings.Repeat("../", 21) + "x", 400, "DIGEST_INVALID"},
		{"/v2/library/app/blobs/..%2f" + sum, 400, "DIGEST_INVALID"},
		// Empty components.
		{"/v2//library/app/manifests/1.0", 400, "NAME_INVALID"},
		{"/v2/library//app/manifests/1.0", 400, "NAME_INVALID"},
		{"/v2/manifests/1.0", 400, "NAME_INVALID"},
		{"//v2/library/app/manifests/1.0", 404, "UNSUPPORTED"},
		// Control characters.
		{"/v2/library/app%00/manifests/1.0", 400, "NAME_INVALID"},
		{"/v2/library/app/manifests/1.0%00", 404, "TAG_INVALID"},
		{"/v2/library/app/manifests/1.0%0d%0aX-Forged:%20yes", 400, "DIGEST_INVALID"},
		{"/v2/library/%0d%0a%1b[31m/manifests/1.0", 400, "NAME_INVALID"},
		{"/v2/library/%c2%9b31m/manifests/1.0", 400, "NAME_INVALID"},
		{"/%1b[2J%0aforged", 404, "UNSUPPORTED"},
		// Too long, and no names.
		{"/v2/library/" + long(300) + "/manifests/1.0", 400, "NAME_INVALID"},
		{"/v2/" + strings.Repeat("a/", 2000) + "a/manifests/1.0", 400, "NAME_INVALID"},
		{"/v2/library/app/manifests/" + long(129), 404, "TAG_INVALID"},
		{"/v2/library/" + long(9000) + "/manifests/1.0", 400, "NAME_INVALID"},
		{"/v2/Library/App/manifests/1.0", 400, "NAME_INVALID"},
		{"/v2/library/app;x=1/manifests/1.0", 400, "NAME_INVALID"},
		// Digests of what there is not, and of what looks like one.
		{"/v2/library/app/blobs/md5:d41d8cd98f00b204e9800998ecf8427e", 400, "DIGEST_INVALID"},
		{"/v2/library/app/blobs/sha1:" + long(40), 400, "DIGEST_INVALID"},
		{"/v2/library/app/blobs/sha384:" + long(96), 400, "DIGEST_INVALID"},
		{"/v2/library/app/blobs/tarsum.v1+sha256:" + sum, 400, "DIGEST_INVALID"},
		{"/v2/library/app/blobs/SHA256:" + sum, 400, "DIGEST_INVALID"},
		{"/v2/library/app/blobs/sha256:" + strings.ToUpper(sum), 400, "DIGEST_INVALID"},
		{"/v2/library/app/blobs/sha256:" + sum[1:], 400, "DIGEST_INVALID"},
		{"/v2/library/app/blobs/sha256:" + sum + "0", 400, "DIGEST_INVALID"},
		{"/v2/library/app/blobs/sha256:", 400, "DIGEST_INVALID"},
		{"/v2/library/app/blobs/sha256", 400, "DIGEST_INVALID"},
		{"/v2/library/app/referrers/x:y", 400, "DIGEST_INVALID"},
		// Hosts that nobody configured.
		{"/v2/library/app/manifests/1.0?ns=169.254.169.254", 404, "NAME_UNKNOWN"},
		{"/v2/library/app/manifests/1.0?ns=" + h.Host(), 404, "NAME_UNKNOWN"},
		{"/v2/library/app/manifests/1.0?ns=%2e%2e%2f%00", 404, "NAME_UNKNOWN"},
		{"/v2/library/app/manifests/1.0?ns=docker.io%00.evil.test", 404, "NAME_UNKNOWN"},
		{"/v2/169.254.169.254/latest/meta-data/manifests/1.0", 404, "NAME_UNKNOWN"},
		{"/v2/" + h.Host() + "/library/app/manifests/1.0", 404, "NAME_UNKNOWN"},
		{"http://169.254.169.254/latest/meta-data/", 404, "UNSUPPORTED"},
		{"http://" + h.Host() + "/v2/library/app/manifests/1.0", 200, ""},
		// Queries.
		{"/v2/library/app/manifests/1.0?" + strings.Repeat("a=b&", 1500), 200, ""},
		{"/v2/library/app/manifests/1.0?" + long(9000), 400, "NAME_INVALID"},
		{"/v2/_catalog?n=99999999999999999999999&last=%00%0a", 200, ""},
		{"/v2/_catalog?n=-1", 400, "PAGINATION_NUMBER_INVALID"},
	} {
		answers, _ := shoot(t, p, request(c.path, "Connection: close", "User-Agent: \xc2\x9b31m \xe2\x80\xae evil"))
		if len(answers) != 1 {
			t.Errorf("GET %.100q: %d answers, want one", c.path, len(answers))
			continue
		}
		if a := answers[0]; c.status != 200 {
			m := a.wantError(t, c.status, c.code)
			if strings.ContainsFunc(m, func(r rune) bool { return r < ' ' || r > '~' && r != '…' }) || len(m) > 1000 {
				t.Errorf("GET %.100q: the message is %q", c.path, m)
			}
			if a.header.Get("X-Forged") != "" {
				t.Errorf("GET %.100q forges a header: %v", c.path, a.header)
			}
		} else if a.status != 200 {
			t.Errorf("want 200, got %s", a)
		}
	}
	wantUnmoved(t, asked, h.Counts())
	wantBytes(t, "afterwards", content, get(t, p, blob).body)
	before.wantKept(t, p, 64<<20)
	wantOneLineEach(t, p.Log())
}

func TestHostileHeadersAreAnsweredOrCutOff(t *testing.T) {
	h, p, blob, content := besieged(t)
	before, asked := boundsOf(t, p), h.Counts()
	const path = "/v2/library/app/manifests/1.0"
	ranges := func(n int) string { return "Range: bytes=" + strings.TrimSuffix(strings.Repeat("0-0,", n), ",") }
	for name, c := range map[string]struct {
		path   string
		lines  []string
		status int
		length int // of the body, where it is a blob's
	}{
		"Accept of 64 KB":           {path, []string{"Accept: " + strings.Repeat("application/x,", 4700)}, 431, 0},
		"Accept of 15 KB":           {path, []string{"Accept: " + strings.Repeat("application/x,", 1100) + "*/*"}, 200, 0},
		"Accept of commas":          {path, []string{"Accept: " + strings.Repeat(",;\"", 4000)}, 200, 0},
		"ten thousand headers":      {path, slices.Repeat([]string{"X: y"}, 10_000), 431, 0},
		"a header of 1 MB":          {path, []string{"X: " + strings.Repeat("y", 1<<20)}, 431, 0},
		"a name of 1 MB":            {path, []string{strings.Repeat("y", 1<<20) + ": x"}, 431, 0},
		"many cookies":              {path, slices.Repeat([]string{"Cookie: a=b"}, 1000), 200, 0},
		"a thousand ranges":         {blob, []string{ranges(1000)}, 206, 1},
		"more than a thousand":      {blob, []string{ranges(1025)}, 400, 0},
		"ranges of 200 KB":          {blob, []string{ranges(50_000)}, 400, 0},
		"ranges of 60 KB":           {blob, []string{"Range: bytes=" + strings.Repeat(" ", 60<<10) + "0-0,2-2"}, 206, 0},
		"overlapping ranges":        {blob, []string{"Range: bytes=0-,0-,0-,0-"}, 206, len(content)},
		"a range among nonsense":    {blob, []string{"Range: bytes=0-0,x"}, 200, len(content)},
		"ranges of nothing":         {blob, []string{"Range: bytes=-0,99999999999999-,-0"}, 416, 0},
		"a range beyond all":        {blob, []string{"Range: bytes=99999999999999999999999999-"}, 416, 0},
		"a range that ends there":   {blob, []string{"Range: bytes=99999-99999999999999999999999999"}, 206, 1},
		"a suffix beyond all":       {blob, []string{"Range: bytes=-99999999999999999999999999"}, 206, len(content)},
		"an empty suffix":           {blob, []string{"Range: bytes=-0"}, 416, 0},
		"a range backwards":         {blob, []string{"Range: bytes=5-2"}, 200, len(content)},
		"a range of another unit":   {blob, []string{"Range: parsecs=1-2"}, 200, len(content)},
		"two Range headers":         {blob, []string{"Range: bytes=0-0", "Range: bytes=1-2"}, 206, 0},
		"a long If-None-Match":      {blob, []string{"If-None-Match: " + strings.Repeat(`"x",`, 3000)}, 200, len(content)},
		"a NUL":                     {path, []string{"X: a\x00b"}, 400, 0},
		"a bare CR":                 {path, []string{"X: a\rInjected: b"}, 400, 0},
		"a header without a colon":  {path, []string{"nothing"}, 400, 0},
		"a header without a name":   {path, []string{": x"}, 400, 0},
		"a space before the colon":  {path, []string{"X : y"}, 400, 0},
		"two hosts":                 {path, []string{"Host: other"}, 400, 0},
		"credentials of somebody":   {path, []string{"Authorization: Basic " + strings.Repeat("QQ", 4000)}, 200, 0},
		"an upgrade":                {path, []string{"Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"}, 200, 0},
		"an expectation":            {path, []string{"Expect: 100-continue"}, 200, 0},
		"X-Forwarded-For of nobody": {path, []string{"X-Forwarded-For: " + strings.Repeat("1.2.3.4, ", 1000)}, 200, 0},
	} {
		answers, _ := shoot(t, p, request(c.path, append(c.lines, "Connection: close")...))
		if len(answers) == 0 && c.status >= 400 {
			continue // cut off: what was refused was still being sent
		}
		if len(answers) != 1 || answers[0].status != c.status {
			t.Errorf("%s: want one answer, %d, got %v", name, c.status, answers)
			continue
		}
		if a := answers[0]; c.status >= 400 {
			code := "UNSUPPORTED"
			if c.status == 416 || strings.HasPrefix(c.lines[0], "Range") {
				code = "RANGE_INVALID"
			}
			a.wantError(t, c.status, code)
		} else if c.length > 0 && len(a.body) != c.length {
			t.Errorf("%s: want %d bytes, got %d", name, c.length, len(a.body))
		}
	}
	wantUnmoved(t, asked, h.Counts())
	wantBytes(t, "afterwards", content, get(t, p, blob).body)
	before.wantKept(t, p, 64<<20)
	wantOneLineEach(t, p.Log())
}

// What a front end before this one could take for one request, and this one for
// two, ends the connection: what follows is never answered.
func TestNoRequestIsSmuggledBehindAnother(t *testing.T) {
	h, p, blob, content := besieged(t)
	before, asked := boundsOf(t, p), h.Counts()
	const path = "/v2/library/app/manifests/1.0"
	hidden := request("/v2/_catalog") // its answer would name what is cached
	chunked := func(size string) string { return size + "\r\n" + hidden + "\r\n0\r\n\r\n" }
	for name, c := range map[string]struct {
		message string
		methods []string
	}{
		"two lengths":                  {request(path, "Content-Length: 0", fmt.Sprint("Content-Length: ", len(hidden))) + hidden, nil},
		"two lengths alike":            {request(path, "Content-Length: 0", "Content-Length: 0") + hidden, nil},
		"a list of lengths":            {request(path, "Content-Length: 0, 0") + hidden, nil},
		"a length with a sign":         {request(path, "Content-Length: +0") + hidden, nil},
		"a negative length":            {request(path, "Content-Length: -1") + hidden, nil},
		"a length in hex":              {request(path, "Content-Length: 0x0") + hidden, nil},
		"an endless length":            {request(path, "Content-Length: 99999999999999999999999999") + hidden, nil},
		"a space before the colon":     {request(path, "Content-Length : 5") + hidden, nil},
		"length and chunks":            {request(path, "Content-Length: 0", "Transfer-Encoding: chunked") + chunked(fmt.Sprintf("%x", len(hidden))), nil},
		"chunks and length":            {request(path, "Transfer-Encoding: chunked", fmt.Sprint("Content-Length: ", len(hidden))) + "0\r\n\r\n" + hidden, nil},
		"an unknown coding":            {request(path, "Transfer-Encoding: xchunked") + hidden, nil},
		"two codings":                  {request(path, "Transfer-Encoding: gzip, chunked") + hidden, nil},
		"the coding twice":             {request(path, "Transfer-Encoding: chunked", "Transfer-Encoding: identity") + hidden, nil},
		"a coding behind a tab":        {request(path, "Transfer-Encoding:\tchunked\x0b") + hidden, nil},
		"chunks of HTTP/1.0":           {strings.Replace(request(path, "Transfer-Encoding: chunked"), "1.1", "1.0", 1) + hidden, nil},
		"a chunk with a sign":          {request(path, "Transfer-Encoding: chunked") + chunked("+5"), nil},
		"a chunk of no size":           {request(path, "Transfer-Encoding: chunked") + chunked(""), nil},
		"a chunk larger than anything": {request(path, "Transfer-Encoding: chunked") + chunked("ffffffffffffffffff"), nil},
		"a chunk's long extension":     {request(path, "Transfer-Encoding: chunked") + chunked(fmt.Sprintf("%x;%s", len(hidden), strings.Repeat("x", 100_000))), nil},
		"a chunk longer than it says":  {request(path, "Transfer-Encoding: chunked") + "1\r\n" + hidden, nil},
		"endless trailers":             {request(path, "Transfer-Encoding: chunked") + "0\r\n" + strings.Repeat("X: y\r\n", 50_000), nil},
		"a body on GET":                {request(path, fmt.Sprint("Content-Length: ", len(hidden))) + hidden, nil},
		"a body on GET, in chunks":     {request(path, "Transfer-Encoding: chunked") + chunked(fmt.Sprintf("%x", len(hidden))), nil},
		"a body on HEAD":               {strings.Replace(request(path, fmt.Sprint("Content-Length: ", len(hidden))), "GET", "HEAD", 1) + hidden, []string{"HEAD"}},
		"a push":                       {strings.Replace(request("/v2/library/app/blobs/uploads/", "Content-Length: 5"), "GET", "POST", 1) + hidden, []string{"POST"}},
		"CONNECT":                      {"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: x\r\n\r\n" + hidden, []string{"CONNECT"}},
		"no HTTP":                      {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("\x00", 500) + "\r\n\r\n" + hidden, nil},
		"HTTP/2":                       {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + hidden, nil},
		"HTTP/9.9":                     {"GET " + path + " HTTP/9.9\r\nHost: x\r\n\r\n" + hidden, nil},
		"a path with a space":          {"GET " + path + " x HTTP/1.1\r\nHost: x\r\n\r\n" + hidden, nil},
		"no host":                      {"GET " + path + " HTTP/1.1\r\n\r\n" + hidden, nil},
		"a method of bytes":            {"G\x00T " + path + " HTTP/1.1\r\nHost: x\r\n\r\n" + hidden, nil},
	} {
		answers, closed := shoot(t, p, c.message, c.methods...)
		for _, a := range answers {
			if strings.Contains(string(a.body), "repositories") {
				t.Errorf("%s: the request inside was answered: %s", name, a)
			}
			if a.status >= 400 && a.method != "HEAD" {
				a.wantError(t, a.status, "UNSUPPORTED")
			}
		}
		if !closed || len(answers) > 1 {
			t.Errorf("%s: want an answer at most and an end of the connection, got %d answers, closed %v", name, len(answers), closed)
		}
		if a := ask(t, p, "GET", path); a.status != 200 {
			t.Errorf("%s: the next request: %s", name, a)
		}
	}
	wantUnmoved(t, asked, h.Counts())
	wantBytes(t, "afterwards", content, get(t, p, blob).body)
	before.wantKept(t, p, 64<<20)
	wantOneLineEach(t, p.Log())
}

func TestPipelinedRequestsAreAnsweredInTheirOrder(t *testing.T) {
	_, p, blob, content := besieged(t)
	before := boundsOf(t, p)
	const n = 300
	answers, _ := shoot(t, p, strings.Repeat(request("/v2/")+request(blob, "Range: bytes=0-9")+request("/v2/library/app/manifests/..", "Accept: x/y"), n))
	if len(answers) != 3*n {
		t.Fatalf("%d answers, want %d", len(answers), 3*n)
	}
	for i, want := range []int{200, 206, 404} {
		for j := i; j < len(answers); j += 3 {
			if a := answers[j]; a.status != want || i == 1 && string(a.body) != string(content[:10]) {
				t.Fatalf("answer %d: want %d, got %s", j, want, a)
			}
		}
	}
	before.wantKept(t, p, 64<<20)
}

// Half-open connections, slow ones and such as break off take a place for a time
// only.
func TestConnectionsThatDoNotGoOnAreEnded(t *testing.T) {
	_, p, blob, content := besieged(t)
	before := boundsOf(t, p)
	for name, c := range map[string]struct {
		do       func(c *net.TCPConn)
		answered bool
	}{
		"closed for writing behind a request": {func(c *net.TCPConn) {
			_, _ = io.WriteString(c, request(blob))
			_ = c.CloseWrite()
		}, true},
		"closed for writing at once": {func(c *net.TCPConn) { _ = c.CloseWrite() }, false},
		"reset in a request": {func(c *net.TCPConn) {
			_, _ = io.WriteString(c, "GET /v2/ HT")
			_ = c.SetLinger(0)
			_ = c.Close()
		}, false},
		"reset in an answer": {func(c *net.TCPConn) {
			_, _ = io.WriteString(c, request(blob))
			_, _ = c.Read(make([]byte, 100))
			_ = c.SetLinger(0)
			_ = c.Close()
		}, false},
		"silent": {func(*net.TCPConn) {}, false},
		"slow": {func(c *net.TCPConn) {
			for _, b := range []byte(strings.Repeat(request("/v2/"), 10)) { // until it is closed
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(50 * time.Millisecond) // this is what makes it slow
			}
		}, true}, // with 408
		"a body that does not come": {func(c *net.TCPConn) { _, _ = io.WriteString(c, request("/v2/", "Content-Length: 100000")) }, true},
		"idle":                      {func(c *net.TCPConn) { _, _ = io.WriteString(c, request("/v2/")) }, true},
	} {
		for range 20 {
			conn := dial(t, p)
			go c.do(conn) // ends with the connection
			go func() {
				defer conn.Close()
				got, _ := io.ReadAll(conn) // which the server ends
				if (len(got) > 0) != c.answered && !strings.HasPrefix(name, "reset") && !strings.HasPrefix(string(got), "HTTP/1.1 408") {
					t.Errorf("%s: got %.300q", name, got)
				}
			}()
		}
		wantBytes(t, "among those "+name, content, get(t, p, blob).body)
	}
	until(t, "all of them to be ended", func() bool { return p.Metrics(t).Sum("entrepot_connections") <= 2 })
	before.wantKept(t, p, 64<<20)
}
