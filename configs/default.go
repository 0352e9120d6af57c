package configs

import "time"

// Default gives the configuration of an Entrepot that nobody configured. Only
// Cache.Dir is empty in it: it depends on the machine (see Load). Each call
// gives a new value.
func Default() *Config {
	return &Config{
		Listen:          ":5000",
		Admin:           Admin{Listen: "127.0.0.1:5001"},
		Cache:           Cache{MaxSize: Percent(80), MinFree: Percent(5), Memory: 64 << 20, ReverifyAfter: 168 * time.Hour, ScrubRate: 8 << 20},
		DefaultUpstream: "docker.io",
		Platforms:       []string{"linux/amd64"},
		Upstreams: map[string]*Upstream{
			"docker.io": dockerHub(),
			"ghcr.io":   DefaultUpstream("ghcr.io"), "quay.io": DefaultUpstream("quay.io"),
			"gcr.io": DefaultUpstream("gcr.io"), "registry.k8s.io": DefaultUpstream("registry.k8s.io"),
			"mcr.microsoft.com": DefaultUpstream("mcr.microsoft.com"),
			"public.ecr.aws":    DefaultUpstream("public.ecr.aws"),
			"docker.elastic.co": DefaultUpstream("docker.elastic.co"),
			"nvcr.io":           DefaultUpstream("nvcr.io"),
		},
		Limits: Limits{
			Connections: 8192, ConnectionsPerAddress: 2048, Requests: 4096, Fills: 128, Manifests: 64 << 20,
			HeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, StallTimeout: 2 * time.Minute,
		},
		Auth:            Auth{Anonymous: "auto"},
		Log:             Log{Level: "info", Format: "auto"},
		ShutdownTimeout: 30 * time.Second,
	}
}

// DefaultUpstream gives the upstream that a name alone stands for: https on
// the host of that name, anonymous.
func DefaultUpstream(name string) *Upstream {
	return &Upstream{
		Endpoints:      []string{"https://" + name},
		Access:         AccessShared,
		GrantTTL:       5 * time.Minute,
		Tags:           []TagRule{DefaultTagRule()},
		QuotaReserve:   ReserveAuto,
		MaxConnections: 64,
		Prefetch:       16,
		Complete:       CompleteIdle,
		ConnectTimeout: 10 * time.Second,
		HeaderTimeout:  30 * time.Second,
		StallTimeout:   30 * time.Second,
	}
}

// DefaultTagRule is the rule of a tag that no other rule matches. Its values
// are also those of the keys that a rule leaves out.
func DefaultTagRule() TagRule {
	return TagRule{Match: "*", TTL: time.Minute, StaleIfError: 720 * time.Hour, OnUpstreamDelete: "follow", OnMove: "follow"}
}

// dockerHub is not served on the host of its name, and is known by others.
func dockerHub() *Upstream {
	u := DefaultUpstream("docker.io")
	u.Endpoints = []string{"https://registry-1.docker.io"}
	u.Aliases = []string{"index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"}
	return u
}
