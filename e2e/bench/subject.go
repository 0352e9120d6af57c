package main

// subject is what is measured. Its value is the head of its column.
type subject string

// The subjects, in the order of their columns.
const (
	entrepot     subject = "Entrepot"
	static       subject = "nginx static"
	nginxCache   subject = "nginx cache"
	distribution subject = "distribution v3"
	direct       subject = "direct" // a pull from the hub, nothing in between
)

var (
	subjects = []subject{entrepot, static, nginxCache, distribution, direct}
	// servers are those that are processes; caches those that fill.
	servers = []subject{entrepot, static, nginxCache, distribution}
	caches  = []subject{entrepot, nginxCache, distribution}
)
