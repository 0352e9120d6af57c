package app

import (
	"math"
	"syscall"

	"go.uber.org/zap"

	"github.com/entrepot-dev/entrepot/cache/store"
	"github.com/entrepot-dev/entrepot/configs"
	"github.com/entrepot-dev/entrepot/metrics"
)

const (
	// ownFiles are those that the program needs whoever asks: the index, the
	// lock, the listeners, the log, the operator's connections, certificates.
	ownFiles = 64 + store.MaxShared
	// leastFiles are those without which it serves nobody.
	leastFiles = 128
)

// openFiles gives how many files this process may open, sockets included. The
// Go runtime has raised the soft limit to the hard one (less one) at the start;
// children get the old one back.
func openFiles() int {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return math.MaxInt32 // the limits stay as they were set
	}
	return int(min(l.Cur, math.MaxInt32))
}

// filesFor gives the files that are open when the limits are reached: one for
// each connection, one for the blob of each request, the part of each fill, and
// a connection for each request to an upstream.
func filesFor(cfg *configs.Config) int {
	l := cfg.Limits
	return ownFiles + upstreamFiles(cfg) + l.Fills + l.Connections + l.Requests
}

func upstreamFiles(cfg *configs.Config) int {
	n := 0
	for _, u := range cfg.Upstreams {
		n += u.MaxConnections
	}
	return n
}

// fitLimits lowers the limits of cfg to the files that the process may open, and
// says so.
func fitLimits(cfg *configs.Config, files int, log *zap.Logger) {
	need := filesFor(cfg)
	if need <= files {
		return
	}
	set := cfg.Limits
	l := &cfg.Limits
	// Not all upstreams are busy at a time; half of what there is at most is
	// kept from clients for them and for fills.
	left := max(files, leastFiles) - ownFiles
	l.Fills = max(1, min(l.Fills, left/8))
	left -= l.Fills + min(upstreamFiles(cfg), left*3/8)
	if l.Connections+l.Requests > left {
		// In the proportion in which they were set.
		share := float64(left) / float64(set.Connections+set.Requests)
		l.Connections = max(1, int(share*float64(set.Connections)))
		l.Requests = max(1, int(share*float64(set.Requests)))
	}
	log.Warn("the limits were lowered to the files that this process may open; raise that number (LimitNOFILE of systemd, ulimit -n)",
		zap.Int("open_files", files), zap.Int("open_files_wanted", need),
		zap.Int("limits.connections", l.Connections), zap.Int("limits.requests", l.Requests), zap.Int("limits.fills", l.Fills))
}

// showLimits puts the limits in force into the metrics.
func showLimits(l configs.Limits, files int, m *metrics.Metrics) {
	for name, value := range map[string]float64{
		"connections": float64(l.Connections), "connections_per_address": float64(l.PerAddress()),
		"requests": float64(l.Requests), "fills": float64(l.Fills), "manifests": float64(l.Manifests), "files": float64(files),
	} {
		m.Limits.WithLabelValues(name).Set(value)
	}
}
