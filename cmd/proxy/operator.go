package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"

	"github.com/entrepot-dev/entrepot/configs"
)

// operator asks the admin listener that the same settings would open, as its
// commands do. Its transport is the caller's to close.
type operator struct {
	listen, scheme string
	token          string // empty where none is to be shown
	transport      *http.Transport
}

func newOperator(a configs.Admin) (*operator, error) {
	// No proxy from the environment: it would be asked for this machine's own
	// address.
	o := &operator{listen: a.Listen, scheme: "http", transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialSelf(ctx, a.Listen) },
	}}
	if a.Auth.TokenFile != "" {
		var err error
		if o.token, err = readToken(a.Auth.TokenFile); err != nil {
			return nil, err
		}
	}
	if a.TLS.Cert != "" {
		pair, err := tls.LoadX509KeyPair(a.TLS.Cert, a.TLS.Key)
		if err != nil {
			return nil, fmt.Errorf("admin.tls: %w", err)
		}
		o.scheme = "https"
		// The name in it is not this machine's localhost; so it must be the very
		// certificate that the settings name.
		o.transport.TLSClientConfig = &tls.Config{
			MinVersion:         tls.VersionTLS12,
			InsecureSkipVerify: true, // #nosec G402 -- VerifyConnection takes one certificate alone
			VerifyConnection: func(s tls.ConnectionState) error {
				if len(s.PeerCertificates) == 0 || !bytes.Equal(s.PeerCertificates[0].Raw, pair.Certificate[0]) {
					return errors.New("the admin listener shows another certificate than admin.tls.cert")
				}
				return nil
			},
		}
	}
	return o, nil
}

// url gives the URL of a path of the listener.
func (o *operator) url(path string) string { return o.scheme + "://" + reachable(o.listen) + path }

// do sends a request. The caller closes the body.
func (o *operator) do(ctx context.Context, method, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, o.url(path), nil)
	if err != nil {
		return nil, err
	}
	if o.token != "" {
		req.Header.Set("Authorization", "Bearer "+o.token)
	}
	return o.transport.RoundTrip(req)
}
