package access

import (
	"crypto/rand"
	"crypto/sha256"
	"sync"
	"time"
)

const (
	// maxVerdicts bounds how many are remembered.
	maxVerdicts = 4096
	// goodFor is for how long a credential is believed without being verified
	// again, at most, and badFor is for how long it is known to be wrong.
	goodFor = 10 * time.Minute
	badFor  = time.Minute
	// passwordGoodFor is the same for a password, which is right for as long as the
	// file has the same line for the user.
	passwordGoodFor = 24 * time.Hour
)

// credentialKey stands for a credential. It is keyed by what only this process
// knows, so that a memory dump is no table to look passwords up in.
type credentialKey [sha256.Size]byte

// verdict is what became of a credential: a caller, or nil where it is wrong.
type verdict struct {
	caller *Caller
	until  time.Time
	// password is set if it was judged by the htpasswd file: by what line, empty for
	// none, of which user, in which edition.
	password   bool
	user, line string
	edition    uint64
}

// verdicts remembers what credentials stand for. Reading allocates nothing.
type verdicts struct {
	key [32]byte

	mu sync.RWMutex
	of map[credentialKey]verdict
}

func newVerdicts() *verdicts {
	v := &verdicts{of: make(map[credentialKey]verdict)}
	_, _ = rand.Read(v.key[:]) // never fails (crypto/rand)
	return v
}

// keyOf gives the key of a credential of one kind.
func (v *verdicts) keyOf(kind byte, credential []byte) credentialKey {
	inner := sha256.Sum256(credential)
	var outer [len(v.key) + 1 + len(inner)]byte
	copy(outer[:], v.key[:])
	outer[len(v.key)] = kind
	copy(outer[len(v.key)+1:], inner[:])
	return sha256.Sum256(outer[:])
}

// get returns what is known of a credential and has not expired. Whether a password's
// line is still the same is the caller's to ask (Guard.holds).
func (v *verdicts) get(k credentialKey, now time.Time) (verdict, bool) {
	v.mu.RLock()
	known, ok := v.of[k]
	v.mu.RUnlock()
	if !ok || !now.Before(known.until) {
		return verdict{}, false
	}
	return known, true
}

// passwords returns the passwords that are known to be right.
func (v *verdicts) passwords(now time.Time) map[credentialKey]verdict {
	right := map[credentialKey]verdict{}
	v.mu.RLock()
	defer v.mu.RUnlock()
	for k, known := range v.of {
		if known.password && known.caller != nil && now.Before(known.until) {
			right[k] = known
		}
	}
	return right
}

// put keeps what is known of a credential.
func (v *verdicts) put(k credentialKey, known verdict, now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, there := v.of[k]; !there && len(v.of) >= maxVerdicts {
		v.makeRoom(now)
	}
	v.of[k] = known
}

// makeRoom forgets what holds no more, then what is wrong, and then any, until an
// eighth is free: wrong guesses must not push out those that are right.
func (v *verdicts) makeRoom(now time.Time) {
	const most = maxVerdicts - maxVerdicts/8
	for _, goes := range []func(verdict) bool{
		func(d verdict) bool { return !now.Before(d.until) },
		func(d verdict) bool { return d.caller == nil },
		func(verdict) bool { return true },
	} {
		for k, d := range v.of {
			if len(v.of) <= most {
				return
			}
			if goes(d) {
				delete(v.of, k)
			}
		}
	}
}
