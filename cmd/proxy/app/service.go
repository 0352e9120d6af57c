package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// closeTimeout bounds how long the cache may take to let go of its fetches once
// no client waits for them.
const closeTimeout = 10 * time.Second

// sameSignal is how soon a signal after the first one is still the first: the
// terminal, timeout(1) and supervisors may send one to the process and to its
// group.
const sameSignal = 100 * time.Millisecond

// errForced is the end that a second signal asks for.
var errForced = errors.New("ended by a second signal before running transfers had finished")

// listener serves what it is given to listen on until it is shut down.
type listener interface {
	Serve(net.Listener) error
	// Shutdown takes no new connection and waits for running answers until ctx
	// ends; then it cuts them.
	Shutdown(context.Context) error
}

// keeper is the cache, as its end and its health are seen from here.
type keeper interface {
	// Ending notes that Close comes soon.
	Ending()
	Close(context.Context) error
	// Restoring tells whether what is cached isn't known yet.
	Restoring() bool
}

// service is the running program: who listens, and what stands behind.
type service struct {
	front   listener
	frontLn net.Listener
	// admin is nil where there is no admin listener.
	admin   listener
	adminLn net.Listener
	cache   keeper
	// closeUpstreams ends what the upstreams do for several callers.
	closeUpstreams func()
	// timeout is for how long running transfers may go on after a signal.
	timeout time.Duration
	log     *zap.Logger
	// serving tells the readiness check that clients are answered.
	serving atomic.Bool
}

// ready tells whether clients may be sent here. They may while the cache's disk
// fails: what is cached is served, and what is not is passed on.
func (s *service) ready(context.Context) error {
	if !s.serving.Load() {
		return errors.New("not serving clients (starting, or shutting down)")
	}
	if s.cache.Restoring() {
		return errors.New("the cache's index was lost and is being restored: much of what is cached isn't known yet")
	}
	return nil
}

// run serves until a signal, or until a listener breaks, and then ends
// everything in order: no new clients, the running transfers, the fetches, the
// upstreams; health is answered until the last. It gives nil where a signal
// ended it, also where transfers had to be cut after the timeout.
func (s *service) run(signals <-chan os.Signal) error {
	// The two goroutines end with Shutdown below; ended has room for both.
	ended := make(chan error, 2)
	serve := func(name string, l listener, ln net.Listener) {
		if err := l.Serve(ln); err != nil {
			ended <- fmt.Errorf("%s listener: %w", name, err)
		}
	}
	go serve("registry", s.front, s.frontLn)
	if s.admin != nil {
		go serve("admin", s.admin, s.adminLn)
	}
	s.serving.Store(true)

	var failed error
	select {
	case sig := <-signals:
		s.log.Info("shutting down: running transfers may finish; a second signal ends them",
			zap.Stringer("signal", sig), zap.Duration("timeout", s.timeout))
	case failed = <-ended:
		s.log.Error("shutting down", zap.Error(failed))
	}
	s.serving.Store(false)

	if err := s.end(signals); err != nil {
		return errors.Join(failed, err)
	}
	s.log.Info("stopped")
	return failed
}

// end shuts everything down. Another signal makes it wait for nothing more.
func (s *service) end(signals <-chan os.Signal) error {
	s.cache.Ending()
	begun := time.Now()
	life, force := context.WithCancelCause(context.Background())
	defer force(nil)
	// It ends with life.
	go func() {
		for life.Err() == nil {
			select {
			case <-signals:
				if time.Since(begun) >= sameSignal {
					force(errForced)
				}
			case <-life.Done():
			}
		}
	}()

	ctx, cancel := context.WithTimeout(life, s.timeout)
	defer cancel()
	if err := s.front.Shutdown(ctx); err != nil && ctx.Err() == nil {
		s.log.Warn("closing the registry listener", zap.Error(err))
	} else if err != nil && life.Err() == nil {
		s.log.Warn("transfers were still running after shutdown_timeout and have been cut", zap.Duration("timeout", s.timeout))
	}

	ctx, cancel = context.WithTimeout(life, closeTimeout)
	defer cancel()
	if err := s.cache.Close(ctx); err != nil && life.Err() == nil {
		s.log.Warn("closing the cache", zap.Error(err))
	}
	if life.Err() == nil {
		s.closeUpstreams()
	}
	if s.admin != nil {
		ctx, cancel := context.WithTimeout(life, time.Second)
		defer cancel()
		_ = s.admin.Shutdown(ctx) // a profile that is cut is no loss
	}
	if errors.Is(context.Cause(life), errForced) {
		return errForced
	}
	return nil
}
