package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// nginxCommon is what both set-ups share: a worker for each CPU, connections
// that are kept for ever, no log.
const nginxCommon = `%[1]sdaemon off;
worker_processes %[2]d;
worker_rlimit_nofile %[7]d;
pid %[3]s/pid;
error_log %[3]s/error.log warn;
events { worker_connections 8192; }
http {
	access_log off;
	sendfile on;
	keepalive_timeout 1h;
	keepalive_requests 1000000000;
	default_type application/octet-stream;
	client_body_temp_path %[3]s/client;
	proxy_temp_path %[3]s/proxy;
	fastcgi_temp_path %[3]s/fastcgi;
	uwsgi_temp_path %[3]s/uwsgi;
	scgi_temp_path %[3]s/scgi;
%[5]s
	server {
		listen %[4]s;
		location = /v2/ { default_type application/json; return 200 "{}"; }
%[6]s
	}
}
`

const nginxStaticServer = `		root %[1]s/files;
		location ~ /manifests/ { default_type application/vnd.oci.image.manifest.v1+json; }`

const nginxCacheHTTP = `	proxy_cache_path %[1]s/cache levels=1:2 keys_zone=all:64m max_size=100g inactive=7d use_temp_path=off;
	upstream hub { server %[2]s; keepalive 64; }`

// nginxCacheServer is what people write: blobs in slices, so that a cold one can
// be sent while it comes, and one fetch at a time of each.
const nginxCacheServer = `		proxy_pass_request_headers on;
		proxy_http_version 1.1;
		proxy_set_header Connection "";
		proxy_cache all;
		proxy_cache_lock on;
		proxy_cache_lock_timeout 1h;
		proxy_cache_lock_age 1h;
		proxy_ignore_headers Set-Cookie Cache-Control Expires Vary;
		location ~ /blobs/ {
			slice 8m;
			proxy_cache_key $uri$slice_range;
			proxy_set_header Range $slice_range;
			proxy_cache_valid 200 206 24h;
			proxy_pass http://hub;
		}
		location / {
			proxy_cache_key $uri;
			proxy_cache_valid 200 24h;
			proxy_pass http://hub;
		}`

const nginxTLS = ` ssl;
		ssl_certificate %s;
		ssl_certificate_key %s;
		ssl_protocols TLSv1.3`

// nginxStaticLaunch prepares nginx with all items as plain files. certified
// makes it speak TLS.
func (b *bench) nginxStaticLaunch(dir string, certified bool) (launch, error) {
	return b.nginxLaunch(static, dir, certified, "", fmt.Sprintf(nginxStaticServer, b.dir))
}

// nginxCacheLaunch prepares nginx as an empty cache in front of a hub that wants
// no token and does not redirect: it could do neither.
func (b *bench) nginxCacheLaunch(dir string, certified bool) (launch, error) {
	hub := strings.TrimPrefix(b.hub.Plain.URL, "http://")
	return b.nginxLaunch(nginxCache, dir, certified, fmt.Sprintf(nginxCacheHTTP, dir, hub), nginxCacheServer)
}

func (b *bench) nginxLaunch(s subject, dir string, certified bool, inHTTP, inServer string) (launch, error) {
	l := launch{subject: s, dir: dir, path: b.tools.nginx}
	var err error
	if l.address, err = freeAddress(); err != nil {
		return l, err
	}
	user, listen := "", l.address
	if os.Getuid() == 0 {
		user = "user root;\n"
	}
	if certified {
		l.trust = b.certificate.pool
		listen += fmt.Sprintf(nginxTLS, b.certificate.certFile, b.certificate.keyFile)
	}
	file := filepath.Join(dir, "nginx.conf")
	l.args = []string{"-p", dir, "-e", filepath.Join(dir, "error.log"), "-c", file}
	text := fmt.Sprintf(nginxCommon, user, runtime.NumCPU(), dir, listen, inHTTP, inServer, openFiles())
	return l, os.WriteFile(file, []byte(text), 0o600)
}

// openFiles is how many files a worker may have open: as many as the system lets
// it, which Go programs take by themselves.
func openFiles() uint64 {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return 1024
	}
	return min(uint64(limit.Max), 32768)
}

// writeFiles lays the items out under their paths, for nginx to send.
func (b *bench) writeFiles(ctx context.Context, items ...item) error {
	for _, i := range items {
		path := filepath.Join(b.dir, "files", filepath.FromSlash(i.path()))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		body, err := fetch(ctx, http.DefaultClient, b.hub.Plain.URL, i)
		if err != nil {
			return err
		}
		f, err := os.Create(path)
		if err != nil {
			body.Close()
			return err
		}
		_, err = io.Copy(f, body)
		body.Close()
		if err := f.Close(); err != nil {
			return err
		}
		if err != nil {
			return fmt.Errorf("fetch %s: %w", i.path(), err)
		}
	}
	return nil
}
