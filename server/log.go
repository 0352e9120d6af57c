package server

import (
	"errors"
	"os"
	"strconv"
	"syscall"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/entrepot-dev/entrepot/rewrite"
)

// record writes the log line and the metrics of an exchange that is over.
func (x *exchange) record() {
	now := time.Now()
	first := x.out.first
	if first.IsZero() {
		first = now
	}
	m, kind, outcome := x.s.metrics, x.request.Resource.String(), x.outcomeWord()
	m.RequestsInFlight.Dec()
	m.Requests.WithLabelValues(x.target.Upstream, kind, outcome, statusLabel(x.status)).Inc()
	m.RequestSeconds.WithLabelValues(kind, outcome).Observe(first.Sub(x.begin).Seconds())
	m.TransferSeconds.WithLabelValues(kind, outcome).Observe(now.Sub(x.begin).Seconds())
	if x.out.sent > 0 {
		m.ClientBytes.WithLabelValues(x.target.Upstream, kind).Add(float64(x.out.sent))
	}
	level := zapcore.InfoLevel
	if x.err != nil && (x.status >= 500 || x.status == 429 || x.status < 400 && !isClientGone(x.err)) {
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
		zap.String("method", string(x.ctx.Method())),
		zap.String("kind", kind),
		zap.String("upstream", x.target.Upstream),
		zap.String("repository", repository),
		zap.String("reference", x.request.Reference()),
		zap.String("outcome", outcome),
		zap.Int("status", x.status),
		zap.Int64("bytes", x.out.sent),
		zap.Duration("duration", now.Sub(x.begin)),
		zap.String("client", x.ctx.RemoteIP().String()),
		zap.String("user_agent", string(x.ctx.UserAgent())),
	)
	if x.request.Resource == rewrite.Unknown {
		fields = append(fields, zap.String("path", x.request.Path[:min(len(x.request.Path), 200)]))
	}
	if x.outcome.Reason != "" {
		fields = append(fields, zap.String("reason", x.outcome.Reason))
	}
	if x.err != nil {
		fields = append(fields, zap.Error(x.err))
	}
	entry.Write(fields...)
}

// outcomeWord gives the outcome as metrics and logs name it.
func (x *exchange) outcomeWord() string {
	switch {
	case x.err != nil:
		return "error"
	case x.outcome.Status == "":
		return "none"
	}
	return string(x.outcome.Status)
}

// isClientGone tells whether a transfer broke because of the client, which is
// an everyday thing: containerd closes ranges early on purpose.
func isClientGone(err error) bool {
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
