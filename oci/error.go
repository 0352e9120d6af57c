package oci

import (
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Code is an error code of the distribution spec, as clients read it in the
// error JSON (distribution-spec, "Error Codes").
type Code string

// The codes that a pull can meet. CodeUnavailable is not in the spec: it is the
// code that CNCF distribution uses when a registry can not answer just now.
const (
	CodeBlobUnknown     Code = "BLOB_UNKNOWN"
	CodeDigestInvalid   Code = "DIGEST_INVALID"
	CodeManifestInvalid Code = "MANIFEST_INVALID"
	CodeManifestUnknown Code = "MANIFEST_UNKNOWN"
	CodeNameInvalid     Code = "NAME_INVALID"
	CodeNameUnknown     Code = "NAME_UNKNOWN"
	CodeSizeInvalid     Code = "SIZE_INVALID"
	CodeUnauthorized    Code = "UNAUTHORIZED"
	CodeDenied          Code = "DENIED"
	CodeUnsupported     Code = "UNSUPPORTED"
	CodeTooManyRequests Code = "TOOMANYREQUESTS"
	CodeRangeInvalid    Code = "RANGE_INVALID"
	CodeTagInvalid      Code = "TAG_INVALID"
	CodeUnavailable     Code = "UNAVAILABLE"
	CodeUnknown         Code = "UNKNOWN"
)

// Error is the one way to say that a request can not be answered. It is made
// where the cause is known and turned into JSON once, in package server.
type Error struct {
	// Code is what clients act on.
	Code Code
	// Status is the HTTP status that goes with it. Zero means the usual one of
	// the code.
	Status int
	// Message is a sentence for the person at the other end: what happened, to
	// what, and what to do. It holds no secret and no control character that
	// came from outside.
	Message string
	// Detail becomes the "detail" member of the error JSON; nil leaves it out.
	Detail any
	// RetryAfter, when positive, becomes a Retry-After header, unless Guessed is set.
	RetryAfter time.Duration
	// Guessed says that the upstream named no time and RetryAfter is Entrepot's own pause.
	// Clients get no Retry-After then: some retry for as long as they get one, and give up
	// at once without one.
	Guessed bool
	// Challenge, where set, becomes a WWW-Authenticate header: it says how to log
	// in to this program. It is empty in what an upstream said.
	Challenge string
	// Answered is the HTTP status by which an upstream answered, where the error
	// stands for that; zero where none answered.
	Answered int
	// Reported says that the log has the cause already: an endpoint whose circuit
	// breaker is open, a rate limit that is in force. What fails because of it needs
	// no warning of its own.
	Reported bool
	// Hint says that only a HEAD was answered so, or could not be sent: a GET
	// decides.
	Hint bool
	// Err is the cause, for logs and errors.Is. It is never shown to a client.
	Err error
}

func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %s: %v", e.Code, e.Message, e.Err)
	}
	return fmt.Sprintf("%s: %s", e.Code, e.Message)
}

func (e *Error) Unwrap() error { return e.Err }

// HTTPStatus gives Status, or the code's usual one where Status is zero.
func (e *Error) HTTPStatus() int {
	if e.Status != 0 {
		return e.Status
	}
	switch e.Code {
	case CodeBlobUnknown, CodeManifestUnknown, CodeNameUnknown:
		return http.StatusNotFound
	case CodeDigestInvalid, CodeManifestInvalid, CodeNameInvalid, CodeSizeInvalid, CodeTagInvalid:
		return http.StatusBadRequest
	case CodeUnauthorized:
		return http.StatusUnauthorized
	case CodeDenied:
		return http.StatusForbidden
	case CodeUnsupported:
		return http.StatusMethodNotAllowed
	case CodeTooManyRequests:
		return http.StatusTooManyRequests
	case CodeRangeInvalid:
		return http.StatusRequestedRangeNotSatisfiable
	case CodeUnavailable:
		return http.StatusServiceUnavailable
	default:
		return http.StatusInternalServerError
	}
}

// Errorf makes an Error with the code's usual status. A %w verb in format
// becomes its cause.
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), Err: errors.Unwrap(err)}
}

// ErrUnconfirmed is wrapped by the error of an empty list that only a part of the upstream's
// answers shows to be empty: good enough if nothing else is known, and no reason to drop a
// list that is.
var ErrUnconfirmed = errors.New("the list may be empty, or the registry did not say what is in it")

// IsAbsent tells whether err says, on the word of whoever owns the content,
// that the thing asked for does not exist. An upstream's failure never does.
func IsAbsent(err error) bool {
	switch codeOf(err) {
	case CodeBlobUnknown, CodeManifestUnknown, CodeNameUnknown:
		return true
	}
	return false
}

// IsRefused tells whether err says that the upstream will not let these
// credentials have the thing asked for.
func IsRefused(err error) bool {
	c := codeOf(err)
	return c == CodeUnauthorized || c == CodeDenied
}

// IsReported tells whether the log has the cause of err already.
func IsReported(err error) bool {
	for e := (*Error)(nil); errors.As(err, &e); err = e.Err {
		if e.Reported {
			return true
		}
	}
	return false
}

// IsHint reports whether err is the answer to a HEAD, which a GET may contradict.
func IsHint(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Hint
}

// IsTransient tells whether err is a failure to find out: the upstream is gone,
// slow, broken or limits us. Cached content is then still good to serve.
func IsTransient(err error) bool {
	return err != nil && !IsAbsent(err) && !IsRefused(err)
}

func codeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}
