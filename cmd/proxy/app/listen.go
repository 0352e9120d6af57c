package app

import (
	"errors"
	"fmt"
	"net"
	"syscall"
)

// listen opens an address for what a key of the configuration asks. Its errors
// are sentences that name the key and the mend.
func listen(key, flag, address string) (net.Listener, error) {
	ln, err := net.Listen("tcp", address)
	mend := fmt.Sprintf("set %s (--%s) to another address", key, flag)
	switch {
	case err == nil:
		return ln, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, &takenError{fmt.Sprintf("%s: %s is taken by another program; stop that one, or %s", key, address, mend)}
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("%s: this user may not listen on %s (ports below 1024 need a privilege); %s", key, address, mend)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("%s: %s is no address of this machine; %s", key, address, mend)
	}
	return nil, fmt.Errorf("%s: %w; %s", key, err, mend)
}

// takenError says that something listens at an address already; it is syscall.EADDRINUSE.
type takenError struct{ sentence string }

func (e *takenError) Error() string { return e.sentence }

func (e *takenError) Is(target error) bool { return target == syscall.EADDRINUSE }
