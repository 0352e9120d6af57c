package client

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"
)

// Reason is why pulls of a client may go past the cache, and what to do.
type Reason struct{ Seen, Advice string }

// Reasons looks for what keeps the pulls of a client from the cache; registry is that of
// the image, "docker.io". It gives none where it finds none.
func Reasons(ctx context.Context, name string, s Site, registry string) []Reason {
	var found []Reason
	if name == "docker" {
		found = dockerReasons(ctx, s, registry)
	}
	if len(found) == 0 {
		found = fileReasons(ctx, name, s)
	}
	if name == "podman" {
		found = append(found, podmanReasons(s)...)
	}
	// Programs that pull by themselves have the environment of this shell.
	if name == "podman" || name == "containerd" {
		found = append(found, proxyReason("this shell", httpproxy.FromEnvironment(), s)...)
	}
	if d, ok := findDaemon(daemons[name]); ok {
		found = append(found, proxyReason(fmt.Sprintf("%s (process %d)", d.name, d.pid), d.proxies(), s)...)
	}
	return found
}

// daemons are the names of the processes that read the files of a client.
var daemons = map[string][]string{
	"docker": {"dockerd"}, "containerd": {"containerd"}, "buildkit": {"buildkitd"}, "k3s": {"k3s-server", "k3s-agent", "k3s"},
}

// fileReasons looks for files that do not name the cache, and for daemons that run for
// longer than these say what they say.
func fileReasons(ctx context.Context, name string, s Site) []Reason {
	files, err := Plan(ctx, name, s)
	if unmerged := (*Unmerged)(nil); errors.As(err, &unmerged) {
		return []Reason{{fmt.Sprintf("%s does not name the cache as it should: %s", unmerged.Path, unmerged.Why), "entrepot doctor --client " + name + " prints what to put in"}}
	}
	if err != nil {
		return []Reason{{err.Error(), "run this command as a user who may read it"}}
	}
	var found []Reason
	for _, f := range files {
		if !f.Changes() {
			continue
		}
		seen := f.Path + " does not say that the cache is to be asked first"
		if !f.Exists {
			seen = f.Path + " is not there"
		}
		found = append(found, Reason{seen, "entrepot doctor --client " + name + " --write"})
	}
	if len(found) > 0 {
		return found
	}
	d, ok := findDaemon(daemons[name])
	if !ok {
		return nil
	}
	for _, f := range files {
		info, err := os.Stat(f.Path)
		if err == nil && f.Restart != "" && info.ModTime().After(d.started) {
			found = append(found, Reason{fmt.Sprintf("%s (process %d) has run since %s, and %s has changed after that, at %s", d.name, d.pid,
				d.started.UTC().Format(time.RFC3339), f.Path, info.ModTime().UTC().Format(time.RFC3339)), f.Restart})
		}
	}
	return found
}

// dockerReasons asks the running daemon for its image store, its mirrors and its proxies: its file may be
// another one, and may have changed since the daemon read it.
func dockerReasons(ctx context.Context, s Site, registry string) []Reason {
	e := dockerEngineOf(ctx, s)
	if e.info == nil {
		return []Reason{{"the Docker daemon does not answer: " + e.err.Error(), "start it, or see DOCKER_HOST and the context of docker"}}
	}
	proxies := proxyReason("the Docker daemon", &httpproxy.Config{HTTPProxy: e.info.HTTPProxy, HTTPSProxy: e.info.HTTPSProxy, NoProxy: e.info.NoProxy}, s)
	if e.hosts {
		found := append(fileReasons(ctx, "docker", s), proxies...)
		if len(found) == 0 {
			dir := s.at(e.dir + "/certs.d")
			found = []Reason{{"the files in " + dir + " name the cache, and the Docker daemon did not ask it: the daemon may see other files there, in a container or a virtual machine, or may not reach the cache",
				`see its log for "failed to decode" and "trying next host"`}}
		}
		return found
	}
	if registry != "docker.io" {
		return []Reason{{"this Docker daemon has mirrors for docker.io alone, because it does not use the containerd image store of Engine 28 or newer, and this image is of " + registry,
			"pull it under the name of the cache, " + s.host() + "/" + registry + "/…, or let Docker use the containerd image store"}}
	}
	var found []Reason
	mirrors := e.info.RegistryConfig.Mirrors
	for i, m := range mirrors {
		mirrors[i] = strings.TrimSuffix(m, "/")
	}
	switch at := slices.Index(mirrors, s.URL); {
	case at > 0:
		found = append(found, Reason{fmt.Sprintf("the running Docker daemon asks %s before it", mirrors[0]), "entrepot doctor --client docker --write"})
	case at < 0:
		found = append(found, withoutMirror(s, e, mirrors))
	}
	return append(found, proxies...)
}

// withoutMirror says why a daemon with these mirrors does not ask the cache.
func withoutMirror(s Site, e *dockerEngine, mirrors []string) Reason {
	has := "no mirror"
	if len(mirrors) > 0 {
		has = "other mirrors, " + strings.Join(mirrors, ", ")
	}
	host := s.host()
	for _, m := range mirrors {
		if u, err := url.Parse(m); err == nil && u.Host == host {
			return Reason{fmt.Sprintf("the running Docker daemon has the mirror %s, and the cache is asked by %s", m, s.URL), "write the cache's scheme into registry-mirrors"}
		}
	}
	files, err := planDocker(s, e)
	if err == nil && !files[0].Changes() {
		return Reason{fmt.Sprintf("the running Docker daemon has %s, though %s names %s: it has not read that since it changed, or reads another file", has, files[0].Path, s.URL), files[0].Restart}
	}
	return Reason{fmt.Sprintf("the running Docker daemon has %s, and not %s", has, s.URL),
		"entrepot doctor --client docker --write, or give --url as the daemon has it, if that is another name of the cache"}
}

// podmanReasons looks for what keeps the drop-in from being read.
func podmanReasons(s Site) []Reason {
	var found []Reason
	if path := os.Getenv("CONTAINERS_REGISTRIES_CONF"); path != "" {
		found = append(found, Reason{"CONTAINERS_REGISTRIES_CONF of this shell names " + path, "see that it has the mirrors, or unset it"})
	}
	if home, err := os.UserHomeDir(); err == nil && os.Geteuid() != 0 {
		path := home + "/.config/containers/registries.conf"
		if _, err := os.Stat(path); err == nil {
			found = append(found, Reason{path + " is read instead of " + s.at("/etc/containers/registries.conf"), "put the mirrors there, or remove it"})
		}
	}
	return found
}

// proxyReason tells of a proxy that requests for the cache are sent to.
func proxyReason(whose string, c *httpproxy.Config, s Site) []Reason {
	u, err := url.Parse(s.URL)
	if err != nil {
		return nil
	}
	via, err := c.ProxyFunc()(u)
	if err != nil || via == nil {
		return nil
	}
	return []Reason{{fmt.Sprintf("the proxy variables of %s send requests for the cache to %s", whose, via.Host), "add " + u.Hostname() + " to its NO_PROXY"}}
}

// daemon is a running process that reads a client's files.
type daemon struct {
	name    string
	pid     int
	started time.Time
	environ []string // empty where this user may not see it
}

// proxies gives the proxy variables of its environment.
func (d *daemon) proxies() *httpproxy.Config {
	get := func(name string) string {
		for _, pair := range d.environ {
			if key, value, ok := strings.Cut(pair, "="); ok && strings.EqualFold(key, name) && value != "" {
				return value
			}
		}
		return ""
	}
	return &httpproxy.Config{HTTPProxy: get("HTTP_PROXY"), HTTPSProxy: get("HTTPS_PROXY"), NoProxy: get("NO_PROXY")}
}
