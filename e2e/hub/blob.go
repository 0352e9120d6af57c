package hub

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// chunk is how much of a blob is written at a time.
const chunk = 32 << 10

// signed gives the CDN's path for a blob of a repository, good for URLTTL.
func (h *Hub) signed(d digest.Digest) string {
	h.mu.Lock()
	epoch := h.epoch
	h.mu.Unlock()
	expires := time.Now().Add(h.o.URLTTL).Unix()
	path := "/registry-v2/" + d.Algorithm().String() + "/" + d.Encoded()[:2] + "/" + d.Encoded() + "/data"
	q := url.Values{"expires": {strconv.FormatInt(expires, 10)}, "epoch": {strconv.Itoa(epoch)}}
	q.Set("signature", h.sign(path, q))
	return path + "?" + q.Encode()
}

func (h *Hub) sign(path string, q url.Values) string {
	mac := hmac.New(sha256.New, h.key)
	fmt.Fprintf(mac, "%s|%s|%s", path, q.Get("expires"), q.Get("epoch"))
	return hex.EncodeToString(mac.Sum(nil))
}

// ExpireURLs lets all CDN URLs that have been given out expire.
func (h *Hub) ExpireURLs() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.epoch++
}

// serveCDN sends blobs to whoever comes with a good signature and nothing else.
func (h *Hub) serveCDN(w http.ResponseWriter, r *http.Request) {
	if h.serveMovedList(w, r) {
		return
	}
	var d digest.Digest
	if f := strings.Split(r.URL.Path, "/"); len(f) == 6 {
		d = digest.Digest(f[2] + ":" + f[4])
	}
	h.note(CDNGet, r)
	met := h.trouble(ask{kind: CDNGet, digest: d, bytes: true})
	if r.Header.Get("Authorization") != "" {
		h.count(func(c *Counts) { c.Leaks++ })
		http.Error(w, "<Error><Code>InvalidArgument</Code><Message>Only one auth mechanism allowed</Message></Error>", http.StatusBadRequest)
		return
	}
	if h.before(w, r, met) {
		return
	}
	w, done := zip(w, r, met)
	defer done()
	if rt := parseRoute(r.Method, r.URL.Path); h.o.RedirectManifests && (rt.kind == ManifestGet || rt.kind == ManifestHead) {
		h.serveManifest(w, r, rt, met)
		return
	}
	q := r.URL.Query()
	h.mu.Lock()
	expired := q.Get("epoch") != strconv.Itoa(h.epoch)
	h.mu.Unlock()
	if at, err := strconv.ParseInt(q.Get("expires"), 10, 64); err != nil || time.Now().Unix() > at {
		expired = true
	}
	for _, f := range met {
		expired = expired || f.expire
	}
	if expired || !hmac.Equal([]byte(q.Get("signature")), []byte(h.sign(r.URL.Path, q))) {
		http.Error(w, "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>", http.StatusForbidden)
		return
	}
	content, ok := h.anyBlob(d)
	if !ok {
		http.Error(w, "<Error><Code>NoSuchKey</Code></Error>", http.StatusNotFound)
		return
	}
	h.sendBlob(w, r, d, content, met)
}

// anyBlob finds a blob in whatever repository: a signature has already said
// who may have it.
func (h *Hub) anyBlob(d digest.Digest) ([]byte, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.repos {
		if b, ok := r.blobs[d]; ok {
			return b, true
		}
	}
	return nil, false
}

// sendBlob answers with a blob or a range of it, as the faults let it.
func (h *Hub) sendBlob(w http.ResponseWriter, r *http.Request, d digest.Digest, content []byte, met []*rule) {
	size := int64(len(content))
	from, to, status := parseRange(r.Header.Get("Range"), size)
	var delta, extra, rate int64
	chunked := false
	for _, f := range met {
		if f.ranges {
			from, to, status = 0, size, http.StatusOK
		}
		delta += f.length
		extra += f.extra
		rate = max(rate, f.rate)
		chunked = chunked || f.vague || f.end == truncate
	}
	hd := w.Header()
	hd.Set("Content-Type", "application/octet-stream")
	hd.Set("Accept-Ranges", "bytes")
	hd.Set("ETag", `"`+d.Encoded()[:32]+`"`)
	if status == http.StatusRequestedRangeNotSatisfiable {
		hd.Set("Content-Range", fmt.Sprintf("bytes */%d", size))
		w.WriteHeader(status)
		return
	}
	if status == http.StatusPartialContent {
		hd.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, size))
	}
	if !chunked || r.Method == http.MethodHead {
		hd.Set("Content-Length", strconv.FormatInt(to-from+delta+extra, 10))
	}
	w.WriteHeader(status)
	if r.Method == http.MethodHead {
		return
	}
	if !h.sendBody(w, r, d, content, from, min(to, to+delta), rate, met) {
		return
	}
	for ; extra > 0; extra -= chunk {
		if _, err := w.Write(make([]byte, min(extra, chunk))); err != nil {
			return // the client has gone
		}
	}
}

// sendBody sends the bytes from up to to. It tells whether all were taken.
func (h *Hub) sendBody(w http.ResponseWriter, r *http.Request, d digest.Digest, content []byte, from, to, rate int64, met []*rule) bool {
	rc := http.NewResponseController(w)
	began := time.Now()
	for at := from; at < to; {
		n := min(chunk, to-at)
		for _, f := range met {
			left := f.at - (at - from)
			switch f.end {
			case cut, rst, stall, truncate:
				if left > 0 {
					n = min(n, left)
				} else if left == 0 {
					_ = rc.Flush() // the client may be gone
					switch f.end {
					case cut:
						panic(http.ErrAbortHandler)
					case rst:
						reset(r)
					case stall:
						h.wait(r, f, f.until)
					default:
						return false
					}
				}
			}
		}
		b := content[at : at+n]
		for _, f := range met {
			if f.end == flip && f.at >= at && f.at < at+n {
				b = append([]byte{}, b...)
				b[f.at-at] ^= 1
			}
		}
		m, err := w.Write(b)
		at += int64(m)
		h.mu.Lock()
		h.counts.CDNBytes += int64(m)
		h.sent[d.String()] += int64(m)
		h.mu.Unlock()
		if err != nil {
			return false // the client has gone, or a wrong Content-Length is reached
		}
		if rate > 0 {
			_ = rc.Flush()
			due := began.Add(time.Duration(float64(at-from) / float64(rate) * float64(time.Second)))
			t := time.NewTimer(time.Until(due))
			select {
			case <-t.C:
			case <-r.Context().Done():
			case <-h.done.Done():
			}
			t.Stop()
		}
	}
	return true
}

// parseRange reads a Range header (RFC 9110, section 14): the bytes from up to
// to, and 200, 206 or 416. What is not one range of bytes is ignored.
func parseRange(s string, size int64) (from, to int64, status int) {
	spec, ok := strings.CutPrefix(s, "bytes=")
	a, b, dash := strings.Cut(spec, "-")
	if !ok || !dash || strings.Contains(spec, ",") {
		return 0, size, http.StatusOK
	}
	a, b = strings.TrimSpace(a), strings.TrimSpace(b)
	if a == "" {
		n, err := strconv.ParseInt(b, 10, 64)
		if err != nil || n < 0 {
			return 0, size, http.StatusOK
		}
		if n == 0 || size == 0 {
			return 0, 0, http.StatusRequestedRangeNotSatisfiable
		}
		return max(size-n, 0), size, http.StatusPartialContent
	}
	from, err := strconv.ParseInt(a, 10, 64)
	if err != nil || from < 0 {
		return 0, size, http.StatusOK
	}
	to = size
	if b != "" {
		last, err := strconv.ParseInt(b, 10, 64)
		if err != nil || last < from {
			return 0, size, http.StatusOK
		}
		to = min(last+1, size)
	}
	if from >= size {
		return 0, 0, http.StatusRequestedRangeNotSatisfiable
	}
	return from, to, http.StatusPartialContent
}
