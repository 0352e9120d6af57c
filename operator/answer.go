package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/entrepot-dev/entrepot/oci"
)

// Error is why something was not done, as problem details (RFC 9457).
type Error struct {
	// Status is the HTTP status.
	Status int `json:"status"`
	// Title is the status in words.
	Title string `json:"title"`
	// Detail is a sentence for the operator.
	Detail string `json:"detail"`
}

func (e *Error) Error() string { return e.Detail }

// Errorf makes an Error.
func Errorf(status int, format string, args ...any) *Error {
	return &Error{Status: status, Title: http.StatusText(status), Detail: fmt.Sprintf(format, args...)}
}

// invalidf says that a request was not understood.
func invalidf(format string, args ...any) *Error {
	return Errorf(http.StatusBadRequest, format, args...)
}

// problem gives err as what is told of it.
func problem(err error) *Error {
	if e := (*Error)(nil); errors.As(err, &e) {
		return Errorf(e.Status, "%s", err.Error())
	}
	if e := (*oci.Error)(nil); errors.As(err, &e) {
		return Errorf(e.HTTPStatus(), "%s", e.Message)
	}
	return Errorf(http.StatusInternalServerError, "%s", err.Error())
}

func writeError(w http.ResponseWriter, err error) {
	p := problem(err)
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // the client is gone where this fails
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v) // the client is gone where this fails
}

// Line is one line of a long answer: an event, or, the last one, the result or the
// error. An answer without a last line has been cut short.
type Line struct {
	Event  any    `json:"event,omitempty"`
	Result any    `json:"result,omitempty"`
	Error  *Error `json:"error,omitempty"`
}

// Tell sends an event. Its error ends what is told of: the client has gone away. It
// may be called by one goroutine at a time.
type Tell func(event any) error

// writeLines answers with what f tells, and with what it gives in the end.
func writeLines(w http.ResponseWriter, r *http.Request, f func(ctx context.Context, r *http.Request, tell Tell) (any, error)) {
	enc, began := json.NewEncoder(w), false
	write := func(l Line) error {
		if !began {
			w.Header().Set("Content-Type", "application/x-ndjson")
			began = true
		}
		if err := enc.Encode(l); err != nil {
			return err
		}
		return http.NewResponseController(w).Flush()
	}
	v, err := f(r.Context(), r, func(event any) error { return write(Line{Event: event}) })
	switch {
	case err != nil && !began:
		writeError(w, err)
	case err != nil:
		_ = write(Line{Error: problem(err)}) // the client is gone where this fails
	default:
		_ = write(Line{Result: v})
	}
}

// trailer is the header behind the bytes of an answer that has been broken off: the
// Error as JSON.
const trailer = "Entrepot-Problem"

// writeBytes answers with the bytes that f writes.
func writeBytes(w http.ResponseWriter, r *http.Request, contentType string, f func(ctx context.Context, r *http.Request, w io.Writer) error) {
	out := &begun{w: w, contentType: contentType}
	err := f(r.Context(), r, out)
	switch {
	case err == nil:
	case !out.began:
		writeError(w, err)
	default:
		if b, err := json.Marshal(problem(err)); err == nil {
			w.Header().Set(trailer, string(b))
		}
	}
}

// begun knows whether an answer has begun.
type begun struct {
	w           http.ResponseWriter
	contentType string
	began       bool
}

func (b *begun) Write(p []byte) (int, error) {
	if !b.began {
		b.w.Header().Set("Content-Type", b.contentType)
		b.w.Header().Set("Trailer", trailer) // without it a short answer has none
		b.began = true
	}
	return b.w.Write(p)
}
