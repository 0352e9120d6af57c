package hub

import (
	"fmt"
	"net/http"
	"path"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
)

// RefuseRange answers each request for a range of a blob with status; a whole GET works.
func RefuseRange(status int) Fault {
	return onRanges(func(w http.ResponseWriter, r *http.Request, content []byte, _, _ int64) bool {
		if status == http.StatusRequestedRangeNotSatisfiable {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", len(content)))
		}
		writeError(w, r, status, codeFor(status), http.StatusText(status))
		return true
	})
}

// RefuseRangeWithEnd refuses the ranges that say where they end, with status.
func RefuseRangeWithEnd(status int) Fault {
	return onRanges(func(w http.ResponseWriter, r *http.Request, _ []byte, _, _ int64) bool {
		if strings.HasSuffix(r.Header.Get("Range"), "-") {
			return false
		}
		writeError(w, r, status, codeFor(status), http.StatusText(status))
		return true
	})
}

// CloseOnRange closes the connection upon a request for a range of a blob.
func CloseOnRange() Fault {
	return onRanges(func(http.ResponseWriter, *http.Request, []byte, int64, int64) bool { panic(http.ErrAbortHandler) })
}

// SilentRange answers a request for a range of a blob that begins at byte from or later with
// its header and the first n bytes of it, and then with nothing more; with nothing at all if n
// is negative. It keeps the connection open until the client goes away.
func SilentRange(from, n int64) Fault {
	return Fault{kind: blobs, act: func(h *Hub, w http.ResponseWriter, r *http.Request) bool {
		content, ok := h.anyBlob(blobOf(r))
		at, to, status := parseRange(r.Header.Get("Range"), int64(len(content)))
		if !ok || status != http.StatusPartialContent || at < from || to-at <= n {
			return false
		}
		if n >= 0 {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", at, to-1, len(content)))
			w.Header().Set("Content-Length", strconv.FormatInt(to-at, 10))
			w.WriteHeader(status)
			_, _ = w.Write(content[at : at+n]) // the client may be gone
			_ = http.NewResponseController(w).Flush()
		}
		select {
		case <-r.Context().Done():
		case <-h.done.Done():
		}
		panic(http.ErrAbortHandler)
	}}
}

// MislabelRange sends the right range, and header as its Content-Range; none if it is
// empty. "%d" stands for the blob's last byte.
func MislabelRange(header string) Fault {
	return onRanges(func(w http.ResponseWriter, _ *http.Request, content []byte, from, to int64) bool {
		if header != "" {
			w.Header().Set("Content-Range", strings.ReplaceAll(header, "%d", strconv.Itoa(len(content)-1)))
		}
		sendPart(w, content[from:to])
		return true
	})
}

// ShiftRange sends the bytes that begin delta further on than those that a range asks
// for, under the right header; a delta of the whole blob stands for its first bytes.
func ShiftRange(delta int64) Fault {
	return onRanges(func(w http.ResponseWriter, _ *http.Request, content []byte, from, to int64) bool {
		if from == 0 {
			return false
		}
		size := int64(len(content))
		wrong := make([]byte, to-from)
		start := from + delta
		if start >= size {
			start = 0
		}
		copy(wrong, content[start:])
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, size))
		sendPart(w, wrong)
		return true
	})
}

// DamageRange flips a bit in the middle of each range that does not begin a blob.
func DamageRange() Fault {
	return onRanges(func(w http.ResponseWriter, _ *http.Request, content []byte, from, to int64) bool {
		if from == 0 {
			return false
		}
		part := append([]byte{}, content[from:to]...)
		part[len(part)/2] ^= 1
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, len(content)))
		sendPart(w, part)
		return true
	})
}

// NoEnd sends all bytes of a blob in chunks and then closes the connection without the
// chunk that says that they are all.
func NoEnd() Fault {
	return Fault{kind: blobs, act: func(h *Hub, w http.ResponseWriter, r *http.Request) bool {
		content, ok := h.anyBlob(blobOf(r))
		if !ok || r.Method != http.MethodGet || r.Header.Get("Range") != "" {
			return false
		}
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		_, _ = w.Write(content)
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}}
}

// onRanges is a fault of requests for ranges that can be satisfied: answer gets the range
// and says whether it has answered.
func onRanges(answer func(w http.ResponseWriter, r *http.Request, content []byte, from, to int64) bool) Fault {
	return Fault{kind: blobs, act: func(h *Hub, w http.ResponseWriter, r *http.Request) bool {
		content, ok := h.anyBlob(blobOf(r))
		from, to, status := parseRange(r.Header.Get("Range"), int64(len(content)))
		if !ok || status != http.StatusPartialContent {
			return false
		}
		return answer(w, r, content, from, to)
	}}
}

func sendPart(w http.ResponseWriter, b []byte) {
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(http.StatusPartialContent)
	_, _ = w.Write(b) // the client may be gone
}

// blobOf gives the digest of the blob that r asks for, of the registry or of the CDN.
func blobOf(r *http.Request) digest.Digest {
	if f := strings.Split(r.URL.Path, "/"); len(f) == 6 && f[5] == "data" {
		return digest.Digest(f[2] + ":" + f[4])
	}
	return digest.Digest(path.Base(r.URL.Path))
}
