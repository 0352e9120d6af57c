package configs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestExpiryOfAFile has files with several certificates, each given by its end in days from now.
func TestExpiryOfAFile(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		name, role string
		ends       []int
		want       Validity
		says       string
	}{
		{"far", RoleListener, []int{31, 400}, Valid, "number 0 in FILE ends in 30 days"},
		{"soon", RoleListener, []int{29}, EndsSoon, "ends in 28 days"},
		{"very soon", RoleListener, []int{7}, EndsVerySoon, "ends in 6 days"},
		{"ended", RoleListener, []int{-3, 400}, Ended, "number 0 in FILE ended 3 days ago"},
		{"an intermediate soon", RoleListener, []int{80, 6, 400}, EndsVerySoon, "number 1 in FILE ends in 5 days"},
		{"an old root behind", RoleUpstreamClient, []int{80, -50}, Valid, "number 0 in FILE ends in 79 days"},
		{"one authority of two ended", RoleClientCA, []int{-5, 80}, Valid, "number 1 in FILE ends in 79 days"},
		{"one authority of two soon", RoleUpstreamCA, []int{500, 20}, EndsSoon, "number 1 in FILE ends in 19 days"},
		{"all authorities ended", RoleUpstreamCA, []int{-9, -2}, Ended, "number 1 in FILE ended 2 days ago"},
	} {
		file := filepath.Join(t.TempDir(), "c.pem")
		var text bytes.Buffer
		for i, days := range c.ends {
			text.WriteString("some words before\n")
			text.Write(certificate(t, i, now.Add(-1000*24*time.Hour), now.Add(time.Duration(days)*24*time.Hour-time.Minute)))
		}
		if err := os.WriteFile(file, text.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		e, err := CertificateFile{Key: "k", Role: c.role, Path: file}.Expiry(now)
		if err != nil || e.Validity != c.want || !strings.Contains(e.String(), strings.ReplaceAll(c.says, "FILE", file)) {
			t.Errorf("%s: want %v, %q; got %v, %q, %v", c.name, c.want, c.says, e.Validity, e, err)
		}
	}
}

func TestExpiryOfWhatIsNoCertificateYet(t *testing.T) {
	now := time.Now()
	file := filepath.Join(t.TempDir(), "c.pem")
	f := CertificateFile{Key: "tls.cert", Role: RoleListener, Path: file}
	if _, err := f.Expiry(now); err == nil || !strings.HasPrefix(err.Error(), "tls.cert: ") {
		t.Errorf("a missing file: %v", err)
	}
	if err := os.WriteFile(file, []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Expiry(now); err == nil || !strings.Contains(err.Error(), "holds no PEM certificate") {
		t.Errorf("nonsense: %v", err)
	}
	if err := os.WriteFile(file, certificate(t, 1, now.Add(time.Hour), now.Add(900*time.Hour)), 0o600); err != nil {
		t.Fatal(err)
	}
	if e, err := f.Expiry(now); err != nil || e.Validity != Ended || !strings.Contains(e.String(), "is valid only from ") {
		t.Errorf("one of tomorrow: %v, %v", e, err)
	}
}

func TestCertificateFilesOfASetting(t *testing.T) {
	c := Default()
	if got := c.CertificateFiles(); len(got) != 0 {
		t.Errorf("the defaults name no certificates, got %v", got)
	}
	c.TLS, c.Admin.TLS = ServerTLS{Cert: "a", ClientCA: "b"}, ServerTLS{Cert: "c", ClientCA: "d"}
	c.Auth.OIDC.CA = "e"
	c.Upstreams["quay.io"].TLS = UpstreamTLS{CA: "g", Cert: "f"}
	got := ""
	for _, f := range c.CertificateFiles() {
		got += f.Path + " " + f.Role + " " + f.Key + "\n"
	}
	want := "a listener tls.cert\nb client_ca tls.client_ca\nc admin_listener admin.tls.cert\nd admin_client_ca admin.tls.client_ca\ne oidc_ca auth.oidc.ca\n" +
		"f upstream_client upstreams.quay.io.tls.cert\ng upstream_ca upstreams.quay.io.tls.ca\n"
	if got != want {
		t.Errorf("want\n%sgot\n%s", want, got)
	}
}

// certificate returns a self-signed certificate in PEM.
func certificate(t *testing.T, number int, begin, end time.Time) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "number " + string(rune('0'+number))}, NotBefore: begin, NotAfter: end}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
