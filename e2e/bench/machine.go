package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
)

// machine says what the figures were measured on.
type machine struct {
	OS        string  `json:"os"`
	Arch      string  `json:"arch"`
	Kernel    string  `json:"kernel"`
	CPU       string  `json:"cpu"`
	CPUs      int     `json:"cpus"`
	MemoryGiB float64 `json:"memory_gib"`
}

func thisMachine() machine {
	m := machine{OS: runtime.GOOS, Arch: runtime.GOARCH, CPUs: cpus(), Kernel: firstLine("/proc/sys/kernel/osrelease")}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
				m.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	var kib float64
	if _, err := fmt.Sscanf(firstLine("/proc/meminfo"), "MemTotal: %f kB", &kib); err == nil {
		m.MemoryGiB = float64(int(kib/(1<<20)*10)) / 10
	}
	return m
}

// firstLine gives a file's first line; what is not there is empty.
func firstLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	return string(line)
}

func cpus() int { return runtime.NumCPU() }

// lookNginx gives nginx's path. Debian keeps it where only root looks.
func lookNginx() (string, error) {
	if path, err := exec.LookPath("nginx"); err == nil {
		return path, nil
	}
	const path = "/usr/sbin/nginx"
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	return "", errAbsent("nginx is not installed")
}

// versions gives what was measured, by name.
func (b *bench) versions(ctx context.Context) map[string]string {
	v := map[string]string{"go": runtime.Version()}
	if out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty", "--abbrev=12").Output(); err == nil {
		v["entrepot"] = strings.TrimSpace(string(out))
	}
	if b.tools.nginx != "" {
		// It says so on stderr: "nginx version: nginx/1.22.1".
		if out, err := exec.CommandContext(ctx, b.tools.nginx, "-v").CombinedOutput(); err == nil {
			_, version, _ := strings.Cut(strings.TrimSpace(string(out)), "nginx/")
			v["nginx"] = version
		}
	}
	if b.tools.distribution != "" {
		v["distribution"] = distributionVersion
	}
	return v
}
