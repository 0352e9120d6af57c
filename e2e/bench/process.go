package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// server is a running subject. Its methods are for one goroutine.
type server struct {
	subject subject
	address string // of the registry API, host:port
	admin   string // of Entrepot's operator listener, host:port
	token   string // path of the file with its token
	// tls is what a client needs to speak to it; nil for plain http.
	tls *tls.Config
	// authorization is what clients show; empty for nothing.
	authorization string
	// dir is its own; it goes with it.
	dir string
	// startup is the time from its start to its first answer.
	startup time.Duration

	cmd   *exec.Cmd
	pids  []int
	ended chan struct{}
}

// launch says how a subject's process is started.
type launch struct {
	subject subject
	dir     string
	address string
	admin   string
	token   string
	// authorization is what clients show; empty for nothing.
	authorization string
	trust         *x509.CertPool // where set, it speaks TLS
	path          string
	args          []string
	env           []string
}

// startupPatience bounds the wait for a subject's first answer.
const startupPatience = 2 * time.Minute

// start starts a process and waits until it answers /v2/ with 200.
func (l launch) start(ctx context.Context) (*server, error) {
	log, err := os.Create(filepath.Join(l.dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	s := &server{subject: l.subject, address: l.address, admin: l.admin, token: l.token, authorization: l.authorization, dir: l.dir, ended: make(chan struct{})}
	if l.trust != nil {
		s.tls = &tls.Config{RootCAs: l.trust, ServerName: "localhost", MinVersion: tls.VersionTLS13}
	}
	s.cmd = exec.Command(l.path, l.args...)
	s.cmd.Dir = l.dir
	s.cmd.SysProcAttr = attributes()
	s.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + l.dir, "OTEL_TRACES_EXPORTER=none"}, l.env...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	begin := time.Now()
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", l.subject, err)
	}
	// It ends with the process, which stop ends.
	go func() {
		_ = s.cmd.Wait() // how it ends says nothing
		close(s.ended)
	}()
	for {
		if err = s.ping(ctx); err == nil {
			break
		}
		select {
		case <-s.ended:
		case <-ctx.Done():
		case <-time.After(500 * time.Microsecond):
			if time.Since(begin) < startupPatience {
				continue
			}
		}
		b, _ := os.ReadFile(log.Name())
		return nil, errors.Join(fmt.Errorf("%s does not answer: %w; its log:\n%s", l.subject, err, b), s.stop())
	}
	s.startup = time.Since(begin)
	s.pids = family(s.cmd.Process.Pid)
	return s, nil
}

// ping asks for /v2/ on a connection of its own.
func (s *server) ping(ctx context.Context) error {
	d := net.Dialer{Timeout: time.Second}
	c, err := d.DialContext(ctx, "tcp", s.address)
	if err != nil {
		return err
	}
	defer c.Close()
	if s.tls != nil {
		c = tls.Client(c, s.tls)
	}
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	ask := request{bytes: []byte("GET /v2/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")}.shown(s.authorization)
	if _, err := c.Write(ask.bytes); err != nil {
		return err
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return errors.New(res.Status)
	}
	return nil
}

// url is the registry API's, without a trailing slash.
func (s *server) url() string {
	if s.tls != nil {
		return "https://" + s.address
	}
	return "http://" + s.address
}

// stop ends the process and removes what it has kept.
func (s *server) stop() error {
	err := s.cmd.Process.Signal(syscall.SIGTERM)
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	select {
	case <-s.ended:
	case <-time.After(10 * time.Second):
		_ = s.cmd.Process.Kill() // it may have ended just now
		<-s.ended
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}

// freeAddress gives an address that nobody listens at just now.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("look for a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().String(), nil
}
