package server

import (
	"net"
	"testing"
	"testing/synctest"
	"time"
)

func TestDeadlineIsSetAnewOnlyWhenItDiffers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d deadline
		ask := func(what string, in time.Duration, want bool) {
			t.Helper()
			at := time.Now().Add(in)
			if in == 0 {
				at = time.Time{}
			}
			if got := d.serves(at); got != want {
				t.Errorf("%s: serves = %t, want %t", what, got, want)
			}
		}
		ask("none, where none was set", 0, true)
		ask("the first", time.Minute, false)
		ask("the same", time.Minute, true)
		time.Sleep(3 * time.Second)
		ask("a twentieth later", time.Minute, true)
		time.Sleep(time.Second)
		ask("more than a sixteenth later", time.Minute, false)
		ask("an earlier one", time.Second, false)
		ask("a later one", time.Minute, false)
		time.Sleep(2 * time.Minute)
		ask("one after the last has passed", time.Minute, false)
		ask("none, where one was set", 0, false)
		ask("none again", 0, true)
	})
}

// armed counts the deadlines that reach a connection.
type armed struct {
	net.Conn
	reads, writes int
}

func (a *armed) SetReadDeadline(t time.Time) error {
	a.reads++
	return a.Conn.SetReadDeadline(t)
}

func (a *armed) SetWriteDeadline(t time.Time) error {
	a.writes++
	return a.Conn.SetWriteDeadline(t)
}

// What fasthttp does for each request of a kept connection.
func TestRequestsThatFollowEachOtherShareADeadline(t *testing.T) {
	there, here := net.Pipe()
	defer there.Close()
	defer here.Close()
	a := &armed{Conn: here}
	c := &conn{Conn: a, server: New(Options{})}
	go func() {
		for range 100 {
			_, _ = there.Write([]byte("request"))
		}
	}()
	buf := make([]byte, 64)
	for i := range 100 {
		_ = c.SetReadDeadline(time.Now().Add(2 * time.Hour)) // idle
		if _, err := c.Read(buf); err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		_ = c.SetReadDeadline(time.Now().Add(time.Hour)) // the header
		_ = c.SetWriteDeadline(time.Now().Add(time.Hour))
	}
	if a.reads != 1 || a.writes != 1 {
		t.Errorf("set %d deadlines for reading and %d for writing, want 1 and 1", a.reads, a.writes)
	}
	// A header that does not come in one piece has its own.
	_ = c.SetReadDeadline(time.Now().Add(-time.Second))
	if _, err := c.Read(buf); err == nil {
		t.Error("a read past its deadline gave no error")
	}
}
