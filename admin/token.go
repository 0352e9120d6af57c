package admin

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unicode"
)

// TokenFile is the name of the token file in a cache directory.
const TokenFile = "admin.token"

// TokenHeader is the header of a 401 in which the listener tells programs on its own
// machine the path of its token file.
const TokenHeader = "Entrepot-Token-File" // #nosec G101 -- a header name, no credential

// The lines of a token file. Both are headers, so that `curl -H @file` sends them
// without showing the token in the list of processes.
const (
	authorizationLine = "Authorization: Bearer "
	listenerLine      = "Entrepot-Listener: "
)

// maxTokenFile bounds what is read of a token file, in bytes.
const maxTokenFile = 1 << 10

// Token proves to an admin listener that a program may use it: only the user that
// Entrepot runs as, and root, can read the file that holds it. Each start of Entrepot
// makes a new one, so that a token is worthless once its process has ended.
type Token struct {
	// Secret is what is sent as a bearer token, or as a password.
	Secret string
	// Listener is the address of the listener that the token is for.
	Listener string
}

// NewToken makes a token for the listener at an address.
func NewToken(listener string) Token {
	var b [32]byte
	_, _ = rand.Read(b[:]) // it never fails
	return Token{Secret: base64.RawURLEncoding.EncodeToString(b[:]), Listener: listener}
}

// TokenPlaces lists where the token file of a listener may be written, the best place
// first: the cache directory, then directories for files of running programs. Those
// are shared by all proxies of a user, so the name there has the listener's port.
func TokenPlaces(cacheDir, listener string, getenv func(string) string) []string {
	name := "admin.token"
	if _, port, err := net.SplitHostPort(listener); err == nil {
		name = "admin-" + port + ".token"
	}
	places := []string{filepath.Join(cacheDir, TokenFile)}
	for _, dir := range filepath.SplitList(getenv("RUNTIME_DIRECTORY")) { // systemd's RuntimeDirectory=
		places = append(places, filepath.Join(dir, name))
	}
	if dir := getenv("XDG_RUNTIME_DIR"); dir != "" {
		places = append(places, filepath.Join(dir, "entrepot", name))
	}
	return append(places,
		filepath.Join("/run/entrepot", name),
		filepath.Join(os.TempDir(), "entrepot-"+strconv.Itoa(os.Geteuid()), name))
}

// Write writes the token to the first of places that keeps it private, and returns
// that path, which is absolute. It replaces a file or symbolic link there. The errors
// of all places are joined if there is none.
func (t Token) Write(places []string) (path string, err error) {
	var errs []error
	for i, place := range places {
		if !filepath.IsAbs(place) {
			errs = append(errs, fmt.Errorf("%s: not an absolute path", place))
			continue
		}
		err := t.write(place, i > 0)
		if err == nil {
			return place, nil
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}

// Remove removes the file at path if it still holds this token: a process that ends leaves none
// behind, and takes none from another that has started.
func (t Token) Remove(path string) {
	if found, err := ReadToken(path); err == nil && found == t {
		_ = os.Remove(path) // a token without its process is worthless
	}
}

// write writes the token to path. The directory is made if private is set, and must
// then belong to this user alone.
func (t Token) write(path string, private bool) (err error) {
	dir := filepath.Dir(path)
	if private {
		if err := privateDir(dir); err != nil {
			return err
		}
	}
	draft := path + ".new"
	if err := os.Remove(draft); err != nil && !errors.Is(err, fs.ErrNotExist) { // of a start that was killed
		return err
	}
	// O_EXCL follows no symbolic link, and the file is private from its beginning.
	f, err := os.OpenFile(draft, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) // #nosec G304 -- the path is ours
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(draft) // err says what failed
		}
	}()
	_, err = io.WriteString(f, authorizationLine+t.Secret+"\n"+listenerLine+t.Listener+"\n")
	if err == nil {
		// Some file systems have no modes or owners of their own.
		err = isPrivate(f)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(draft, path)
}

// privateDir makes a directory for this user alone, or checks one that exists.
func privateDir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !info.IsDir() || !ok || int(st.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s: not a directory that only this user can write to", dir)
	}
	return nil
}

// isPrivate checks that f is a regular file that only its owner can read, and that
// the owner is root or the user of this process. Root trusts every owner: what it
// runs for others belongs to them.
func isPrivate(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.Mode().IsRegular() || !ok:
		return fmt.Errorf("%s: not a regular file", f.Name())
	case info.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("%s: other users can read or write it (mode %04o)", f.Name(), info.Mode().Perm())
	case os.Geteuid() != 0 && st.Uid != 0 && int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%s: belongs to another user (uid %d)", f.Name(), st.Uid)
	}
	return nil
}

// ReadToken reads the token file at path, which a listener has named. It opens
// nothing but a token file: a symbolic link, a pipe, or a file that others can read
// is an error. So is a file that the user cannot read: fs.ErrPermission.
func ReadToken(path string) (Token, error) {
	base := filepath.Base(path)
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || strings.ContainsFunc(path, unicode.IsControl) || !strings.HasPrefix(base, "admin") || !strings.HasSuffix(base, ".token") {
		return Token{}, fmt.Errorf("%q is not the path of a token file", path)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0) // #nosec G304 -- checked above
	if err != nil {
		return Token{}, err
	}
	defer f.Close()
	if err := isPrivate(f); err != nil {
		return Token{}, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxTokenFile))
	if err != nil {
		return Token{}, err
	}
	first, second, _ := bytes.Cut(bytes.TrimSuffix(b, []byte("\n")), []byte("\n"))
	secret, is := bytes.CutPrefix(first, []byte(authorizationLine))
	listener, also := bytes.CutPrefix(second, []byte(listenerLine))
	if decoded, err := base64.RawURLEncoding.DecodeString(string(secret)); !is || !also || err != nil || len(decoded) != 32 {
		return Token{}, fmt.Errorf("%s: not a token file", path)
	}
	return Token{Secret: string(secret), Listener: string(listener)}, nil
}

// naming adds the path of the token file to what guard refuses, if the request comes
// from this machine. guarded is what guard lets through.
func naming(path string, guard func(http.Handler) http.Handler, guarded http.Handler) http.Handler {
	inner := guard(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Del(TokenHeader)
		guarded.ServeHTTP(w, r)
	}))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if path != "" && isSelf(r) {
			w.Header().Set(TokenHeader, path)
		}
		inner.ServeHTTP(w, r)
	})
}

// isSelf tells whether a request comes from an address of this machine.
func isSelf(r *http.Request) bool {
	peer, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return false
	}
	if ip := net.ParseIP(peer); ip != nil && ip.IsLoopback() {
		return true
	}
	local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		return false
	}
	host, _, err := net.SplitHostPort(local.String())
	return err == nil && host == peer
}
