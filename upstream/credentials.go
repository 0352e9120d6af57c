package upstream

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
)

// Credential is what a registry is shown. The zero value is anonymous.
type Credential struct {
	// Username and Password go together.
	Username, Password string
	// IdentityToken is a refresh token for the registry's token server, and
	// goes before a password.
	IdentityToken string
}

func (c Credential) anonymous() bool { return c == Credential{} }

// fingerprint tells credentials apart without keeping them.
func (c Credential) fingerprint() account {
	return sha256.Sum256(fmt.Appendf(nil, "%q %q %q", c.Username, c.Password, c.IdentityToken))
}

// String keeps secrets out of whatever prints a Credential.
func (c Credential) String() string {
	if c.anonymous() {
		return "anonymous"
	}
	return "credential (hidden)"
}

// GoString is String, for %#v.
func (c Credential) GoString() string { return c.String() }

// Credentials gives what a host may be shown. It is asked before each request
// that needs it, from several goroutines, with the host (and port, where it is
// not the usual one) of an endpoint. The zero Credential stands for none; an
// error must hold no secret.
type Credentials interface {
	Credential(ctx context.Context, host string) (Credential, error)
}

// StaticCredentials gives c for every endpoint: all endpoints of an upstream
// that has them are shown them, when they ask. The only endpoint of an upstream is also
// shown them when it refuses a request without asking (see login.greet).
func StaticCredentials(c Credential) Credentials { return static(c) }

type static Credential

func (s static) Credential(context.Context, string) (Credential, error) { return Credential(s), nil }

// PasswordFile gives username with the password in the file at path, less the
// white space at its end. The file is read anew each time, so that it can be
// changed under a running proxy.
func PasswordFile(username, path string) Credentials { return &passwordFile{username, path} }

type passwordFile struct{ username, path string }

func (p *passwordFile) Credential(context.Context, string) (Credential, error) {
	const most = 64 << 10
	f, err := os.Open(p.path)
	if err != nil {
		return Credential{}, fmt.Errorf("read the password: %w", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return Credential{}, fmt.Errorf("read the password: %w", err)
	}
	if len(raw) > most {
		return Credential{}, fmt.Errorf("read the password: %s is no password file: it has more than %d bytes", p.path, most)
	}
	password := strings.TrimRight(string(raw), " \t\r\n")
	if password == "" {
		return Credential{}, fmt.Errorf("read the password: %s is empty", p.path)
	}
	return Credential{Username: p.username, Password: password}, nil
}

// DockerConfig gives what the Docker config.json at path holds for a host, by
// its auths, credHelpers and credsStore. An empty path stands for Docker's own
// place: $DOCKER_CONFIG/config.json, or ~/.docker/config.json. The file is read
// again when it has changed; what a credential helper says is kept for a minute.
func DockerConfig(path string) (Credentials, error) {
	if path == "" {
		dir := os.Getenv("DOCKER_CONFIG")
		if dir == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return nil, fmt.Errorf("find Docker's config.json: %w", err)
			}
			dir = filepath.Join(home, ".docker")
		}
		path = filepath.Join(dir, "config.json")
	}
	c := &dockerConfig{path: path}
	if _, err := c.store(); err != nil {
		return nil, err
	}
	return c, nil
}

type dockerConfig struct {
	path string

	mu      sync.Mutex
	read    os.FileInfo
	current *remembered
}

func (c *dockerConfig) Credential(ctx context.Context, host string) (Credential, error) {
	s, err := c.store()
	if err != nil {
		return Credential{}, err
	}
	return s.Credential(ctx, host)
}

// store gives the store of the file as it is now.
func (c *dockerConfig) store() (*remembered, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, err := os.Stat(c.path)
	if err != nil {
		return nil, fmt.Errorf("read Docker's configuration: %w", err)
	}
	if c.read != nil && os.SameFile(c.read, now) && c.read.ModTime().Equal(now.ModTime()) && c.read.Size() == now.Size() {
		return c.current, nil
	}
	s, err := credentials.NewStore(c.path, credentials.StoreOptions{})
	if err != nil {
		return nil, fmt.Errorf("read Docker's configuration: %w", err)
	}
	c.read, c.current = now, &remembered{store: s}
	return c.current, nil
}

// CredentialHelper gives what docker-credential-<name>, which must be in the
// path, says for a host. Its answers are kept for a minute.
func CredentialHelper(name string) Credentials {
	return &remembered{store: credentials.NewNativeStore(name)}
}

const (
	helperTimeout = 30 * time.Second
	// helperRest is how long the failure of a store is remembered.
	helperRest = 10 * time.Second
)

// remembered asks a store at most once a minute for each host, since behind it may be a
// program that is run; after a failure, once in helperRest.
type remembered struct {
	store  credentials.Store
	flight singleflight.Group

	mu   sync.Mutex
	held map[string]heldCredential
}

type heldCredential struct {
	Credential
	err   error
	until time.Time
}

func (m *remembered) Credential(ctx context.Context, host string) (Credential, error) {
	key := credentials.ServerAddressFromRegistry(host)
	m.mu.Lock()
	h, ok := m.held[key]
	m.mu.Unlock()
	if ok && time.Now().Before(h.until) {
		return h.Credential, h.err
	}
	// The flight serves all who wait, so it is not bound to one of them; the
	// helper's time is bounded instead.
	done := m.flight.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), helperTimeout)
		defer cancel()
		got, err := m.store.Get(ctx, key)
		h := heldCredential{until: time.Now().Add(time.Minute)}
		if err != nil {
			h.err, h.until = fmt.Errorf("ask for the credentials of %s: %w", host, err), time.Now().Add(helperRest)
		} else {
			h.Credential = fromStore(got)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.held == nil {
			m.held = map[string]heldCredential{}
		}
		m.held[key] = h
		return h.Credential, h.err
	})
	select {
	case <-ctx.Done():
		return Credential{}, context.Cause(ctx)
	case res := <-done:
		if res.Err != nil {
			return Credential{}, res.Err
		}
		c, ok := res.Val.(Credential)
		if !ok {
			return Credential{}, errors.New("ask for credentials: there is no answer")
		}
		return c, nil
	}
}

func fromStore(c auth.Credential) Credential {
	return Credential{Username: c.Username, Password: c.Password, IdentityToken: c.RefreshToken}
}
