package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"reflect"
	"slices"
	"strings"
)

// mirrorsKey is that of daemon.json.
const mirrorsKey = "registry-mirrors"

// planDocker makes the cache the first mirror of Docker, in the files that this Docker reads: daemon.json,
// hosts.toml files, or both if the doctor cannot tell.
func planDocker(s Site, e *dockerEngine) ([]*File, error) {
	var files []*File
	if e.hosts {
		hosts, err := planDockerHosts(s, e)
		if err != nil {
			return nil, err
		}
		files = hosts
	}
	if !e.mirrors {
		return files, nil
	}
	ready, err := s.ready("daemon.json")
	if err != nil {
		return nil, err
	}
	f, err := plan(s.at(e.dir+"/daemon.json"), ready, func(old string) (string, error) { return mergeDaemon(old, s.URL) })
	if err != nil {
		return nil, err
	}
	f.Restart = "systemctl reload docker, or send dockerd a SIGHUP; no container is stopped by that"
	if e.hosts {
		f.Notes = append(f.Notes, fmt.Sprintf("no Docker daemon tells which files it reads (%v): Engine 29.2 and newer with the containerd image store reads %s, the others read %s; both are prepared",
			e.err, files[0].Path, f.Path))
	}
	if len(s.Upstreams) > 0 && s.Upstreams[0] != "docker.io" {
		f.Notes = append(f.Notes, "a Docker daemon asks its mirror for Docker Hub's images without saying so: set default_upstream to docker.io, which is "+s.Upstreams[0])
	}
	return append(files, f), nil
}

// planDockerHosts plans the hosts.toml files of Docker. It needs no restart: dockerd reads them at each pull.
func planDockerHosts(s Site, e *dockerEngine) ([]*File, error) {
	ready, err := s.ready("docker/_default/hosts.toml")
	if err != nil {
		return nil, err
	}
	h := hostsFile{ready: ready, capabilities: []string{"pull", "resolve", "referrers"}}
	if !e.referrers {
		h.ready = strings.ReplaceAll(ready, `, "referrers"]`, "]")
		h.capabilities = h.capabilities[:2]
		h.refused = "referrers"
	}
	files, err := planHosts(s, e.dir+"/certs.d", h)
	if err != nil {
		return nil, err
	}
	var daemon struct {
		Insecure []string `json:"insecure-registries"`
	}
	path := s.at(e.dir + "/daemon.json")
	if text, err := read(path); err == nil && json.Unmarshal(text, &daemon) == nil && slices.Contains(daemon.Insecure, s.host()) {
		files[0].Notes = append(files[0].Notes, fmt.Sprintf("insecure-registries in %s names the cache, which hosts.toml makes needless. "+
			"Remove it: since Engine 29.10 Docker asks registries on the loopback for TLS if that list is set", path))
	}
	return files, nil
}

// mergeDaemon puts at, the URL of the cache, before the other mirrors of daemon.json, and changes nothing else.
func mergeDaemon(old, at string) (string, error) {
	var was map[string]any
	if err := json.Unmarshal([]byte(old), &was); err != nil {
		return "", fmt.Errorf("it is no JSON object (%w)", err)
	}
	var mirrors []string
	if v, ok := was[mirrorsKey]; ok {
		list, ok := v.([]any)
		if !ok {
			return "", errors.New(mirrorsKey + " is no list")
		}
		for _, one := range list {
			text, ok := one.(string)
			if !ok {
				return "", errors.New(mirrorsKey + " is no list of URLs")
			}
			mirrors = append(mirrors, text)
		}
	}
	if len(mirrors) > 0 && isSameMirror(mirrors[0], at) {
		return old, nil
	}
	mirrors = slices.DeleteFunc(mirrors, func(m string) bool { return isSameMirror(m, at) })
	value, err := json.Marshal(slices.Insert(mirrors, 0, at))
	if err != nil {
		return "", err
	}
	from, to, err := span(old, mirrorsKey)
	if err != nil {
		return "", err
	}
	text := old[:from] + string(value) + old[to:]
	if from == to { // there is none yet
		rest := strings.TrimLeft(old[from:], " \t\r\n")
		comma := ","
		if strings.HasPrefix(rest, "}") {
			comma = "\n"
			if strings.HasPrefix(old[from:], "\n") {
				comma = ""
			}
		}
		text = old[:from] + fmt.Sprintf("\n  %q: %s%s", mirrorsKey, value, comma) + old[from:]
	}
	var is map[string]any
	if err := json.Unmarshal([]byte(text), &is); err != nil {
		return "", fmt.Errorf("it could not be changed (%w)", err)
	}
	if list, _ := is[mirrorsKey].([]any); len(list) == 0 || list[0] != at {
		return "", errors.New(mirrorsKey + " is in it more than once")
	}
	delete(was, mirrorsKey)
	delete(is, mirrorsKey)
	if !reflect.DeepEqual(was, is) {
		return "", errors.New("it could not be changed without changing something else")
	}
	return text, nil
}

// isSameMirror reports whether two URLs are spellings of one: localhost, 127.0.0.1 and [::1],
// with or without a slash at the end or the scheme's own port.
func isSameMirror(a, b string) bool { return plainMirror(a) == plainMirror(b) }

// plainMirror returns one spelling of a mirror's URL.
func plainMirror(text string) string {
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	if err != nil {
		return text
	}
	host := strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
	if host == "localhost" || host == "127.0.0.1" || host == "::1" {
		host = "localhost"
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[strings.ToLower(u.Scheme)]
	}
	return strings.ToLower(u.Scheme) + "://" + net.JoinHostPort(host, port) + strings.TrimRight(u.Path, "/")
}

// span gives where the value of a key of the object in text stands; where there is no
// such key, the place behind the brace that begins the object, twice.
func span(text, key string) (from, to int, err error) {
	d := json.NewDecoder(strings.NewReader(text))
	if _, err := d.Token(); err != nil {
		return 0, 0, err
	}
	begin := int(d.InputOffset())
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return 0, 0, err
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return 0, 0, err
		}
		if end := int(d.InputOffset()); name == key {
			return end - len(value), end, nil
		}
	}
	return begin, begin, nil
}
