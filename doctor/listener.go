package doctor

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"
)

// Listener checks that clients reach an Entrepot.
type Listener struct {
	// URL is where, without a slash at its end.
	URL string
	// HTTP sends the requests.
	HTTP http.RoundTripper
}

// Name is "listener".
func (Listener) Name() string { return "listener" }

// greeting begins what Entrepot says to a browser.
const greeting = "This is Entrepot"

// maxGreeting is how much is read of it.
const maxGreeting = 4 << 10

// Look asks /v2/, as every client does first, and /, where Entrepot says its name.
func (l Listener) Look(ctx context.Context) []Finding {
	status, said, header, err := l.get(ctx, "/v2/")
	if err != nil {
		return []Finding{l.unreachable(err)}
	}
	if status == http.StatusBadRequest && strings.Contains(said, "https") {
		return []Finding{{Status: Failure, Seen: l.URL + " speaks https", Advice: "write https:// for it, here and in the clients' configuration"}}
	}
	if status != http.StatusOK && status != http.StatusUnauthorized && status != http.StatusForbidden || header.Get("Docker-Distribution-Api-Version") == "" {
		return []Finding{{Status: Failure, Seen: fmt.Sprintf("%s/v2/ answers %d, and not as a registry does", l.URL, status),
			Advice: "another program listens there; give Entrepot, or this command (--url), another address"}}
	}
	_, text, _, err := l.get(ctx, "/")
	if err != nil || !strings.HasPrefix(text, greeting) {
		return []Finding{{Status: Failure, Seen: l.URL + " is a registry, and no Entrepot",
			Advice: "another registry, or a proxy in front that passes on no more than /v2/, listens there; see that it is the address of Entrepot"}}
	}
	switch status {
	case http.StatusUnauthorized:
		return []Finding{{Status: Warning, Seen: l.URL + " answers as Entrepot, and wants credentials",
			Advice: "a Docker daemon can not log in to a mirror and goes past it: let daemons in by auth.networks or a client certificate"}}
	case http.StatusForbidden:
		return []Finding{{Status: Warning, Seen: l.URL + " answers as Entrepot, and refuses this machine where it shows no credentials",
			Advice: "let its address in by auth.networks, or give its clients credentials or a certificate"}}
	}
	return []Finding{{Status: OK, Seen: l.URL + " answers as Entrepot"}}
}

func (l Listener) get(ctx context.Context, path string) (status int, text string, header http.Header, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, l.URL+path, nil)
	if err != nil {
		return 0, "", nil, err
	}
	resp, err := l.HTTP.RoundTrip(req)
	if err != nil {
		return 0, "", nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxGreeting))
	return resp.StatusCode, string(b), resp.Header, err
}

// unreachable returns why nothing answers.
func (l Listener) unreachable(err error) Finding {
	f := Finding{Status: Failure, Seen: fmt.Sprintf("%s does not answer: %v", l.URL, err)}
	dns, timeout := (*net.DNSError)(nil), net.Error(nil)
	invalid := x509.CertificateInvalidError{}
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && invalid.Cert != nil:
		name, layout := invalid.Cert.Subject.String(), "2006-01-02 15:04 UTC"
		if early := invalid.Cert.NotBefore; time.Now().Before(early) {
			f.Seen = fmt.Sprintf("%s shows a certificate (%s) that is valid only from %s", l.URL, name, early.UTC().Format(layout))
			f.Advice = "check the clock of this machine; if it is right, replace the files of tls.cert and tls.key"
			break
		}
		f.Seen = fmt.Sprintf("%s shows a certificate (%s) that expired on %s; clients refuse it", l.URL, name, invalid.Cert.NotAfter.UTC().Format(layout))
		f.Advice = "replace the files of tls.cert and tls.key; Entrepot reads them again by itself"
	case errors.Is(err, syscall.ECONNREFUSED):
		f.Seen, f.Advice = "nothing listens at "+l.URL, "start Entrepot (entrepot serve), or see that listen and the address of the clients agree"
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"), strings.Contains(err.Error(), "does not look like a TLS handshake"):
		f.Seen, f.Advice = l.URL+" speaks plain http", "write http:// in the clients' configuration, or set tls.cert and tls.key"
	case strings.Contains(err.Error(), "x509") || strings.Contains(err.Error(), "tls:"):
		f.Advice = "see that tls.cert has this name and is of an authority that this machine and its clients trust"
	case errors.As(err, &dns):
		f.Advice = "the name is not known here; use one that is, or an address"
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded):
		f.Seen, f.Advice = l.URL+" does not answer in time", "a firewall between, or a machine that is down: see that the port is open to this machine"
	default:
		f.Advice = "see that the address is that of Entrepot, and whether it is to be asked by http or https"
	}
	return f
}
