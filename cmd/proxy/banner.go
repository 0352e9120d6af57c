package main

import (
	"fmt"
	"io"
	"net"
	"slices"
	"strings"

	"github.com/entrepot-dev/entrepot/configs"
)

// banner is what a person who starts the program wants to know.
type banner struct {
	version string
	cfg     *configs.Config
	// listen and admin are the addresses that are really listened on; admin is
	// empty where there is no such listener.
	listen, admin string
}

// write prints it. That nobody reads it is no error.
func (b banner) write(w io.Writer) {
	url := b.url()
	var s strings.Builder
	fmt.Fprintf(&s, "Entrepot %s\n", b.version)
	fmt.Fprintf(&s, "  listens  %s\n", everyAddress(url, b.listen))
	if b.admin == "" {
		fmt.Fprintf(&s, "  admin    off\n")
	} else {
		fmt.Fprintf(&s, "  admin    http://%s (/metrics, /healthz, /readyz)\n", reachable(b.admin))
	}
	fmt.Fprintf(&s, "  keeps    %s, and %s in memory\n", b.cfg.Cache.Dir, b.cfg.Cache.Memory)
	fmt.Fprintf(&s, "  mirrors  %s\n", strings.Join(b.mirrors(), "\n           "))
	if b.cfg.Cache.Offline {
		fmt.Fprintf(&s, "  offline  serves what is kept and asks no upstream\n")
	}
	fmt.Fprintf(&s, `
Docker 29 and newer, in /etc/docker/certs.d/_default/hosts.toml:
  [host."%[1]s"]
    capabilities = ["pull", "resolve", "referrers"]
Docker with the classic image store, in /etc/docker/daemon.json:
  { "registry-mirrors": ["%[1]s"] }
containerd, in /etc/containerd/certs.d/_default/hosts.toml:
  [host."%[1]s"]
    capabilities = ["pull", "resolve"]
`, url)
	if strings.Contains(url, "//localhost:") {
		fmt.Fprintf(&s, "From another machine write this one's name in the place of localhost.\n")
	}
	s.WriteByte('\n')
	_, _ = io.WriteString(w, s.String())
}

// url gives the base URL for clients on this machine.
func (b banner) url() string {
	scheme := "http"
	if b.cfg.TLS.Cert != "" {
		scheme = "https"
	}
	return scheme + "://" + reachable(b.listen)
}

// mirrors lists the upstreams, the default one first, a few on a line.
func (b banner) mirrors() []string {
	var names []string
	for name := range b.cfg.Upstreams {
		if name != b.cfg.DefaultUpstream {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	if d := b.cfg.DefaultUpstream; d != "" {
		names = slices.Insert(names, 0, d+" (where a request names none)")
	}
	if len(names) == 0 {
		return []string{"nothing: there are no upstreams"}
	}
	var lines []string
	for chunk := range slices.Chunk(names, 4) {
		lines = append(lines, strings.Join(chunk, ", "))
	}
	return lines
}

// everyAddress says so where a listener is reached by all of the machine's.
func everyAddress(url, listen string) string {
	host, _, err := net.SplitHostPort(listen)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
		return url + " (every address of this machine)"
	}
	return url
}
