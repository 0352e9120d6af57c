package access

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/singleflight"

	"github.com/entrepot-dev/entrepot/fair"
	"github.com/entrepot-dev/entrepot/oci"
)

// Network are ranges of addresses whose clients have a name without showing
// anything.
type Network struct {
	Name  string
	CIDRs []string
}

// Group is a name for several callers. Members are names with their source, "user:alice".
type Group struct {
	Name    string
	Members []string
}

// Policy says whether callers that are known by nothing may pull.
type Policy string

const (
	// Auto lets them where there is no way to be known, and nobody otherwise.
	Auto Policy = "auto"
	// AllowAnonymous lets them beside those that are known.
	AllowAnonymous Policy = "allow"
	// DenyAnonymous refuses them.
	DenyAnonymous Policy = "deny"
)

// Options say who callers are and what they may pull. The zero value lets
// everybody pull everything.
type Options struct {
	// Anonymous is Auto where it is empty.
	Anonymous Policy
	// Htpasswd is the path of a file of users; empty for none.
	Htpasswd string
	Tokens   []Token
	Networks []Network
	// TrustedProxies are ranges whose X-Forwarded-For is believed, and whose
	// X-Forwarded-Proto.
	TrustedProxies []string
	// Certificates tells that the listener verifies client certificates.
	Certificates bool
	// OIDC is an issuer of tokens; nil for none.
	OIDC   *OIDC
	Groups []Group
	Rules  []Rule
	// Realm is what clients are told to log in to; "Entrepot" where it is empty.
	Realm string
	// Login tells callers without credentials how to log in; empty is the sentence for
	// registry clients.
	Login string
	// Before is the guard whose place this one takes, or nil. Passwords that it has
	// verified are not verified again where the file still has the same line.
	Before *Guard
	// Refused counts a refusal, by reason: Reasons. Nil counts nothing.
	Refused func(reason string)
	// Log takes what goes wrong behind; nil drops it.
	Log *zap.Logger
}

// Reasons are the reasons of a refusal: no credentials where some are needed,
// wrong ones, a rule, an issuer that can not be asked, and more passwords than can
// be verified at a time.
var Reasons = []string{"anonymous", "credentials", "rule", "issuer", "busy"}

// Guard knows callers. Its methods are safe for concurrent use; Close ends it.
type Guard struct {
	anonymous bool
	challenge string // empty where there is nothing to log in with
	login     string
	htpasswd  *htpasswd
	tokens    []token
	issuer    *issuer
	networks  []network
	proxies   []netip.Prefix
	groups    map[string][]string
	rules     []rule
	refused   func(string)
	log       *zap.Logger

	verdicts *verdicts
	flight   singleflight.Group
	// slots bounds the passwords that are verified at a time, because each takes a core.
	// Addresses, and users at one address, have their turns one after the other.
	slots *fair.Queue

	ctx   context.Context
	close context.CancelFunc
	tasks sync.WaitGroup
}

const (
	// fileInterval is how often files are looked at.
	fileInterval = 2 * time.Second
	// slotTimeout is how long a password waits for its turn, and maxWaiting is how many
	// wait.
	slotTimeout = 30 * time.Second
	maxWaiting  = 4096
	// retryBusy is when a client that did not get its turn may try again.
	retryBusy = 5 * time.Second
	// maxCredential is the longest Authorization that is looked at, in bytes.
	maxCredential = 12 << 10
)

// New makes a guard. It reads the files that are named and asks no network.
func New(o Options) (*Guard, error) {
	g := &Guard{
		refused: o.Refused, log: o.Log, groups: map[string][]string{}, verdicts: newVerdicts(),
		slots: fair.New(max(1, runtime.GOMAXPROCS(0)/2), maxWaiting),
	}
	if g.refused == nil {
		g.refused = func(string) {}
	}
	if g.log == nil {
		g.log = zap.NewNop()
	}
	for _, group := range o.Groups {
		for _, member := range group.Members {
			if !isTyped(member) {
				return nil, fmt.Errorf("group %s: member %q has no source in front; write user:%[2]s or the like", group.Name, member)
			}
			if name := configuredGroup + group.Name; !slices.Contains(g.groups[member], name) {
				g.groups[member] = append(g.groups[member], name)
			}
		}
	}
	var err error
	if g.proxies, err = parsePrefixes(o.TrustedProxies); err != nil {
		return nil, fmt.Errorf("trusted proxies: %w", err)
	}
	for _, n := range o.Networks {
		prefixes, err := parsePrefixes(n.CIDRs)
		if err != nil {
			return nil, fmt.Errorf("network %s: %w", n.Name, err)
		}
		caller := g.caller(FromNetwork, n.Name)
		for _, p := range prefixes {
			g.networks = append(g.networks, network{p, caller})
		}
	}
	for _, t := range o.Tokens {
		read, err := g.newToken(t)
		if err != nil {
			return nil, err
		}
		g.tokens = append(g.tokens, read)
	}
	for i, r := range o.Rules {
		if r.Name == "" {
			r.Name = "access[" + strconv.Itoa(i) + "]"
		}
		read, err := newRule(r)
		if err != nil {
			return nil, err
		}
		g.rules = append(g.rules, read)
	}
	if o.Htpasswd != "" {
		if g.htpasswd, err = openHtpasswd(o.Htpasswd); err != nil {
			return nil, err
		}
	}
	if o.OIDC != nil {
		if g.issuer, err = newIssuer(*o.OIDC, g.log); err != nil {
			return nil, err
		}
	}
	if g.login = o.Login; g.login == "" {
		g.login = "this cache wants to know who asks: log in to it, as with docker login"
	}
	realm := o.Realm
	if realm == "" {
		realm = "Entrepot"
	}
	if g.takesCredentials() {
		g.challenge = "Basic realm=" + strconv.Quote(realm)
	}
	known := g.takesCredentials() || len(g.networks) > 0 || o.Certificates
	g.anonymous = o.Anonymous == AllowAnonymous || o.Anonymous != DenyAnonymous && !known
	g.inherit(o.Before)
	g.ctx, g.close = context.WithCancel(context.Background())
	if g.htpasswd != nil {
		g.tasks.Go(g.watch)
	}
	return g, nil
}

func (g *Guard) takesCredentials() bool {
	return g.htpasswd != nil || len(g.tokens) > 0 || g.issuer != nil
}

// Anonymous tells whether callers that are known by nothing may pull.
func (g *Guard) Anonymous() bool { return g.anonymous }

// Close ends what the guard does behind, and waits for it.
func (g *Guard) Close() {
	g.close()
	g.tasks.Wait()
}

// watch reads the htpasswd file again when it changes. It ends with Close.
func (g *Guard) watch() {
	tick := time.NewTicker(fileInterval)
	defer tick.Stop()
	for {
		select {
		case <-g.ctx.Done():
			return
		case <-tick.C:
		}
		switch changed, err := g.htpasswd.refresh(); {
		case err != nil:
			g.log.Warn("the users are those that were read before", zap.Error(err))
		case changed:
			g.log.Info("read the users again", zap.Int("users", len(g.htpasswd.now.Load().of)))
		}
	}
}

// Identify gives who asks and from where. An error is an *oci.Error: UNAUTHORIZED
// with a challenge, or DENIED where there is nothing to log in with. Credentials
// that nobody here knows are ignored where the caller may pull without them: a
// Docker daemon sends those of Docker Hub. A caller whose verdict is known costs
// no allocation.
func (g *Guard) Identify(q Question) (*Caller, netip.Addr, error) {
	at := g.client(&q)
	if g.takesCredentials() && len(q.Authorization) > 0 {
		c, err := g.judged(&q, at)
		if c != nil {
			return c, at, nil
		}
		if c := g.shown(&q, at); c != nil {
			return c, at, nil
		}
		if err == nil {
			g.refused("credentials")
			err = &oci.Error{Code: oci.CodeUnauthorized, Message: "these credentials are not known here, or the password is wrong", Challenge: g.challenge}
		}
		return nobody, at, err
	}
	if c := g.shown(&q, at); c != nil {
		return c, at, nil
	}
	g.refused("anonymous")
	if g.challenge == "" {
		return nobody, at, &oci.Error{Code: oci.CodeDenied,
			Message: "this cache serves callers that it knows by their network (auth.networks) or by a client certificate (tls.client_ca), and you are neither"}
	}
	return nobody, at, &oci.Error{Code: oci.CodeUnauthorized, Challenge: g.challenge,
		Message: g.login}
}

// shown gives who the caller is without credentials: by certificate, by network,
// or anonymous; nil where that is not enough.
func (g *Guard) shown(q *Question, at netip.Addr) *Caller {
	if q.Certificate != nil {
		now := time.Now()
		if now.Before(q.Certificate.NotAfter) { // the connection may be old
			if c := g.holder(q.Certificate, q.Recent, now); c != nil {
				return c
			}
		}
	}
	if c := g.networkOf(at); c != nil {
		return c
	}
	if g.anonymous {
		return nobody
	}
	return nil
}

// holder gives who a certificate stands for; nil where it names nobody.
func (g *Guard) holder(certificate *x509.Certificate, recent *Recent, now time.Time) *Caller {
	if c := recent.holder(g, certificate, now); c != nil {
		return c
	}
	key := g.verdicts.keyOf('c', certificate.Raw)
	v, known := g.verdicts.get(key, now)
	if !known {
		v = verdict{until: now.Add(goodFor)}
		if name, groups := certified(certificate); name != "" {
			v.caller = g.caller(FromCertificate, name, groups...)
		}
		g.verdicts.put(key, v, now)
	}
	recent.noteHolder(g, certificate, v)
	return v.caller
}

// errBusy is for who could not be verified in time.
var errBusy = &oci.Error{Code: oci.CodeUnavailable, RetryAfter: retryBusy,
	Message: "too many passwords wait to be verified; try again"}

// judged returns whom the Authorization header of a question from an address stands
// for; nil for nobody, with an error if that could not be found out.
func (g *Guard) judged(q *Question, from netip.Addr) (*Caller, error) {
	header, recent := q.Authorization, q.Recent
	if len(header) > maxCredential {
		return nil, nil
	}
	now := time.Now()
	if c := recent.shown(g, header, now); c != nil {
		return c, nil
	}
	key := g.verdicts.keyOf('a', header)
	if v, known := g.verdicts.get(key, now); known && g.holds(&v) {
		recent.note(g, header, v)
		return v.caller, nil
	}
	header = append([]byte(nil), header...) // others may wait longer than its owner
	t := turn{from: from, again: recent.hasFailed(g), optional: g.shown(q, from) != nil}
	found, err, _ := g.flight.Do(string(key[:]), func() (any, error) {
		v, err := g.judge(header, t)
		if err != nil {
			return (*Caller)(nil), err
		}
		if now := time.Now(); now.Before(v.until) {
			g.verdicts.put(key, v, now)
		}
		return v.caller, nil
	})
	if err != nil {
		reason := "issuer"
		if errors.Is(err, errBusy) {
			reason = "busy"
		}
		g.refused(reason)
	}
	c := found.(*Caller)
	recent.noteFailure(g, c == nil && err == nil)
	return c, err
}

// holds reports whether a verdict is still right: what it says of a password is, for as
// long as the file has the same line for the user.
func (g *Guard) holds(v *verdict) bool {
	if !v.password {
		return true
	}
	now := g.htpasswd.now.Load()
	return v.edition == now.edition || string(now.of[v.user]) == v.line
}

// inherit takes over the passwords that the guard before this one has verified, so that
// a change of the configuration does not make everybody log in at once.
func (g *Guard) inherit(before *Guard) {
	if g.htpasswd == nil || before == nil || before.htpasswd == nil {
		return
	}
	g.verdicts.key = before.verdicts.key
	now := time.Now()
	file := g.htpasswd.now.Load()
	for k, v := range before.verdicts.passwords(now) {
		if string(file.of[v.user]) != v.line {
			continue
		}
		v.caller, v.edition = g.proven(FromHtpasswd, v.user), file.edition
		g.verdicts.put(k, v, now)
	}
}

// turn says when a password's turn to be verified comes.
type turn struct {
	from netip.Addr
	// again says that the last password on the connection was wrong: others at the same
	// address come first.
	again bool
	// optional says that the caller is let in without a password, too.
	optional bool
}

// judge verifies a header.
func (g *Guard) judge(header []byte, t turn) (verdict, error) {
	now := time.Now()
	wrong := verdict{until: now.Add(badFor)}
	cred, ok := parseCredential(header)
	if !ok {
		return wrong, nil
	}
	if c := g.tokenOf(cred.secret); c != nil {
		return verdict{caller: c, until: now.Add(goodFor)}, nil
	}
	if g.issuer != nil && cred.isJWT() {
		c, until, err := g.issuer.verify(g, cred.secret)
		v := verdict{caller: c, until: now.Add(badFor)}
		if c != nil {
			v.until = now.Add(goodFor)
		}
		if !until.IsZero() && until.Before(v.until) {
			v.until = until
		}
		return v, err
	}
	if g.htpasswd == nil || cred.bearer {
		return wrong, nil
	}
	return g.judgePassword(cred, t)
}

// judgePassword waits for its turn and verifies a password. While others wait, the
// password of a user who is not in the file doesn't, if the caller needs none: a Docker
// daemon sends its mirror the password for Docker Hub.
func (g *Guard) judgePassword(cred credential, t turn) (verdict, error) {
	// Names that are not in the file have one turn together: there are any number.
	name := "unknown"
	if _, known := g.htpasswd.now.Load().of[cred.user]; known {
		name = "user " + cred.user
	} else if t.optional && g.slots.Waiting() > 0 {
		return verdict{}, nil
	}
	if t.again {
		name = "again " + name
	}
	ctx, cancel := context.WithTimeout(g.ctx, slotTimeout)
	defer cancel()
	release, err := g.slots.Take(ctx, t.from, name)
	if err != nil {
		return verdict{}, errBusy
	}
	defer release()
	file := g.htpasswd.now.Load()
	v := verdict{password: true, user: cred.user, line: string(file.of[cred.user]), edition: file.edition}
	right := file.verify(cred.user, cred.secret)
	if now := time.Now(); right {
		v.caller, v.until = g.proven(FromHtpasswd, cred.user), now.Add(passwordGoodFor)
	} else {
		v.until = now.Add(badFor)
	}
	return v, nil
}
