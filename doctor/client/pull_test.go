package client

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestAnImageThatMayHaveBeenThereIsNotRemoved: where the client does not say in time.
func TestAnImageThatMayHaveBeenThereIsNotRemoved(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		here    []string
		others  time.Duration
		want    bool
		removed bool
	}{
		"there":     {here: []string{"-c", "exit 0"}, want: true},
		"not there": {here: []string{"-c", "exit 1"}, removed: true},
		"not told":  {here: []string{"-c", "sleep 60"}, others: 100 * time.Millisecond, want: true},
	} {
		t.Run(name, func(t *testing.T) {
			mark := filepath.Join(dir, filepath.Base(t.Name()))
			p := Puller{Program: "sh", here: c.here, pull: []string{"-c", "exit 0"}, remove: []string{"-c", "echo {image} > " + mark}, others: c.others}
			pulled := p.Pull(t.Context(), "docker.io/library/app:1")
			if _, err := os.Stat(mark); pulled.Err != nil || pulled.Here != c.want || (err == nil) != c.removed {
				t.Errorf("pulled %+v, removed %v", pulled, err == nil)
			}
		})
	}
}
