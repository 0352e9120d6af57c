package app

import (
	"net"
	"strings"
	"testing"
)

func TestListenErrorsNameTheSettingAndTheMend(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for address, want := range map[string]string{
		taken.Addr().String(): "listen: " + taken.Addr().String() + " is taken by another program; stop that one, or set listen (--listen) to another address",
		"192.0.2.1:5000":      "listen: 192.0.2.1:5000 is no address of this machine; set listen (--listen) to another address",
	} {
		ln, err := listen("listen", "listen", address)
		if err == nil {
			_ = ln.Close()
		}
		if err == nil || err.Error() != want {
			t.Errorf("%s: want %q, got %v", address, want, err)
		}
	}
}

func TestListenOpensAnyFreePort(t *testing.T) {
	ln, err := listen("listen", "listen", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if got := ln.Addr().String(); !strings.HasPrefix(got, "127.0.0.1:") || strings.HasSuffix(got, ":0") {
		t.Errorf("want a port on 127.0.0.1, got %s", got)
	}
}
