package app

import (
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/configs"
	"github.com/entrepot-dev/entrepot/metrics"
)

const (
	// certificateInterval is how often the files of certificates are read.
	certificateInterval = time.Minute
	// certificateReminder is how often the log warns of the same certificate.
	certificateReminder = 24 * time.Hour
)

// expiringCertificates returns a sentence for each certificate file of cfg whose
// certificates end soon or have ended. Files that cannot be read are left out.
func expiringCertificates(cfg *configs.Config, now time.Time) []string {
	var all []string
	for _, f := range cfg.CertificateFiles() {
		if e, err := f.Expiry(now); err == nil && e.Validity != configs.Valid {
			all = append(all, e.String())
		}
	}
	return all
}

// unusableCertificates returns a *configs.Error about the certificate files that keep cfg
// from being served, or nil. file is the configuration file; empty if there is none.
func unusableCertificates(file string, cfg *configs.Config) error {
	if file == "" {
		file = "the environment"
	}
	e := &configs.Error{}
	for _, f := range cfg.UnusableCertificates() {
		e.Problems = append(e.Problems, configs.Problem{Where: file, Key: f.Key, Message: f.Err.Error() + "; set it to a PEM file that entrepot can read"})
	}
	if len(e.Problems) == 0 {
		return nil
	}
	return e
}

// certificateWatch warns of certificates that end soon. It is for one goroutine.
type certificateWatch struct {
	log     *zap.Logger
	metrics *metrics.Metrics
	// shown are the labels of the metric that is set.
	shown map[[2]string]bool
	// warned are the last warnings by setting.
	warned map[string]certificateWarning
}

// certificateWarning is one warning of the log; another end or another validity needs another.
type certificateWarning struct {
	notAfter time.Time
	validity configs.Validity
	at       time.Time
}

// watchCertificates reads the certificate files of the configuration that config returns now,
// once a minute and when reloaded gives a token, for the metric and the log. stop ends that and
// waits for its end.
func watchCertificates(config func() *configs.Config, reloaded <-chan struct{}, log *zap.Logger, m *metrics.Metrics) (stop func()) {
	w := &certificateWatch{log: log, metrics: m, warned: map[string]certificateWarning{}}
	w.look(config(), time.Now())
	end := make(chan struct{})
	var loop sync.WaitGroup
	loop.Go(func() {
		t := time.NewTicker(certificateInterval)
		defer t.Stop()
		for {
			select {
			case <-t.C:
			case <-reloaded:
			case <-end:
				return
			}
			w.look(config(), time.Now())
		}
	})
	return func() {
		close(end)
		loop.Wait()
	}
}

// look reads the files of cfg.
func (w *certificateWatch) look(cfg *configs.Config, now time.Time) {
	shown := map[[2]string]bool{}
	for _, f := range cfg.CertificateFiles() {
		e, err := f.Expiry(now)
		if err != nil {
			continue // who reads the file for a handshake says so
		}
		shown[[2]string{f.Role, f.Upstream}] = true
		w.metrics.CertificateSeconds.WithLabelValues(f.Role, f.Upstream).Set(e.NotAfter.Sub(now).Seconds())
		if e.Validity == configs.Valid {
			delete(w.warned, f.Key)
			continue
		}
		last := w.warned[f.Key]
		if last.validity == e.Validity && last.notAfter.Equal(e.NotAfter) && now.Sub(last.at) < certificateReminder {
			continue
		}
		w.warned[f.Key] = certificateWarning{e.NotAfter, e.Validity, now}
		w.warn(e)
	}
	for labels := range w.shown {
		if !shown[labels] {
			w.metrics.CertificateSeconds.DeleteLabelValues(labels[0], labels[1])
		}
	}
	w.shown = shown
}

func (w *certificateWatch) warn(e configs.Expiry) {
	fields := []zap.Field{zap.String("certificate", e.String()), zap.Time("not_after", e.NotAfter)}
	switch e.Validity {
	case configs.Ended:
		w.log.Error("certificate not valid; replace it", fields...)
	default:
		w.log.Warn("certificate ends soon; replace it", fields...)
	}
}
