package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// routes carries requests, each by the transport that its host may have.
type routes struct {
	trust *trust
	proxy func(*http.Request) (*url.URL, error)
	// named is for hosts that the configuration names, strangers for all
	// others: it dials no address inside the operator's network. Where a proxy
	// dials for us, that is the proxy's to judge: proxied.
	named              atomic.Pointer[lanes]
	strangers, proxied *lanes
	// inside holds the kinds of addresses, as bits, at which endpoints have
	// answered: a registry inside may redirect to a store inside.
	inside atomic.Uint32
}

func newRoutes(o Options, t *trust, dial dialer, proxy func(*http.Request) (*url.URL, error)) (*routes, error) {
	roots, err := roots(o.CAFile)
	if err != nil {
		return nil, fmt.Errorf("tls.ca: %w", err)
	}
	named := &tls.Config{RootCAs: roots, InsecureSkipVerify: o.InsecureTLS} // #nosec G402 -- only where tls.insecure says so, which the log warns of
	switch {
	case (o.CertFile == "") != (o.KeyFile == ""):
		return nil, errors.New("tls.cert and tls.key go together: one of them is missing")
	case o.CertFile != "":
		if named.GetClientCertificate, err = clientCertificate(o.CertFile, o.KeyFile); err != nil {
			return nil, fmt.Errorf("tls.cert, tls.key: %w", err)
		}
	}

	r := &routes{trust: t, proxy: proxy}
	open := &net.Dialer{Timeout: o.ConnectTimeout, KeepAlive: 15 * time.Second}
	guarded := &net.Dialer{Timeout: o.ConnectTimeout, KeepAlive: 15 * time.Second, ControlContext: r.control}
	transport := func(c *tls.Config, d dialer, proxy func(*http.Request) (*url.URL, error)) *lanes {
		if dial != nil {
			d = dial
		}
		return newLanes(&http.Transport{
			Proxy:                  proxy,
			DialContext:            d,
			TLSClientConfig:        c,
			TLSHandshakeTimeout:    o.ConnectTimeout,
			ResponseHeaderTimeout:  o.HeaderTimeout,
			MaxResponseHeaderBytes: 256 << 10,
			// Layers are compressed, and manifests are passed on byte for byte.
			DisableCompression:     true,
			OnProxyConnectResponse: connected,
			MaxIdleConnsPerHost:    o.MaxConnections,
			IdleConnTimeout:        90 * time.Second,
			ForceAttemptHTTP2:      true,
			// A dead HTTP/2 connection takes all its streams with it: find out.
			HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second},
		})
	}
	r.named.Store(transport(named, open.DialContext, proxy))
	r.strangers = transport(&tls.Config{RootCAs: roots}, guarded.DialContext, nil)
	r.proxied = transport(&tls.Config{RootCAs: roots}, open.DialContext, proxy)
	return r, nil
}

// clientCertificate returns a function that gives the certificate of two PEM files for a
// handshake. It reads them each time, because certificates are renewed in place. While they
// cannot be read, or do not belong together, it gives what it read before.
func clientCertificate(cert, key string) (func(*tls.CertificateRequestInfo) (*tls.Certificate, error), error) {
	first, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	var last atomic.Pointer[tls.Certificate]
	last.Store(&first)
	return func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if pair, err := tls.LoadX509KeyPair(cert, key); err == nil {
			last.Store(&pair)
		}
		if pair := last.Load(); info.SupportsCertificate(pair) == nil {
			return pair, nil
		}
		return new(tls.Certificate), nil // none
	}, nil
}

// roots gives the system's certificates with those of file beside them; nil,
// which stands for the system's, where there is no file.
func roots(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file) // #nosec G304 -- the operator names the file
	if err != nil {
		return nil, err
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no PEM certificate", file)
	}
	return pool, nil
}

func (r *routes) close() {
	for _, t := range []*lanes{r.named.Load(), r.strangers, r.proxied} {
		t.CloseIdleConnections()
	}
}

// renew lets no later request to a host that the configuration names use a connection
// that exists now, since it may be dead. Requests and bodies on them go on.
func (r *routes) renew() {
	old := r.named.Load()
	if r.named.CompareAndSwap(old, old.clone(false)) {
		old.CloseIdleConnections()
	}
	r.strangers.CloseIdleConnections()
	r.proxied.CloseIdleConnections()
}

// over sends req by t, on a connection of its own if req's context is fresh.
func (r *routes) over(t *lanes, req *http.Request) (*http.Response, error) {
	if isFresh(req.Context()) {
		// Lanes of its own: another's HTTP/2 connection would be used in place of one
		// that has just been made.
		t = t.clone(true)
	}
	return t.RoundTrip(req)
}

// roundTrip sends req to its host and nowhere else: it follows no redirect.
func (r *routes) roundTrip(req *http.Request) (*http.Response, error) {
	via, err := r.proxy(req)
	if err != nil {
		return nil, errors.New("the proxy in the environment is not a URL")
	}
	res, err := r.carry(req, via)
	if via == nil {
		return res, err
	}
	if op := (*net.OpError)(nil); errors.As(err, &op) && op.Op == "proxyconnect" {
		return nil, &proxyFailed{via: via.Host, err: op.Err}
	}
	if err == nil && res.StatusCode == http.StatusProxyAuthRequired { // of a request in plain http
		_ = res.Body.Close()
		return nil, &proxyFailed{via: via.Host, status: res.StatusCode}
	}
	return res, err
}

// proxyFailed says that the proxy in the environment, at host via, can't be connected to,
// or that it refuses to connect to the host of a request.
type proxyFailed struct {
	via    string
	status int // of its refusal; 0 if err says why it can't be connected to
	err    error
}

func (e *proxyFailed) Error() string {
	switch e.status {
	case 0:
		return fmt.Sprintf("the proxy %s can not be connected to", e.via)
	case http.StatusProxyAuthRequired:
		return fmt.Sprintf("the proxy %s wants credentials (it answered 407); write them into HTTPS_PROXY or HTTP_PROXY, as in http://user:password@%s", e.via, e.via)
	}
	return fmt.Sprintf("the proxy %s refuses the connection (it answered %d %s); allow the host there, or list it in NO_PROXY", e.via, e.status, http.StatusText(e.status))
}

func (e *proxyFailed) Unwrap() error { return e.err }

// connected judges a proxy's answer to CONNECT.
func connected(_ context.Context, proxy *url.URL, _ *http.Request, res *http.Response) error {
	if res.StatusCode == http.StatusOK {
		return nil
	}
	return &proxyFailed{via: proxy.Host, status: res.StatusCode}
}

// carry sends req by the transport that its host may have; via is the proxy on the way.
func (r *routes) carry(req *http.Request, via *url.URL) (*http.Response, error) {
	switch {
	case r.trust.own[site(req.URL)] && via == nil:
		return r.learn(req)
	case r.trust.named(req.URL):
		return r.over(r.named.Load(), req)
	}
	host := req.URL.Hostname()
	if ip, err := netip.ParseAddr(host); err == nil {
		if err := r.admit(ip); err != nil {
			return nil, err
		}
	} else if via != nil && isAddressInDisguise(host) {
		// The proxy would resolve it, to what no one here can look at.
		return nil, &forbiddenAddress{}
	}
	if via != nil {
		return r.over(r.proxied, req)
	}
	return r.over(r.strangers, req)
}

// isAddressInDisguise tells whether host, which is no address as it should be
// written, is one to resolvers all the same: the loopback's name, or a last part
// that is a number, as in 127.1, 2130706433 and 0x7f000001 (WHATWG URL, "ends in a
// number").
func isAddressInDisguise(host string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	last := host[strings.LastIndexByte(host, '.')+1:]
	if last == "localhost" || last == "localdomain" {
		return true
	}
	_, err := strconv.ParseUint(strings.TrimPrefix(last, "0x"), 16, 64)
	isHex := strings.HasPrefix(last, "0x") && (err == nil || last == "0x")
	return isHex || last != "" && strings.Trim(last, "0123456789") == ""
}

// learn asks an endpoint and notes the kind of address that answered.
func (r *routes) learn(req *http.Request) (*http.Response, error) {
	var at atomic.Pointer[net.TCPAddr]
	ctx := httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) {
		if a, ok := c.Conn.RemoteAddr().(*net.TCPAddr); ok {
			at.Store(a)
		}
	}})
	res, err := r.over(r.named.Load(), req.WithContext(ctx))
	if err == nil {
		if a := at.Load(); a != nil {
			r.inside.Or(uint32(kindOf(a.AddrPort().Addr())))
		}
	}
	return res, err
}

// control looks at the address of a connection that is about to be made, after
// the name was resolved, so that a name that changes its mind does not pass.
func (r *routes) control(_ context.Context, _, addr string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return &forbiddenAddress{}
	}
	return r.admit(ap.Addr())
}

func (r *routes) admit(ip netip.Addr) error {
	if k := kindOf(ip); k != public && (k == reserved || r.inside.Load()&uint32(k) == 0) {
		return &forbiddenAddress{}
	}
	return nil
}

// forbiddenAddress says that a stranger's host is inside.
type forbiddenAddress struct{}

func (*forbiddenAddress) Error() string {
	return "a private address that the configuration does not name"
}

// addressKind tells networks apart that a redirect must not lead to unless the
// registry is in the same one.
type addressKind uint32

const (
	public   addressKind = 0
	loopback addressKind = 1 << (iota - 1)
	private
	linkLocal
	shared
	reserved
)

func kindOf(ip netip.Addr) addressKind {
	ip = ip.Unmap().WithZone("")
	if nat64.Contains(ip) { // an IPv4 address in other clothes
		b := ip.As16()
		ip = netip.AddrFrom4([4]byte(b[12:]))
	}
	switch {
	case ip.IsLoopback():
		return loopback
	case ip.IsPrivate():
		return private
	case ip.IsLinkLocalUnicast():
		return linkLocal
	}
	for _, p := range special {
		if p.net.Contains(ip) {
			return p.kind
		}
	}
	if !ip.IsGlobalUnicast() {
		return reserved
	}
	return public
}

var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// special are the other networks that are not the public internet (IANA
// special-purpose address registries), and IPv6 forms that hide an IPv4 one.
var special = []struct {
	net  netip.Prefix
	kind addressKind
}{
	{netip.MustParsePrefix("100.64.0.0/10"), shared},
	{netip.MustParsePrefix("0.0.0.0/8"), reserved},
	{netip.MustParsePrefix("192.0.0.0/24"), reserved},
	{netip.MustParsePrefix("192.0.2.0/24"), reserved},
	{netip.MustParsePrefix("192.88.99.0/24"), reserved},
	{netip.MustParsePrefix("198.18.0.0/15"), reserved},
	{netip.MustParsePrefix("198.51.100.0/24"), reserved},
	{netip.MustParsePrefix("203.0.113.0/24"), reserved},
	{netip.MustParsePrefix("240.0.0.0/4"), reserved},
	{netip.MustParsePrefix("::/96"), reserved},
	{netip.MustParsePrefix("::ffff:0:0:0/96"), reserved},
	{netip.MustParsePrefix("64:ff9b:1::/48"), reserved},
	{netip.MustParsePrefix("100::/64"), reserved},
	{netip.MustParsePrefix("2001::/23"), reserved}, // Teredo is in it
	{netip.MustParsePrefix("2001:db8::/32"), reserved},
	{netip.MustParsePrefix("2002::/16"), reserved},
	{netip.MustParsePrefix("3fff::/20"), reserved},
	{netip.MustParsePrefix("5f00::/16"), reserved},
	{netip.MustParsePrefix("fec0::/10"), reserved},
}
