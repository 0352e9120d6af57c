//go:build !linux

package server

import (
	"errors"
	"net"
	"time"

	"github.com/entrepot-dev/entrepot/cache"
)

// socket is for Linux; elsewhere package net does all.
type socket struct{}

func newSocket(net.Conn) *socket { return nil }

func (*socket) sendFile(cache.File, int64, int, func(time.Time)) (int64, error) {
	return 0, errors.ErrUnsupported
}

func (*socket) read([]byte) (int, error) { return 0, errors.ErrUnsupported }

func (*socket) write([]byte) (int, error) { return 0, errors.ErrUnsupported }
