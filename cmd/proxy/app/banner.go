package app

import (
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/entrepot-dev/entrepot/configs"
)

// banner is what a person who starts the program on a terminal sees first.
type banner struct {
	version string
	cfg     *configs.Config
	// listen and admin are the addresses of the open listeners; admin is empty if
	// there is no admin listener.
	listen, admin string
	// others are the hosts by which other machines reach listen.
	others []string
	// open says that clients need no login.
	open bool
	// mount is where the file system of the cache directory is mounted, and size how
	// large it is; empty if that is unknown.
	mount string
	size  int64
}

// write prints the banner. It ignores errors of w.
func (b banner) write(w io.Writer) {
	url := b.url()
	var s strings.Builder
	fmt.Fprintf(&s, "Entrepot %s\n", b.version)
	fmt.Fprintf(&s, "  listens  %s\n", url)
	fmt.Fprintf(&s, "  clients  %s\n", b.clients())
	fmt.Fprintf(&s, "  login    %s\n", b.login())
	if b.admin == "" {
		fmt.Fprintf(&s, "  admin    off\n")
	} else {
		fmt.Fprintf(&s, "  admin    http://%s (/metrics, /healthz, /readyz)\n", reachable(b.admin))
	}
	fmt.Fprintf(&s, "  disk     %s, %s\n", b.cfg.Cache.Dir, b.share())
	fmt.Fprintf(&s, "  memory   up to %s for small content\n", b.cfg.Cache.Memory)
	fmt.Fprintf(&s, "  mirrors  %s\n", strings.Join(b.mirrors(), "\n           "))
	if b.cfg.Cache.Offline {
		fmt.Fprintf(&s, "  offline  serves what is cached and asks no upstream\n")
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
	if len(b.others) > 0 && strings.Contains(url, "//localhost:") {
		fmt.Fprintf(&s, "On other machines, write %s instead of localhost.\n", b.others[0])
	}
	s.WriteByte('\n')
	_, _ = io.WriteString(w, s.String())
}

// clients says by which addresses clients on other machines reach the cache.
func (b banner) clients() string {
	if len(b.others) == 0 {
		if isLoopback(b.listen) {
			return "on this machine only (listen is a loopback address)"
		}
		return "on this machine; it has no other address"
	}
	scheme, _, _ := strings.Cut(b.url(), "//")
	_, port, _ := net.SplitHostPort(b.listen)
	var list []string
	for _, host := range b.others[:min(len(b.others), 3)] {
		list = append(list, scheme+"//"+net.JoinHostPort(host, port))
	}
	if more := len(b.others) - len(list); more > 0 {
		list = append(list, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(list, ", ")
}

// login says who may pull.
func (b banner) login() string {
	if b.open {
		return "nobody has to log in: whoever reaches this port can pull (see auth)"
	}
	return "required: auth says who may pull"
}

// share says how much of which disk the cache may take.
func (b banner) share() string {
	percent, isShare := b.cfg.Cache.MaxSize.Share()
	switch {
	case isShare && b.mount == "":
		return fmt.Sprintf("up to %d%% of its file system", percent)
	case isShare:
		return fmt.Sprintf("up to %s: %d%% of %s", bytesOf(b.size/100*int64(percent)), percent, b.mount)
	case b.mount == "":
		return "up to " + b.cfg.Cache.MaxSize.String()
	}
	return fmt.Sprintf("up to %s of %s", b.cfg.Cache.MaxSize, b.mount)
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

// otherHosts returns the hosts by which other machines reach a listener: the one it
// listens on, or every address of this machine, IPv4 first.
func otherHosts(at net.Addr) []string {
	tcp, ok := at.(*net.TCPAddr)
	if !ok || tcp.IP.IsLoopback() {
		return nil
	}
	if !tcp.IP.IsUnspecified() {
		return []string{tcp.IP.String()}
	}
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil // unknown, and no reason to stop
	}
	var four, six []string
	for _, a := range list {
		n, ok := a.(*net.IPNet)
		switch {
		case !ok || !n.IP.IsGlobalUnicast():
		case n.IP.To4() != nil:
			four = append(four, n.IP.String())
		case tcp.IP.To4() == nil:
			six = append(six, n.IP.String())
		}
	}
	return append(four, six...)
}

// fileSystem returns where the file system of dir is mounted and how large it is; empty
// if the system does not say.
func fileSystem(dir string) (mount string, size int64) {
	var fs unix.Statfs_t
	var st unix.Stat_t
	dir = absolute(dir)
	if unix.Statfs(dir, &fs) != nil || unix.Stat(dir, &st) != nil {
		return "", 0
	}
	// The mount point is the last directory on the way up that is on the same device.
	for mount = dir; mount != "/"; mount = filepath.Dir(mount) {
		var up unix.Stat_t
		if unix.Stat(filepath.Dir(mount), &up) != nil || up.Dev != st.Dev {
			break
		}
	}
	return mount, int64(fs.Blocks) * int64(fs.Bsize)
}
