package configs

import "embed"

//go:embed all:clients
var clients embed.FS

// ClientFile gives one of the ready files for clients, "containerd/_default/hosts.toml",
// in which the cache is http://cache:5000.
func ClientFile(name string) (string, error) {
	b, err := clients.ReadFile("clients/" + name)
	return string(b), err
}
