package access

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	a := &authority{}
	_, a.pem, a.cert, a.key = a.issue(t, name)
	return a
}

// issue makes a certificate, by itself where a has none yet.
func (a *authority) issue(t testing.TB, name string) (key, cert []byte, parsed *x509.Certificate, private *ecdsa.PrivateKey) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		// synctest begins in 2000.
		NotBefore: time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2090, 1, 1, 0, 0, 0, 0, time.UTC),
		BasicConstraintsValid: true, IsCA: a.cert == nil,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		template.ExtKeyUsage, template.KeyUsage = nil, x509.KeyUsageCertSign
		parent, signer = template, private
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &private.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	if parsed, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), parsed, private
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// shake does a handshake over a pipe and gives both sides' errors and states.
func shake(server, client *tls.Config) (seen, shown *x509.Certificate, err error) {
	a, b := net.Pipe()
	return shakeOver(a, b, server, client)
}

// loopback gives both ends of a connection with room for what nobody reads yet.
func loopback(t testing.TB) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if b, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if a, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func shakeOver(a, b net.Conn, server, client *tls.Config) (seen, shown *x509.Certificate, err error) {
	defer a.Close()
	defer b.Close()
	s, c := tls.Server(a, server), tls.Client(b, client)
	done := make(chan error, 1)
	go func() {
		err := s.Handshake()
		if err != nil {
			_ = a.Close()
		}
		done <- err
	}()
	if err = c.Handshake(); err != nil {
		_ = b.Close()
	} else {
		// What the server sends after it: tickets, or that it has refused. It ends
		// with the pipe.
		go func() { _, _ = io.Copy(io.Discard, c) }()
	}
	if serr := <-done; err == nil {
		err = serr
	}
	if err != nil {
		return nil, nil, err
	}
	if chains := s.ConnectionState().VerifiedChains; len(chains) > 0 {
		seen = chains[0][0]
	}
	return seen, c.ConnectionState().PeerCertificates[0], nil
}

func TestCertificateFollowsItsFiles(t *testing.T) {
	ca := newAuthority(t, "ca")
	dir := t.TempDir()
	f := TLSFiles{Cert: filepath.Join(dir, "crt"), Key: filepath.Join(dir, "key")}
	put := func(cert, key []byte) {
		t.Helper()
		// Renamed into place, as certbot and Kubernetes do it.
		writeFile(t, f.Cert+".new", string(cert))
		writeFile(t, f.Key+".new", string(key))
		for _, p := range []string{f.Cert, f.Key} {
			if err := os.Rename(p+".new", p); err != nil {
				t.Fatal(err)
			}
		}
	}
	key1, cert1, first, _ := ca.issue(t, "cache")
	key2, cert2, second, _ := ca.issue(t, "cache")
	put(cert1, key1)
	synctest.Test(t, func(t *testing.T) {
		server, err := TLS(f, nil)
		if err != nil {
			t.Fatal(err)
		}
		client := &tls.Config{RootCAs: ca.pool(), ServerName: "cache"}
		expect := func(what string, want *x509.Certificate) {
			t.Helper()
			if _, got, err := shake(server, client); err != nil || !got.Equal(want) {
				t.Errorf("%s: want serial %s, got %v, %v", what, want.SerialNumber, got, err)
			}
		}
		expect("at the start", first)
		put(cert2, key1)
		time.Sleep(fileInterval)
		expect("with a key of another certificate", first)
		put(cert2, key2)
		time.Sleep(fileInterval)
		expect("after the change", second)
		if err := os.Remove(f.Key); err != nil {
			t.Fatal(err)
		}
		time.Sleep(fileInterval)
		expect("without a file", second)
	})
}

func TestListenerTakesTLS12AndLater(t *testing.T) {
	ca := newAuthority(t, "ca")
	key, cert, _, _ := ca.issue(t, "cache")
	server, err := TLS(TLSFiles{Cert: writeFile(t, "", string(cert)), Key: writeFile(t, "", string(key))}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for version, ok := range map[uint16]bool{tls.VersionTLS10: false, tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		_, _, err := shake(server, &tls.Config{RootCAs: ca.pool(), ServerName: "cache", MinVersion: version, MaxVersion: version})
		if (err == nil) != ok {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
	}
}

func TestClientMayShowACertificateOfTheConfiguredRoots(t *testing.T) {
	ca, clients, strangers := newAuthority(t, "ca"), newAuthority(t, "clients"), newAuthority(t, "strangers")
	key, cert, _, _ := ca.issue(t, "cache")
	server, err := TLS(TLSFiles{Cert: writeFile(t, "", string(cert)), Key: writeFile(t, "", string(key)), ClientCA: writeFile(t, "", string(clients.pem))}, nil)
	if err != nil {
		t.Fatal(err)
	}
	pair := func(a *authority) []tls.Certificate {
		key, cert, _, _ := a.issue(t, "node-1")
		p, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		return []tls.Certificate{p}
	}
	if seen, _, err := shake(server, &tls.Config{RootCAs: ca.pool(), ServerName: "cache", Certificates: pair(clients)}); err != nil || seen == nil || seen.Subject.CommonName != "node-1" {
		t.Errorf("want node-1 seen, got %v, %v", seen, err)
	}
	if seen, _, err := shake(server, &tls.Config{RootCAs: ca.pool(), ServerName: "cache"}); err != nil || seen != nil {
		t.Errorf("want nobody seen, got %v, %v", seen, err)
	}
	// A client that is sure of its certificate, whoever is asked for.
	stranger := pair(strangers)
	a, b := loopback(t)
	if seen, _, err := shakeOver(a, b, server, &tls.Config{RootCAs: ca.pool(), ServerName: "cache", MaxVersion: tls.VersionTLS12,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &stranger[0], nil }}); err == nil {
		t.Errorf("a stranger's certificate is taken: %v", seen)
	}
}

func TestFilesThatCanNotBeUsedAreRefusedAtTheStart(t *testing.T) {
	ca := newAuthority(t, "ca")
	key, cert, _, _ := ca.issue(t, "cache")
	good := TLSFiles{Cert: writeFile(t, "", string(cert)), Key: writeFile(t, "", string(key))}
	for name, f := range map[string]TLSFiles{
		"no certificate": {Cert: good.Cert + "-", Key: good.Key},
		"no roots":       {Cert: good.Cert, Key: good.Key, ClientCA: good.Key + "-"},
		"roots of none":  {Cert: good.Cert, Key: good.Key, ClientCA: good.Key},
	} {
		if _, err := TLS(f, nil); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
}
