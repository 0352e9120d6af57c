package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/entrepot-dev/entrepot/oci"
)

const (
	// maxRefusals bounds the connections that are refused in words at a time;
	// those beyond are closed without a word.
	maxRefusals = 64
	// refusalTimeout bounds one refusal.
	refusalTimeout = 2 * time.Second
)

// refuseConn tells a client that it may not come in, and closes c. It does not
// wait: the words are sent by a goroutine, which Shutdown ends and waits for.
func (s *Server) refuseConn(c net.Conn, e *oci.Error) {
	if e == errTooManyOfAddress {
		s.refused.address.Inc()
	} else {
		s.refused.connections.Inc()
	}
	select {
	case s.refusing <- struct{}{}:
	default:
		_ = c.Close()
		return
	}
	s.refusals.Go(func() {
		defer func() { <-s.refusing }()
		defer c.Close()
		stop := context.AfterFunc(s.draining, func() { _ = c.Close() })
		defer stop()
		sayRefusal(c, s.tls, e)
	})
}

// sayRefusal answers the request on c with e. The request is read first: a
// client does not expect an answer before it has asked, and a connection that is
// closed over unread bytes is reset, words and all.
func sayRefusal(c net.Conn, secure *tls.Config, e *oci.Error) {
	_ = c.SetDeadline(time.Now().Add(refusalTimeout))
	if secure != nil {
		c = tls.Server(c, secure)
	}
	r := bufio.NewReaderSize(io.LimitReader(c, maxHeaderBytes), 1<<10)
	head := false
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		if first {
			head = bytes.HasPrefix(line, []byte("HEAD "))
		}
		if err == bufio.ErrBufferFull {
			continue
		}
		if err != nil {
			return // gone, too slow, or talking too much
		}
		if !first && len(bytes.TrimRight(line, "\r\n")) == 0 {
			break
		}
	}
	body := errorJSON(e)
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nRetry-After: %s\r\n"+
		"Docker-Distribution-Api-Version: registry/2.0\r\nConnection: close\r\n\r\n",
		e.Status, http.StatusText(e.Status), jsonType, len(body), strconv.Itoa(int(e.RetryAfter/time.Second)))
	if !head {
		b.Write(body)
	}
	if _, err := c.Write(b.Bytes()); err != nil {
		return
	}
	if half, ok := c.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(c, maxHeaderBytes))
	}
}
