package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// dockerEngine says how the Docker daemon of a host finds its mirrors.
//
// With the containerd image store, the default of fresh installs since Engine 29, dockerd reads hosts.toml
// files at each pull, for every registry. With the classic store it has registry-mirrors for Docker Hub alone.
type dockerEngine struct {
	// version is the engine's, "29.10.0"; empty if unknown.
	version string
	// mirrors is set if registry-mirrors of daemon.json count, hosts if hosts.toml files do. Both are set if
	// the doctor cannot tell.
	mirrors, hosts bool
	// referrers is set if hosts.toml may name that capability. An engine that does not know it ignores the
	// whole file.
	referrers bool
	// dir is the directory of the daemon's configuration.
	dir string
	// info is what the running daemon says about itself; nil if none answered, err says why.
	info *dockerInfo
	err  error
}

// dockerInfo is the part of the answer to GET /info that the doctor uses.
type dockerInfo struct {
	ServerVersion   string
	DriverStatus    [][2]string
	SecurityOptions []string
	RegistryConfig  struct {
		Mirrors []string
	}
	HTTPProxy  string `json:"HttpProxy"`
	HTTPSProxy string `json:"HttpsProxy"`
	NoProxy    string
	// api is the newest version of the daemon's API, "1.56"; empty if unknown.
	api string
}

// usesContainerd says whether the daemon keeps its images in containerd's store.
func (i *dockerInfo) usesContainerd() bool {
	return slices.Contains(i.DriverStatus, [2]string{"driver-type", "io.containerd.snapshotter.v1"})
}

const (
	dockerDir    = "/etc/docker"
	dockerSocket = "unix:///var/run/docker.sock"
)

// dockerEngineOf asks the running daemon. If none answers, it looks at daemon.json, at the data directory and
// at the version of the dockerd program. Below another root only DOCKER_HOST names a daemon that counts:
// that of this machine reads other files.
func dockerEngineOf(ctx context.Context, s Site) *dockerEngine {
	e := &dockerEngine{dir: dockerDir}
	here := s.at("/") == "/"
	if here || os.Getenv("DOCKER_HOST") != "" {
		e.info, e.err = askDocker(ctx)
	} else {
		e.err = errors.New("DOCKER_HOST names none")
	}
	if e.info != nil {
		e.version = e.info.ServerVersion
		if slices.Contains(e.info.SecurityOptions, "name=rootless") && here {
			if config, err := os.UserConfigDir(); err == nil {
				e.dir = filepath.Join(config, "docker")
			}
		}
		// API 1.48 is that of Engine 28.0, which reads hosts.toml; 1.53 that of 29.2. Distributions and
		// developers give their builds other versions.
		newEnough := func(api, major, minor int) bool {
			if e.info.api != "" {
				return isAtLeast(e.info.api, 1, api)
			}
			return isAtLeast(e.version, major, minor)
		}
		e.hosts = e.info.usesContainerd() && newEnough(48, 28, 0)
		e.mirrors = !e.hosts
		e.referrers = newEnough(53, 29, 2)
		return e
	}
	if here {
		e.version = dockerdVersion(ctx)
	}
	e.hosts, e.mirrors = true, true
	if uses, known := usesContainerd(s, e.version); known {
		e.hosts = uses && (e.version == "" || isAtLeast(e.version, 28, 0))
		e.mirrors = !e.hosts
	}
	e.referrers = e.version == "" || isAtLeast(e.version, 29, 2)
	return e
}

// askDocker asks the daemon that the docker command would ask: that of DOCKER_HOST, or of its context.
func askDocker(ctx context.Context) (*dockerInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, otherTimeout)
	defer cancel()
	endpoint := os.Getenv("DOCKER_HOST")
	if endpoint == "" {
		text, err := run(ctx, otherTimeout, "docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}")
		if endpoint = strings.TrimSpace(text); err != nil || endpoint == "" {
			endpoint = dockerSocket
		}
	}
	info := &dockerInfo{}
	socket, isSocket := strings.CutPrefix(endpoint, "unix://")
	if !isSocket { // the docker command knows how to reach it, and with which certificate
		text, err := run(ctx, otherTimeout, "docker", "info", "--format", "{{json .}}")
		if err != nil {
			return nil, err
		}
		return info, json.Unmarshal([]byte(text), info)
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	get := func(path string) (header http.Header, body []byte, err error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+path, nil)
		if err != nil {
			return nil, nil, err
		}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			return nil, nil, err
		}
		defer func() { _ = resp.Body.Close() }()
		if resp.StatusCode != http.StatusOK {
			return nil, nil, fmt.Errorf("%s answered %s with %s", socket, path, resp.Status)
		}
		body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		return resp.Header, body, err
	}
	header, _, err := get("/_ping")
	if err != nil {
		return nil, err
	}
	info.api = header.Get("Api-Version")
	path := "/info"
	if info.api != "" {
		path = "/v" + info.api + path
	}
	_, body, err := get(path)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(body, info); err != nil {
		return nil, fmt.Errorf("%s: %w", socket, err)
	}
	return info, nil
}

// dockerdPattern matches what dockerd --version prints.
var dockerdPattern = regexp.MustCompile(`version ([0-9]+\.[0-9.]+)`)

// dockerdVersion gives the version of the dockerd program in the path, empty if there is none.
func dockerdVersion(ctx context.Context) string {
	text, err := run(ctx, otherTimeout, "dockerd", "--version")
	if match := dockerdPattern.FindStringSubmatch(text); err == nil && match != nil {
		return match[1]
	}
	return ""
}

// graphDrivers are the storage drivers of the classic store. A directory of vfs does not count as one of an
// earlier install (daemon/graphdriver in the Engine's source).
var graphDrivers = []string{"overlay2", "fuse-overlayfs", "btrfs", "zfs", "vfs"}

// usesContainerd says which image store a daemon of a version would take that is started with the files of
// the site; known is false if they do not tell. The rules are those of daemon/image_store_choice.go and
// daemon/command/daemon_linux.go in the Engine's source.
func usesContainerd(s Site, version string) (uses, known bool) {
	var daemon struct {
		Features map[string]bool `json:"features"`
		Remap    string          `json:"userns-remap"`
		Driver   string          `json:"storage-driver"`
		Root     string          `json:"data-root"`
	}
	text, err := read(s.at(dockerDir + "/daemon.json"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, false
	}
	if len(text) > 0 && json.Unmarshal(text, &daemon) != nil {
		return false, false
	}
	if daemon.Remap != "" {
		return false, true
	}
	if set, ok := daemon.Features["containerd-snapshotter"]; ok {
		return set, true
	}
	if slices.Contains(graphDrivers, daemon.Driver) {
		return false, true
	}
	if daemon.Root == "" {
		daemon.Root = "/var/lib/docker"
	}
	for _, driver := range graphDrivers {
		entries, err := os.ReadDir(s.at(filepath.Join(daemon.Root, driver)))
		if driver != "vfs" && len(entries) > 0 {
			return false, true
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, false // only root may look there
		}
	}
	if version == "" {
		return false, false
	}
	return isAtLeast(version, 29, 0), true
}

// isAtLeast compares the first two numbers of a version. It is false for what is no version.
func isAtLeast(version string, major, minor int) bool {
	first, rest, _ := strings.Cut(version, ".")
	second, _, _ := strings.Cut(rest, ".")
	a, err := strconv.Atoi(first)
	if err != nil {
		return false
	}
	b, err := strconv.Atoi(second)
	return a > major || a == major && err == nil && b >= minor
}
