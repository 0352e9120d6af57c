package server

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/entrepot-dev/entrepot/oci"
)

// errPlainHTTP ends the handshake of who speaks no TLS.
var errPlainHTTP = errors.New("plain http on the port of https")

// isHTTP tells whether the first bytes of a connection are the beginning of a
// request line. A TLS record begins with a byte that is no letter.
func isHTTP(b []byte) bool {
	method, _, _ := bytes.Cut(b, []byte(" "))
	if len(method) == 0 || len(method) > len("CONNECT") {
		return false
	}
	for _, c := range method {
		if c < 'A' || c > 'Z' {
			return false
		}
	}
	return true
}

// checkScheme answers in words who speaks plain http where TLS is spoken. begun
// are the first bytes that came.
func (c *conn) checkScheme(begun []byte) error {
	c.greeted = true
	if !isHTTP(begun) {
		return nil
	}
	body := errorJSON(&oci.Error{Code: oci.CodeUnsupported,
		Message: "this port speaks https, and the request was plain http: write https:// in the client's configuration"})
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d Bad Request\r\nContent-Type: %s\r\nContent-Length: %d\r\n"+
		"Docker-Distribution-Api-Version: registry/2.0\r\nConnection: close\r\n\r\n", fasthttp.StatusBadRequest, jsonType, len(body))
	if !bytes.HasPrefix(begun, []byte("HEAD ")) {
		b.Write(body)
	}
	// Both as sayRefusal does it, and as long.
	_ = c.Conn.SetDeadline(time.Now().Add(refusalTimeout))
	if _, err := c.Conn.Write(b.Bytes()); err != nil {
		return errPlainHTTP
	}
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(c.Conn, maxHeaderBytes))
	}
	return errPlainHTTP
}
