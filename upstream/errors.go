package upstream

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/entrepot-dev/entrepot/oci"
)

// again says who may do better than the endpoint that failed.
type again int

const (
	nobody    again = iota // the answer stands
	elsewhere              // another endpoint
	anybody                // another endpoint, or this one in a moment
)

// failure is an attempt that gave nothing: the error that callers see if it
// stays at that, and what is to be done about it.
type failure struct {
	err    *oci.Error
	reason string // of metrics.UpstreamErrors; "" where the upstream did not fail
	again  again
	status int   // what was answered; 0 where nothing was
	away   bool  // by another host than the endpoint's
	blame  blame // what it tells of the endpoint
	form   form  // of what was answered
	// ofRange marks the failure of a request for a part of a blob, the whole of which may
	// come nevertheless.
	ofRange bool
	// partial marks a list of which only a part can be read.
	partial bool
}

// unavailable makes the error of an upstream that failed; status is 502, 503 or 504.
func unavailable(status int, cause error, format string, args ...any) *oci.Error {
	return &oci.Error{Code: oci.CodeUnavailable, Status: status, Message: fmt.Sprintf(format, args...), Err: cause}
}

// gaveUp makes the error of a request that its caller ended.
func (r *Registry) gaveUp(ctx context.Context) *failure {
	cause := context.Cause(ctx)
	if errors.Is(cause, context.DeadlineExceeded) {
		return &failure{err: unavailable(http.StatusGatewayTimeout, cause, "upstream %s did not answer in the time that it was given", r.name), reason: "timeout"}
	}
	return &failure{err: unavailable(http.StatusServiceUnavailable, cause, "the request to upstream %s was given up", r.name), reason: "canceled"}
}

// broken tells what err, from a connection to host or a body of its, means.
// ctx is that of the caller.
func (r *Registry) broken(ctx context.Context, host string, err error) *failure {
	say := func(status int, reason string, again again, format string, args ...any) *failure {
		what := fmt.Sprintf(format, args...)
		f := &failure{err: unavailable(status, err, "upstream %s: %s %s", r.name, host, what), reason: reason, again: again}
		switch reason {
		case "connect", "tls":
			f.blame = blameGone
		case "timeout":
			f.blame = blameSilent
		case "protocol":
			f.blame = blameNobody
		default:
			f.blame = blameRequest
		}
		return f
	}
	var (
		known     *oci.Error
		refused   *refusedRedirect
		forbidden *forbiddenAddress
		authority x509.UnknownAuthorityError
		name      x509.HostnameError
		invalid   x509.CertificateInvalidError
		verify    *tls.CertificateVerificationError
		record    tls.RecordHeaderError
		alert     tls.AlertError
		dns       *net.DNSError
		timeout   net.Error
		op        *net.OpError
		proxy     *proxyFailed
	)
	switch {
	case ctx.Err() != nil:
		return r.gaveUp(ctx)
	case errors.As(err, &known):
		return &failure{err: known, reason: "other"}
	case errors.Is(err, errStalled):
		return say(http.StatusGatewayTimeout, "stall", elsewhere, "sent no bytes for %s", r.stall)
	case errors.Is(err, errTooSlow):
		return say(http.StatusGatewayTimeout, "stall", elsewhere, "has not sent what is small within %s", smallTimeout)
	case errors.As(err, &refused):
		f := say(http.StatusBadGateway, "protocol", elsewhere, "%s", refused.why)
		f.err.Err = nil // the message has it
		return f
	case errors.As(err, &proxy):
		f := say(http.StatusBadGateway, "connect", elsewhere, "can not be reached: %s", proxy)
		f.err.Err = proxy.err
		return f
	case errors.As(err, &forbidden):
		return say(http.StatusBadGateway, "protocol", elsewhere, "is asked for by a redirect or a challenge, and is at a private address; if that is right, list it in upstreams.%[1]s.redirect_hosts, or a token server in upstreams.%[1]s.realms", r.name)
	case errors.As(err, &authority):
		return say(http.StatusBadGateway, "tls", elsewhere, "has a certificate of an authority that is not trusted; name the authority's file in upstreams.%s.tls.ca", r.name)
	case errors.As(err, &name):
		return say(http.StatusBadGateway, "tls", elsewhere, "has a certificate of another name")
	case errors.As(err, &invalid):
		return say(http.StatusBadGateway, "tls", elsewhere, "has a certificate that is not valid, or not at this time")
	case errors.As(err, &verify):
		return say(http.StatusBadGateway, "tls", elsewhere, "has a certificate that can not be verified")
	case errors.As(err, &record), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return say(http.StatusBadGateway, "tls", elsewhere, "does not speak TLS; if it is meant to be asked over plain http, write http:// in upstreams.%s.endpoints", r.name)
	case errors.As(err, &alert), strings.Contains(err.Error(), "remote error: tls"):
		return say(http.StatusBadGateway, "tls", elsewhere, "refuses the TLS handshake; it may want a client certificate (upstreams.%s.tls.cert)", r.name)
	case errors.As(err, &dns):
		if dns.IsNotFound {
			return say(http.StatusBadGateway, "connect", elsewhere, "is not known to the name server")
		}
		if dns.IsTimeout {
			// It took the whole connect timeout; another try would take as long.
			f := say(http.StatusGatewayTimeout, "connect", elsewhere, "cannot be resolved: the name server does not answer")
			f.blame = blameUnreach
			return f
		}
		return say(http.StatusBadGateway, "connect", anybody, "can not be resolved: the name server does not answer")
	case errors.As(err, &timeout) && timeout.Timeout():
		if errors.As(err, &op) && op.Op == "dial" {
			f := say(http.StatusGatewayTimeout, "timeout", elsewhere, "cannot be connected to: it does not answer")
			f.blame = blameUnreach
			return f
		}
		return say(http.StatusGatewayTimeout, "timeout", elsewhere, "takes too long to answer")
	case errors.Is(err, syscall.ECONNREFUSED):
		return say(http.StatusBadGateway, "connect", anybody, "refuses the connection")
	case errors.As(err, &op) && op.Op == "dial":
		return say(http.StatusBadGateway, "connect", anybody, "can not be connected to")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return say(http.StatusBadGateway, "other", anybody, "broke off")
	}
	return say(http.StatusBadGateway, "other", anybody, "failed before its answer was complete")
}

// garbled makes the failure of an answer that is not what was asked for.
func (r *Registry) garbled(a *answer, format string, args ...any) *failure {
	f := &failure{
		err:    unavailable(http.StatusBadGateway, nil, "upstream %s: %s %s", r.name, a.from, fmt.Sprintf(format, args...)),
		reason: "protocol", again: elsewhere, status: a.StatusCode, away: a.away,
	}
	f.err.Answered = a.StatusCode
	return f
}

// said is what an upstream's error JSON says.
type said struct {
	code    oci.Code
	message string
	form    form
}

const maxErrorBody = 8 << 10

// readSaid reads the error JSON of a response with the header h. Of any other body it
// returns the form. It undoes the gzip of proxies that compress what they were asked not to.
func readSaid(h http.Header, body io.Reader) said {
	var raw []byte
	body, err := plain(h, io.LimitReader(body, maxErrorBody))
	if err == nil {
		raw, err = io.ReadAll(io.LimitReader(body, maxErrorBody))
	}
	if err != nil {
		return said{form: formOther}
	}
	var doc struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	if json.Unmarshal(raw, &doc) != nil || len(doc.Errors) == 0 {
		return said{form: formOf(raw)}
	}
	return said{oci.Code(doc.Errors[0].Code), clean(doc.Errors[0].Message), formErrors}
}

// formOf returns the form of an error's body that isn't an error document.
func formOf(raw []byte) form {
	cut := len(raw) == maxErrorBody
	raw = bytes.ToLower(bytes.TrimSpace(raw))
	switch {
	case len(raw) == 0, json.Valid(raw), cut && raw[0] == '{':
		return formOther
	case bytes.HasPrefix(raw, []byte("<?xml")) && !bytes.Contains(raw, []byte("<html")), bytes.HasPrefix(raw, []byte("<error>")):
		return formOther
	}
	return formPage
}

// clean makes a stranger's message fit to be shown: short, printable, without
// URLs, which may be signed.
func clean(s string) string {
	const most = 200
	var words []string
	for _, w := range strings.FieldsFunc(s, func(c rune) bool { return !unicode.IsPrint(c) || c == ' ' }) {
		if !strings.Contains(w, "://") && !strings.Contains(w, "?") {
			words = append(words, w)
		}
	}
	s = strings.Join(words, " ")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// rejected tells what an answer that is no success means.
func (r *Registry) rejected(a *answer) *failure {
	late := time.AfterFunc(r.stall, func() { a.body.cancel(errTooSlow) })
	s := readSaid(a.Header, a.body)
	late.Stop()
	f := &failure{reason: "status", status: a.StatusCode, away: a.away, form: s.form}
	tail := ""
	if s.message != "" {
		tail = ": " + s.message
	}
	wait := retryAfter(a.Header)
	switch status := a.StatusCode; {
	case a.away && status == http.StatusTooManyRequests && wait <= maxPause:
		// The store's limit, not the registry's: a fresh redirect may lead elsewhere in it.
		f.again, f.err = anybody, r.overLimit(limited{wait: wait}, tail)
	case status == http.StatusTooManyRequests, status == http.StatusForbidden && s.code == oci.CodeTooManyRequests:
		f.reason, f.again = "ratelimit", elsewhere
		f.err = r.overLimit(limited{pulls: a.limited.pulls, operation: a.limited.operation, wait: max(wait, a.limited.wait), guessed: wait == 0 && a.limited.guessed}, tail)
	case status >= 500, isPassing(status):
		f.again, f.blame = anybody, blameRequest
		code := http.StatusBadGateway
		switch status {
		case http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			code = status
		case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported:
			f.again, f.blame = elsewhere, blameNobody // and so it stays
		}
		if wait > maxPause || a.ask.method == http.MethodHead && !r.isMetered() {
			f.again = elsewhere // a GET says more than another HEAD
		}
		f.err = unavailable(code, nil, "upstream %s: %s answered %d %s%s", r.name, a.from, status, http.StatusText(status), tail)
		f.err.RetryAfter = wait
	case a.away && (status != http.StatusNotFound || (s.code == "" && a.ask.absent == oci.CodeBlobUnknown)):
		// The registry sent us there: what its store refuses is not our word
		// on what exists or who may have it.
		f.again = elsewhere
		if a.ask.method == http.MethodGet {
			f.again = anybody // the signature may have expired: have a fresh one
		}
		f.err = unavailable(http.StatusBadGateway, nil, "upstream %s: %s, where it keeps its content, answered %d %s", r.name, a.from, status, http.StatusText(status))
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		f.err = r.denied(a.ask, a.note, tail)
		if r.lender == nil && a.ask.pin == nil {
			f.again = elsewhere // a mirror may want a login, and the registry behind it none
		}
	case status == http.StatusNotFound:
		f.reason = ""
		code, what := a.ask.absent, a.ask.what
		if s.code == oci.CodeNameUnknown {
			code = oci.CodeNameUnknown
		}
		f.err = oci.Errorf(code, "%s was not found at upstream %s", what, r.name)
	case status == http.StatusBadRequest && (s.code == oci.CodeNameInvalid || s.code == oci.CodeTagInvalid || s.code == oci.CodeDigestInvalid || s.code == oci.CodeManifestInvalid):
		f.err = oci.Errorf(s.code, "upstream %s does not take %s%s", r.name, a.ask.what, tail)
		f.err.Status = http.StatusBadRequest
	default:
		f.again = elsewhere
		if a.ask.optional {
			f.reason, f.again = "", nobody // this endpoint lacks the API, and is none the worse for it
		}
		f.err = unavailable(http.StatusBadGateway, nil, "upstream %s: %s answered %d %s%s", r.name, a.from, status, http.StatusText(status), tail)
	}
	f.err.Answered = a.StatusCode
	return f
}

// isPassing reports whether a 4xx says that this request failed rather than that it was
// wrong: a proxy that gave up, or an early one.
func isPassing(status int) bool {
	const clientGone = 499 // nginx's
	return status == http.StatusRequestTimeout || status == http.StatusTooEarly || status == clientGone
}

// denied makes the error of what stays refused after all credentials have been
// tried; note says which those were. Docker Hub says this also of a repository
// that does not exist. It is never a 401: a client that got one would log in to
// us.
func (r *Registry) denied(a *ask, note, tail string) *oci.Error {
	return &oci.Error{Code: oci.CodeDenied, Status: http.StatusForbidden,
		Message: fmt.Sprintf("%s does not exist or needs credentials%s%s", a.what, note, tail)}
}

// retryAfter reads Retry-After, in seconds or as a date; zero where there is
// none that makes sense.
func retryAfter(h http.Header) time.Duration {
	const most = 24 * time.Hour
	v := strings.TrimSpace(h.Get("Retry-After"))
	if v == "" {
		return 0
	}
	if n, err := strconv.ParseInt(v, 10, 32); err == nil {
		if n > 1_000_000_000 { // a time since 1970, as Docker Hub has sent it
			return max(0, min(time.Until(time.Unix(n, 0)), most))
		}
		return max(0, min(time.Duration(n)*time.Second, most))
	}
	if t, err := http.ParseTime(v); err == nil {
		// By the sender's clock, where it tells us: ours may differ.
		now := time.Now()
		if d, err := http.ParseTime(h.Get("Date")); err == nil {
			now = d
		}
		return max(0, min(t.Sub(now), most))
	}
	return 0
}
