package configs

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"time"
)

// Roles of certificate files. They are the values of a metric's label.
const (
	RoleListener       = "listener"
	RoleClientCA       = "client_ca"
	RoleAdminListener  = "admin_listener"
	RoleAdminClientCA  = "admin_client_ca"
	RoleUpstreamClient = "upstream_client"
	RoleUpstreamCA     = "upstream_ca"
	RoleOIDCCA         = "oidc_ca"
)

// CertificateFile is a PEM file with certificates that Entrepot shows or trusts.
type CertificateFile struct {
	// Key is the setting that names the file: "tls.cert".
	Key string
	// Role says what the file is for, and Upstream for which upstream; empty if for none.
	Role, Upstream string
	Path           string
	// PrivateKey is the path of the certificate's key, and PrivateKeyKey the setting that
	// names it. Both are empty for authorities.
	PrivateKey, PrivateKeyKey string
}

// CertificateFiles returns the certificate files that the settings name, the upstreams' in
// the order of their names.
func (c *Config) CertificateFiles() []CertificateFile {
	all := []CertificateFile{
		{Key: "tls.cert", Role: RoleListener, Path: c.TLS.Cert, PrivateKey: c.TLS.Key, PrivateKeyKey: "tls.key"},
		{Key: "tls.client_ca", Role: RoleClientCA, Path: c.TLS.ClientCA},
		{Key: "admin.tls.cert", Role: RoleAdminListener, Path: c.Admin.TLS.Cert, PrivateKey: c.Admin.TLS.Key, PrivateKeyKey: "admin.tls.key"},
		{Key: "admin.tls.client_ca", Role: RoleAdminClientCA, Path: c.Admin.TLS.ClientCA},
		{Key: "auth.oidc.ca", Role: RoleOIDCCA, Path: c.Auth.OIDC.CA},
	}
	for _, name := range slices.Sorted(maps.Keys(c.Upstreams)) {
		t := c.Upstreams[name].TLS
		all = append(all,
			CertificateFile{Key: "upstreams." + name + ".tls.cert", Role: RoleUpstreamClient, Upstream: name, Path: t.Cert,
				PrivateKey: t.Key, PrivateKeyKey: "upstreams." + name + ".tls.key"},
			CertificateFile{Key: "upstreams." + name + ".tls.ca", Role: RoleUpstreamCA, Upstream: name, Path: t.CA})
	}
	return slices.DeleteFunc(all, func(f CertificateFile) bool { return f.Path == "" })
}

// UnusableFile is a file of a certificate or of its key that cannot be used.
type UnusableFile struct {
	// Key is the setting that names the file.
	Key string
	Err error
}

// UnusableCertificates returns the files without which serve does not start: missing,
// unreadable, not in PEM, or of a certificate and a key that do not belong together. It
// leaves out the files that serve reads later or not at all: those of an admin listener that
// is off, of an unused OIDC authority, and of upstreams that are patterns.
func (c *Config) UnusableCertificates() []UnusableFile {
	families := c.Families()
	var all []UnusableFile
	for _, f := range c.CertificateFiles() {
		switch {
		case c.Admin.Listen == AdminOff && (f.Role == RoleAdminListener || f.Role == RoleAdminClientCA),
			f.Role == RoleClientCA && c.TLS.Cert == "", f.Role == RoleAdminClientCA && c.Admin.TLS.Cert == "",
			f.Role == RoleOIDCCA && c.Auth.OIDC.Issuer == "",
			slices.Contains(families, f.Upstream):
			continue
		}
		all = append(all, f.unusable()...)
	}
	return all
}

// unusable reads the file, and its private key's.
func (f CertificateFile) unusable() (all []UnusableFile) {
	text, err := os.ReadFile(f.Path)
	if err != nil {
		all = append(all, UnusableFile{f.Key, err})
	}
	if f.trusted() {
		if err == nil && !x509.NewCertPool().AppendCertsFromPEM(text) {
			all = append(all, UnusableFile{f.Key, fmt.Errorf("%s holds no PEM certificate", f.Path)})
		}
		return all
	}
	key, err := os.ReadFile(f.PrivateKey)
	if err != nil {
		all = append(all, UnusableFile{f.PrivateKeyKey, err})
	}
	if len(all) > 0 {
		return all
	}
	if _, err := tls.X509KeyPair(text, key); err != nil {
		return []UnusableFile{{f.Key, fmt.Errorf("%s and %s are not a certificate and its key: %w", f.Path, f.PrivateKey, err)}}
	}
	return nil
}

// trusted reports whether the file holds authorities, rather than a certificate that
// Entrepot shows and the chain behind it.
func (f CertificateFile) trusted() bool {
	return f.Role != RoleListener && f.Role != RoleAdminListener && f.Role != RoleUpstreamClient
}

// Validity says how far the end of a certificate is.
type Validity int

const (
	// Valid certificates end in more than CertificateSoon.
	Valid Validity = iota
	// EndsSoon and EndsVerySoon are those that end within CertificateSoon, and within
	// CertificateVerySoon.
	EndsSoon
	EndsVerySoon
	// Ended certificates, and those that are not valid yet, verify nothing.
	Ended
)

// How long before its end a certificate is warned of.
const (
	CertificateSoon     = 30 * 24 * time.Hour
	CertificateVerySoon = 7 * 24 * time.Hour
)

// Expiry says when the certificates of a file end.
type Expiry struct {
	CertificateFile
	// Subject is that of the certificate that ends first, and NotAfter its end.
	// Certificates that have ended count only if the file is useless without them: the
	// certificate that Entrepot shows, and the last authority.
	Subject  string
	NotAfter time.Time
	Validity Validity
	// early is the begin of a certificate that is not valid yet.
	early time.Time
	now   time.Time
}

// maxCertificates bounds how much of a file is read. Bundles of all public authorities
// have about 250 KiB.
const maxCertificates = 4 << 20

// Expiry reads the file and says when its certificates end. Its error says that the file
// cannot be read, or holds no certificate.
func (f CertificateFile) Expiry(now time.Time) (Expiry, error) {
	file, err := os.Open(f.Path)
	if err != nil {
		return Expiry{}, fmt.Errorf("%s: %w", f.Key, err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxCertificates))
	if err != nil {
		return Expiry{}, fmt.Errorf("%s: %w", f.Key, err)
	}
	var list []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			list = append(list, c)
		}
	}
	if len(list) == 0 {
		return Expiry{}, fmt.Errorf("%s: %s holds no PEM certificate", f.Key, f.Path)
	}
	e := Expiry{CertificateFile: f, now: now}
	first := list[0]
	if f.trusted() {
		first = slices.MaxFunc(list, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
	}
	if first.NotAfter.After(now) {
		for _, c := range list {
			if c.NotAfter.After(now) && c.NotAfter.Before(first.NotAfter) {
				first = c
			}
		}
	}
	e.Subject, e.NotAfter = subject(first), first.NotAfter
	switch left := e.NotAfter.Sub(now); {
	case left <= 0:
		e.Validity = Ended
	case !f.trusted() && list[0].NotBefore.After(now):
		e.Validity, e.early = Ended, list[0].NotBefore
	case left <= CertificateVerySoon:
		e.Validity = EndsVerySoon
	case left <= CertificateSoon:
		e.Validity = EndsSoon
	}
	return e, nil
}

// subject returns a name for c: its common name, its first DNS name, or its number.
func subject(c *x509.Certificate) string {
	switch {
	case c.Subject.CommonName != "":
		return c.Subject.CommonName
	case len(c.DNSNames) > 0:
		return c.DNSNames[0]
	case len(c.Subject.ToRDNSequence()) > 0:
		return c.Subject.String()
	}
	return "serial number " + c.SerialNumber.String()
}

// String says when the certificate ends: "tls.cert: the certificate of cache.example.test
// in /tls.crt ends in 5 days, on 2026-12-06 10:00 UTC".
func (e Expiry) String() string {
	of := fmt.Sprintf("%s: the certificate of %s in %s", e.Key, e.Subject, e.Path)
	day := e.NotAfter.UTC().Format("2006-01-02 15:04 UTC")
	switch {
	case !e.early.IsZero():
		return fmt.Sprintf("%s is valid only from %s", of, e.early.UTC().Format("2006-01-02 15:04 UTC"))
	case e.Validity == Ended:
		return fmt.Sprintf("%s ended %s ago, on %s", of, days(e.now.Sub(e.NotAfter)), day)
	}
	return fmt.Sprintf("%s ends in %s, on %s", of, days(e.NotAfter.Sub(e.now)), day)
}

// days writes a duration in days, or in hours if it is shorter than two days.
func days(d time.Duration) string {
	switch {
	case d < 2*time.Hour:
		return fmt.Sprintf("%d minutes", max(0, int(d.Minutes())))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d hours", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}
