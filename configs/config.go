package configs

import "time"

// Config is everything that can be set. The yaml tags are the keys, the same
// in the file, in the environment (ENTREPOT_ and the path in capitals) and in
// docs/configuration.md.
type Config struct {
	// Listen is where clients reach the registry API: "host:port", ":port".
	Listen string `yaml:"listen"`
	// TLS makes that listener speak https.
	TLS ServerTLS `yaml:"tls,omitempty"`
	// Admin is the operator's listener.
	Admin Admin `yaml:"admin"`
	// Cache is what is kept, and where.
	Cache Cache `yaml:"cache"`
	// DefaultUpstream is the upstream of a request that names none. It is one
	// of the names in Upstreams; empty refuses such requests.
	DefaultUpstream string `yaml:"default_upstream"`
	// Platforms are those of this cache's clients, "linux/arm64/v8". The first
	// is for clients that take no index.
	Platforms []string `yaml:"platforms"`
	// Upstreams are the registries that are mirrored, by name.
	Upstreams map[string]*Upstream `yaml:"upstreams"`
	// Limits bound what clients can make this process hold.
	Limits Limits `yaml:"limits"`
	// Auth is how clients are known.
	Auth Auth `yaml:"auth"`
	// Access are the rules of who may pull what.
	Access []AccessRule `yaml:"access,omitempty"`
	// Log is how the log is written.
	Log Log `yaml:"log"`
	// ShutdownTimeout is how long running transfers may take to finish once
	// the process was told to stop. Zero ends them at once.
	ShutdownTimeout time.Duration `yaml:"shutdown_timeout"`
}

// ServerTLS is a certificate and its key, PEM files; both or neither. The files
// are read again when they change.
type ServerTLS struct {
	Cert string `yaml:"cert,omitempty"`
	Key  string `yaml:"key,omitempty"`
	// ClientCA is a PEM file of roots: clients that show a certificate of theirs
	// are known by its name.
	ClientCA string `yaml:"client_ca,omitempty"`
}

// Admin is the listener for metrics, health and profiles.
type Admin struct {
	// Listen is "host:port", or AdminOff.
	Listen string `yaml:"listen"`
	// Hosts are names by which browsers ask for it, beside addresses and localhost.
	Hosts []string `yaml:"hosts,omitempty"`
	// TLS makes it speak https.
	TLS ServerTLS `yaml:"tls,omitempty"`
	// Auth is how operators are known.
	Auth AdminAuth `yaml:"auth,omitempty"`
}

// AdminOff as admin.listen opens no admin listener.
const AdminOff = "off"

// Cache says what is kept, and where.
type Cache struct {
	// Dir is the directory of the content. Load fills it in where it is empty.
	Dir string `yaml:"dir"`
	// MaxSize bounds what is kept in Dir: what was used least goes.
	MaxSize Room `yaml:"max_size"`
	// MinFree is what is to stay free of the file system, whoever fills it.
	MinFree Room `yaml:"min_free"`
	// Memory bounds the memory tier, which holds manifests and small blobs.
	Memory Bytes `yaml:"memory"`
	// Offline serves what is kept and asks no upstream for anything.
	Offline bool `yaml:"offline"`
	// ReverifyAfter is for how long a stored blob is believed to be right
	// before it is hashed again; zero is for ever.
	ReverifyAfter time.Duration `yaml:"reverify_after"`
	// ScrubRate is how many bytes a second are read to verify all that is
	// stored, once in ReverifyAfter; zero is not at all.
	ScrubRate Bytes `yaml:"scrub_rate"`
}

// Upstream is one registry that is mirrored.
type Upstream struct {
	// Endpoints are the base URLs of the registry, tried in order.
	Endpoints []string `yaml:"endpoints"`
	// Aliases are other names by which clients ask for this upstream.
	Aliases []string `yaml:"aliases,omitempty"`
	// Credentials are what this registry is shown; empty is anonymous.
	Credentials Credentials `yaml:"credentials,omitempty"`
	// Accounts are other credentials, each for some repositories. The first that matches
	// counts; Credentials are for the rest.
	Accounts []Account `yaml:"accounts,omitempty"`
	// Access is AccessShared or AccessPassthrough: whose credentials decide what
	// may be pulled.
	Access string `yaml:"access"`
	// GrantTTL is for how long the upstream's word that a client may pull from a
	// repository is believed, with AccessPassthrough.
	GrantTTL time.Duration `yaml:"grant_ttl"`
	// GrantStale is for how much longer it is while the upstream can not be asked;
	// zero is not at all.
	GrantStale time.Duration `yaml:"grant_stale"`
	// Realms are token servers that may be shown the credentials, beside the
	// registry's own host and the well-known ones: URLs, of which scheme and
	// host count, or hosts, which stand for https.
	Realms []string `yaml:"realms,omitempty"`
	// RedirectHosts are hosts that a redirect may lead to although they are private or
	// plain http: "host" means its ports 80 and 443, "host:port" that port.
	RedirectHosts []string `yaml:"redirect_hosts,omitempty"`
	// Tags say for how long a tag is believed. The first rule that matches
	// counts; the last rule matches everything.
	Tags []TagRule `yaml:"tags"`
	// TLS is how https endpoints are verified.
	TLS UpstreamTLS `yaml:"tls,omitempty"`
	// QuotaReserve is how many of the pulls that the upstream still grants are kept for
	// images that aren't cached; a number counts as at most half of all that it grants.
	QuotaReserve Reserve `yaml:"quota_reserve"`
	// MaxConnections bounds the parallel requests to this upstream.
	MaxConnections int `yaml:"max_connections"`
	// Prefetch is how many layers of images that clients have begun to pull
	// are fetched ahead of them at a time, large ones counting fourfold; zero
	// is none.
	Prefetch int `yaml:"prefetch"`
	// Complete is when a blob is fetched to its end of which clients have asked only for
	// pieces: CompleteAlways, CompleteIdle or CompleteNever.
	Complete string `yaml:"complete"`
	// ConnectTimeout bounds the dial and TLS handshake of a connection.
	ConnectTimeout time.Duration `yaml:"connect_timeout"`
	// HeaderTimeout bounds the wait for a response's header.
	HeaderTimeout time.Duration `yaml:"header_timeout"`
	// StallTimeout bounds the wait for the next bytes of a body. A body that
	// moves may take as long as it takes.
	StallTimeout time.Duration `yaml:"stall_timeout"`
}

const (
	// AccessShared fetches with Credentials; whoever reaches the proxy may have what
	// they can pull.
	AccessShared = "shared"
	// AccessPassthrough lets each client have what its own credentials can pull.
	AccessPassthrough = "passthrough"
)

// What Upstream.Complete says.
const (
	// CompleteAlways completes a blob while clients ask for pieces of it.
	CompleteAlways = "always"
	// CompleteIdle does so once nobody has waited for the upstream for a while.
	CompleteIdle = "idle"
	// CompleteNever keeps the pieces, until a client asks for the whole.
	CompleteNever = "never"
)

// Credentials are a user with one kind of password, a place that knows both, or
// the login of a cloud; never two of these.
type Credentials struct {
	Username string `yaml:"username,omitempty"`
	Password Secret `yaml:"password,omitempty"`
	// PasswordFile is read again for each login, so that it can be rotated.
	PasswordFile string `yaml:"password_file,omitempty"`
	// PasswordEnv is the name of the environment variable with the password.
	PasswordEnv string `yaml:"password_env,omitempty"`
	// DockerConfig is the path of a Docker config.json, whose auths,
	// credHelpers and credsStore count.
	DockerConfig string `yaml:"docker_config,omitempty"`
	// Helper is the suffix of a credential helper: "ecr-login" runs
	// docker-credential-ecr-login.
	Helper string `yaml:"helper,omitempty"`
	// ECR, Google and Azure are short-lived logins of those clouds, got with what the cloud
	// gives this process.
	ECR    *ECR    `yaml:"ecr,omitempty"`
	Google *Google `yaml:"google,omitempty"`
	Azure  *Azure  `yaml:"azure,omitempty"`
}

// ECR is the login of Amazon ECR.
type ECR struct {
	// Region is that of Hosts, whose names don't tell it.
	Region string `yaml:"region,omitempty"`
	// Hosts may have the login beside ECR's own: hosts, which stand for https, or URLs, of
	// which scheme and host count.
	Hosts []string `yaml:"hosts,omitempty"`
}

// Google is the login of Google Artifact Registry and Container Registry.
type Google struct {
	// File is a key of a service account or a configuration of workload identity
	// federation; GOOGLE_APPLICATION_CREDENTIALS if it is empty, else the metadata server.
	File string `yaml:"file,omitempty"`
	// Hosts may have the login beside Google's own, as those of ECR.
	Hosts []string `yaml:"hosts,omitempty"`
}

// Azure is the login of Azure Container Registry.
type Azure struct {
	// ClientID is that of the identity; AZURE_CLIENT_ID if it is empty.
	ClientID string `yaml:"client_id,omitempty"`
	// Hosts may have the login beside Azure's own, as those of ECR.
	Hosts []string `yaml:"hosts,omitempty"`
}

// Account is the credentials for some repositories of an upstream.
type Account struct {
	// Repositories are patterns in which * stands for any run of characters, a slash
	// included, and ? for any one.
	Repositories []string `yaml:"repositories"`
	// Credentials are shown for these repositories; empty is anonymous.
	Credentials Credentials `yaml:"credentials,omitempty"`
}

// TagRule says for how long the tags that it matches are believed.
type TagRule struct {
	// Match is a pattern of "repository:tag" in which * stands for any run of
	// characters, a slash and a colon included, and ? for any one. Without a
	// colon it is one of the repository, and takes all its tags.
	Match string `yaml:"match"`
	// TTL is how long an answer counts as fresh.
	TTL time.Duration `yaml:"ttl"`
	// StaleIfError is for how long past its TTL an answer may be served while
	// the upstream can not be asked.
	StaleIfError time.Duration `yaml:"stale_if_error"`
	// StaleWhileRevalidate is for how long past its TTL an answer is served at
	// once, while the upstream is asked behind.
	StaleWhileRevalidate time.Duration `yaml:"stale_while_revalidate,omitempty"`
	// Immutable tags are never asked for again once they are kept.
	Immutable bool `yaml:"immutable,omitempty"`
	// OnUpstreamDelete is "follow" or "keep": what becomes of a tag that the
	// upstream has deleted.
	OnUpstreamDelete string `yaml:"on_upstream_delete"`
	// KeepHistory is for how long what a tag stood for is not evicted after it has
	// moved; zero is not at all.
	KeepHistory time.Duration `yaml:"keep_history,omitempty"`
	// Hold is for how long a tag that has moved is served as it was.
	Hold time.Duration `yaml:"hold,omitempty"`
	// OnMove is "follow", "warn", "hold" or "block": what becomes of a tag that
	// moves.
	OnMove string `yaml:"on_move"`
}

// UpstreamTLS says how an upstream's certificate is verified, and what this
// side shows.
type UpstreamTLS struct {
	// CA is a PEM file of roots that count beside the system's.
	CA string `yaml:"ca,omitempty"`
	// Cert and Key are a client certificate; both or neither.
	Cert string `yaml:"cert,omitempty"`
	Key  string `yaml:"key,omitempty"`
	// Insecure verifies nothing: anyone on the path can read the credentials.
	// What is kept is still verified by digest; what a tag stands for is not.
	Insecure bool `yaml:"insecure,omitempty"`
}

// Limits bound what clients can make this process hold. Where the system lets it
// open fewer files than they add up to, they are lowered at the start.
type Limits struct {
	// Connections is the most client connections at a time; more are refused
	// with 503.
	Connections int `yaml:"connections"`
	// ConnectionsPerAddress is the most of one client address, of IPv6 one /64, and at
	// most half of Connections; more are refused with 429. Zero is no such limit.
	ConnectionsPerAddress int `yaml:"connections_per_address"`
	// SharedAddresses are ranges of addresses that many clients share, such as a NAT,
	// and that have no such limit.
	SharedAddresses []string `yaml:"shared_addresses,omitempty"`
	// Requests is the most requests that are answered at a time, the transfer
	// of their bodies included; more are refused with 503.
	Requests int `yaml:"requests"`
	// Fills is the most blobs that are fetched at a time; more wait for a
	// moment, and are then refused with 503.
	Fills int `yaml:"fills"`
	// Manifests is the most memory for manifests and lists that are being
	// read, from upstreams and from disk. Manifests that clients are reading may
	// take as much again, and so may lists.
	Manifests Bytes `yaml:"manifests"`
	// HeaderTimeout is how long a client may take to send a request's header.
	HeaderTimeout time.Duration `yaml:"header_timeout"`
	// IdleTimeout is how long a connection is kept without a request.
	IdleTimeout time.Duration `yaml:"idle_timeout"`
	// StallTimeout is how long a client may take nothing of its answer.
	StallTimeout time.Duration `yaml:"stall_timeout"`
}

// PerAddress returns how many connections one address may have; zero is no limit. One
// address never has more than half of all.
func (l Limits) PerAddress() int {
	return min(l.ConnectionsPerAddress, max(1, l.Connections/2))
}

// Log says how the log is written.
type Log struct {
	// Level is the least severe level that is written: debug, info, warn, error.
	Level string `yaml:"level"`
	// Format is console (for people), json, or auto: console on a terminal,
	// json otherwise.
	Format string `yaml:"format"`
}
