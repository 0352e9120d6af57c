package access

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"

	"golang.org/x/crypto/bcrypt"
)

const (
	// maxHtpasswd bounds the file.
	maxHtpasswd = 4 << 20
	// maxCost bounds how long one password may take: 14 is about a second.
	maxCost = 14
)

// htpasswd is a file of users and their bcrypt hashes, read again when it changes.
type htpasswd struct {
	file watched
	now  atomic.Pointer[passwords]
}

// passwords are what the file held when it was read.
type passwords struct {
	edition uint64
	of      map[string][]byte
	// decoy is compared where there is no such user, so that the time that it
	// takes does not tell which there are.
	decoy []byte
}

func openHtpasswd(path string) (*htpasswd, error) {
	h := &htpasswd{file: watched{paths: []string{path}}}
	_, err := h.refresh()
	return h, err
}

// refresh reads the file where it has changed, and tells whether it has. Where it
// can not be read what was read before holds.
func (h *htpasswd) refresh() (bool, error) {
	if !h.file.changed() {
		return false, nil
	}
	path := h.file.paths[0]
	of, err := readHtpasswd(path)
	if err != nil {
		return false, fmt.Errorf("htpasswd file %s: %w", path, err)
	}
	p := &passwords{edition: 1, of: of, decoy: decoyHash}
	if before := h.now.Load(); before != nil {
		p.edition = before.edition + 1
	}
	for _, hash := range of {
		p.decoy = hash
		break
	}
	h.now.Store(p)
	return true, nil
}

// decoyHash is one of a password that nobody knows, for a file without users.
var decoyHash = []byte("$2a$10$j/ebQvLajXpmUdFI9nMC3OjsdwL8pQFApAqSaHZ.vdHN986CcmyNK")

func readHtpasswd(path string) (map[string][]byte, error) {
	f, err := os.Open(path) // #nosec G304 -- the operator names the file
	if err != nil {
		return nil, err
	}
	defer f.Close()
	of := map[string][]byte{}
	lines := bufio.NewScanner(io.LimitReader(f, maxHtpasswd))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		user, hash, ok := strings.Cut(line, ":")
		if !ok || user == "" {
			return nil, fmt.Errorf("line %d is no user:hash", n)
		}
		cost, err := bcrypt.Cost([]byte(hash))
		switch {
		case err != nil:
			return nil, fmt.Errorf("line %d: the password of %q is not hashed by bcrypt; write it with htpasswd -B", n, user)
		case cost > maxCost:
			return nil, fmt.Errorf("line %d: the password of %q has bcrypt cost %d; at most %d is taken", n, user, cost, maxCost)
		}
		of[user] = []byte(hash)
	}
	return of, lines.Err()
}

// verify tells whether the password is the user's. It takes as long as bcrypt
// does, also for a user that there is not.
func (p *passwords) verify(user string, password []byte) bool {
	if bytes.IndexByte(password, 0) >= 0 {
		return false
	}
	hash, ok := p.of[user]
	if !ok {
		hash = p.decoy
	}
	// bcrypt takes 72 bytes, and would not look at what follows.
	return len(password) <= 72 && bcrypt.CompareHashAndPassword(hash, password) == nil && ok
}
