package configs

// Auth is how clients are known. What is set counts beside the rest.
type Auth struct {
	// Anonymous is "auto", "allow" or "deny": whether clients may pull that are
	// known by nothing. Auto lets them where no way to be known is set.
	Anonymous string `yaml:"anonymous"`
	// Htpasswd is a file of users and their bcrypt hashes, read again when it
	// changes.
	Htpasswd string `yaml:"htpasswd,omitempty"`
	// Tokens are secrets that stand for a name, known by their hash.
	Tokens []Token `yaml:"tokens,omitempty"`
	// Networks are addresses that stand for a name.
	Networks []Network `yaml:"networks,omitempty"`
	// TrustedProxies are addresses whose X-Forwarded-For and X-Forwarded-Proto are
	// believed.
	TrustedProxies []string `yaml:"trusted_proxies,omitempty"`
	// OIDC is an issuer of signed tokens.
	OIDC OIDC `yaml:"oidc,omitempty"`
	// Groups are names for several clients.
	Groups []Group `yaml:"groups,omitempty"`
}

// Token is a secret that stands for a name.
type Token struct {
	Name string `yaml:"name"`
	// SHA256 is the token's hash, in hex.
	SHA256 string `yaml:"sha256"`
}

// Network are addresses that stand for a name.
type Network struct {
	Name  string   `yaml:"name"`
	CIDRs []string `yaml:"cidrs"`
}

// Group is a name for several clients.
type Group struct {
	Name    string   `yaml:"name"`
	Members []string `yaml:"members"`
}

// OIDC is an issuer of signed tokens.
type OIDC struct {
	// Issuer is its URL, as it stands in the tokens.
	Issuer string `yaml:"issuer,omitempty"`
	// Audience must be among a token's.
	Audience string `yaml:"audience,omitempty"`
	// NameClaim and GroupsClaim are the claims of a token that are the client's
	// name and groups; "sub" and "groups" where they are empty.
	NameClaim   string `yaml:"name_claim,omitempty"`
	GroupsClaim string `yaml:"groups_claim,omitempty"`
	// CA is a PEM file of roots that count beside the system's.
	CA string `yaml:"ca,omitempty"`
}

// AdminAuth is how operators are known; a certificate by admin.tls.client_ca
// counts beside it.
type AdminAuth struct {
	Htpasswd string  `yaml:"htpasswd,omitempty"`
	Tokens   []Token `yaml:"tokens,omitempty"`
	// TokenFile is a file that holds a token, which the program's own commands
	// show to the listener.
	TokenFile string `yaml:"token_file,omitempty"`
}

// AccessRule says what some clients may or may not pull.
type AccessRule struct {
	// Name is how a refused client is told of it.
	Name string `yaml:"name,omitempty"`
	// Who are names, "group:NAME", "anonymous", addresses or "*".
	Who []string `yaml:"who,omitempty"`
	// Upstreams and Repositories are patterns, in which * stands for any run of
	// characters and ? for any one. None is all.
	Upstreams    []string `yaml:"upstreams,omitempty"`
	Repositories []string `yaml:"repositories,omitempty"`
	// Action is "allow" or "deny".
	Action string `yaml:"action"`
}
