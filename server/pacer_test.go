package server

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

func TestReaderThatTakesAByteNowAndThenIsNotCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const stall = time.Minute
		ours, theirs := net.Pipe()
		want := blobBytes[:200]
		got := make(chan []byte)
		go func() {
			b := make([]byte, len(want))
			for i := range b {
				time.Sleep(stall * 3 / 4)
				if _, err := io.ReadFull(theirs, b[i:i+1]); err != nil {
					t.Errorf("after %d bytes: %v", i, err)
					break
				}
			}
			got <- b
		}()
		p := &pacer{w: ours, conn: ours, stall: stall, last: time.Now(), direct: true, left: int64(len(want))}
		if n, err := p.Write(want); n != len(want) || err != nil {
			t.Errorf("%d bytes were taken, %v", n, err)
		}
		if b := <-got; !bytes.Equal(b, want) {
			t.Errorf("got %q, want %q", b, want)
		}
	})
}

func TestReaderThatStopsIsCutOffAfterTheStallTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const stall = time.Minute
		ours, theirs := net.Pipe()
		go func() { _, _ = io.ReadFull(theirs, make([]byte, 10)) }()
		p := &pacer{w: ours, conn: ours, stall: stall, direct: true, left: 100}
		begun := time.Now()
		n, err := p.Write(make([]byte, 100))
		if n != 10 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%d bytes were taken, %v; want 10 and a deadline", n, err)
		}
		// It is not known when in the first stall timeout the ten were taken.
		if took := time.Since(begun); took < stall || took > 2*stall+2*glance {
			t.Errorf("cut off after %v", took)
		}
	})
}

// sluggish takes a few bytes of what it is given, and then says that its deadline
// has passed.
type sluggish struct {
	net.Conn
	got   bytes.Buffer
	takes []int // of each call; all where there are no more
}

func (s *sluggish) Write(b []byte) (int, error) {
	if len(s.takes) == 0 || s.takes[0] >= len(b) {
		return s.got.Write(b)
	}
	n := s.takes[0]
	s.takes = s.takes[1:]
	s.got.Write(b[:n])
	return n, os.ErrDeadlineExceeded
}

func (s *sluggish) SetWriteDeadline(time.Time) error { return nil }

func TestFileIsGoneOnWithWhereTheClientStopped(t *testing.T) {
	name := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(name, blobBytes, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		takes []int
		whole bool
	}{
		{[]int{1}, true},
		{[]int{0, 1, 0, 1}, true},
		{[]int{100, 7, 3000, 0}, true},
		{[]int{5, 0, 0}, false},
	} {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		const from = 123
		want := blobBytes[from : len(blobBytes)-10]
		conn := &sluggish{takes: c.takes}
		p := &pacer{w: conn, conn: conn, stall: time.Minute, direct: true, left: int64(len(want))}
		n, err := p.SendFile(f, from, from+int64(len(want)))
		if n != int64(conn.got.Len()) || n != p.sent {
			t.Errorf("%v: %d bytes are told, %d noted, %d sent", c.takes, n, p.sent, conn.got.Len())
		}
		if !bytes.Equal(conn.got.Bytes(), want[:n]) {
			t.Errorf("%v: other bytes were sent", c.takes)
		}
		if whole := err == nil && int(n) == len(want); whole != c.whole {
			t.Errorf("%v: %d of %d bytes, %v", c.takes, n, len(want), err)
		}
	}
}
