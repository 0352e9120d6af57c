package server

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/entrepot-dev/entrepot/oci"
	"github.com/entrepot-dev/entrepot/rewrite"
)

// record writes the log line and the metrics of an exchange that is over.
func (x *exchange) record() {
	now := time.Now()
	first := x.out.first
	if first.IsZero() {
		first = now
	}
	outcome := x.outcomeWord()
	x.s.requests.Add(-1)
	x.s.metrics.RequestsInFlight.Dec()
	series := x.s.series.get(counted{x.target.Upstream, x.request.Resource, outcome, x.status})
	series.requests.Inc()
	series.first.Observe(first.Sub(x.begin).Seconds())
	series.transfer.Observe(now.Sub(x.begin).Seconds())
	series.sent(x.out.sent)
	x.watch(now)
	if list := x.s.watches.now.Load(); list != nil {
		x.show(*list, now, outcome)
	}
	level := zapcore.InfoLevel
	if x.err != nil && !oci.IsReported(x.err) && (x.status >= 500 || x.status == 429 || x.status < 400 && !isClientGone(x.err)) {
		level = zapcore.WarnLevel
	}
	entry := x.s.log.Check(level, "request")
	if entry == nil {
		return
	}
	repository := x.target.Repository
	if repository == "" {
		repository = x.request.Name
	}
	fields := append(make([]zap.Field, 0, 16),
		zap.String("method", beginning(x.ctx.Method())),
		zap.String("kind", x.request.Resource.String()),
		zap.String("upstream", x.target.Upstream),
		zap.String("repository", strings.Clone(repository)), // a core may keep them
		zap.String("reference", strings.Clone(x.request.Reference())),
		zap.String("outcome", outcome),
		zap.Int("status", x.status),
		zap.Int64("bytes", x.out.sent),
		zap.Duration("duration", now.Sub(x.begin)),
		zap.String("client", x.client()),
		zap.String("user_agent", beginning(x.ctx.UserAgent())),
	)
	if x.caller != nil && !x.caller.IsAnonymous() {
		fields = append(fields, zap.String("caller", x.caller.String()))
	}
	if x.request.Resource == rewrite.Unknown {
		fields = append(fields, zap.String("path", strings.Clone(x.request.Path[:min(len(x.request.Path), 200)])))
	}
	if !x.request.AsOf.IsZero() {
		fields = append(fields, zap.Time("as_of", x.request.AsOf))
	}
	if x.outcome.Reason != "" {
		fields = append(fields, zap.String("reason", x.outcome.Reason))
	}
	if x.err != nil {
		fields = append(fields, zap.Error(x.err))
	}
	entry.Write(fields...)
}

// beginning returns the beginning of what a client has sent: a line of the log must not be
// as long as a client likes.
func beginning(text []byte) string {
	return strings.ToValidUTF8(string(text[:min(len(text), maxSeen)]), "�")
}

// outcomeWord gives the outcome as metrics and logs name it.
func (x *exchange) outcomeWord() string {
	switch {
	case x.err != nil && (x.status >= 400 || !isClientGone(x.err)):
		return "error"
	case x.outcome.Status == "":
		return "none"
	}
	return string(x.outcome.Status)
}

// isClientGone tells whether a transfer broke because of the client, which is
// an everyday thing: containerd closes ranges early on purpose. What has a code
// comes from behind the cache, where connections break, too.
func isClientGone(err error) bool {
	var e *oci.Error
	if errors.As(err, &e) {
		return false
	}
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, os.ErrDeadlineExceeded)
}

func statusLabel(status int) string {
	switch status {
	case 200:
		return "200"
	case 206:
		return "206"
	case 304:
		return "304"
	case 404:
		return "404"
	}
	return strconv.Itoa(status)
}
