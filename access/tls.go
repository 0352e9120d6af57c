package access

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// TLSFiles are the PEM files of a listener. ClientCA may be empty; clients that
// show a certificate of its are then known by it, and need not show one.
type TLSFiles struct{ Cert, Key, ClientCA string }

// TLS gives the configuration of a listener: TLS 1.2 and later, HTTP/1.1, and the
// certificate that the files hold at the time. They are looked at again with a
// handshake, every fileInterval at most; where they can not be read, or do not
// belong together, those that were read before are used and log is told. It may be
// nil.
func TLS(f TLSFiles, log *zap.Logger) (*tls.Config, error) {
	if log == nil {
		log = zap.NewNop()
	}
	r := &reloading{files: f, log: log, watched: watched{paths: []string{f.Cert, f.Key}}}
	if f.ClientCA != "" {
		r.watched.paths = append(r.watched.paths, f.ClientCA)
	}
	r.watched.changed()
	first, err := f.load()
	if err != nil {
		return nil, err
	}
	r.now.Store(first)
	r.looked.Store(time.Now().UnixNano())
	outer := first.Clone()
	outer.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return r.current(), nil }
	return outer, nil
}

// load reads the files.
func (f TLSFiles) load() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, err
	}
	c := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	if f.ClientCA == "" {
		return c, nil
	}
	pem, err := os.ReadFile(f.ClientCA)
	if err != nil {
		return nil, err
	}
	c.ClientCAs, c.ClientAuth = x509.NewCertPool(), tls.VerifyClientCertIfGiven
	if !c.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no PEM certificate", f.ClientCA)
	}
	return c, nil
}

// reloading is a configuration that follows its files.
type reloading struct {
	files  TLSFiles
	log    *zap.Logger
	now    atomic.Pointer[tls.Config]
	looked atomic.Int64 // Unix time in nanoseconds

	// looking is held by the one handshake that looks at the files; the others
	// do not wait for it.
	looking sync.Mutex
	watched watched
}

func (r *reloading) current() *tls.Config {
	if time.Since(time.Unix(0, r.looked.Load())) >= fileInterval && r.looking.TryLock() {
		defer r.looking.Unlock()
		if r.watched.changed() {
			r.reload()
		}
		r.looked.Store(time.Now().UnixNano())
	}
	return r.now.Load()
}

func (r *reloading) reload() {
	c, err := r.files.load()
	if err != nil {
		r.log.Warn("the certificate is the one that was read before", zap.Error(err), zap.String("cert", r.files.Cert))
		return
	}
	r.now.Store(c)
	fields := []zap.Field{zap.String("cert", r.files.Cert)}
	if leaf := c.Certificates[0].Leaf; leaf != nil {
		fields = append(fields, zap.Time("not_after", leaf.NotAfter))
	}
	r.log.Info("read the certificate again", fields...)
}
