package app

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// build says what this binary was made of.
type build struct {
	// Version is a release's, "v0.3.1", or "devel".
	Version string `json:"version"`
	// Revision is the commit; empty where the build did not know it.
	Revision string `json:"revision,omitempty"`
	// Modified is set where the tree differed from that commit.
	Modified bool `json:"modified,omitempty"`
	// Time is when the commit was made, RFC 3339.
	Time string `json:"time,omitempty"`
	// Go is the version of the toolchain.
	Go string `json:"go"`
}

// readBuildInfo gives what the toolchain has put into the binary.
func readBuildInfo() *debug.BuildInfo {
	b, ok := debug.ReadBuildInfo()
	if !ok {
		return &debug.BuildInfo{GoVersion: runtime.Version()}
	}
	return b
}

func buildOf(info *debug.BuildInfo) build {
	b := build{Version: info.Main.Version, Go: info.GoVersion}
	if b.Version == "" || b.Version == "(devel)" {
		b.Version = "devel"
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.time":
			b.Time = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

// String gives it on a line.
func (b build) String() string {
	s := b.Version
	if b.Revision != "" {
		s += " commit " + b.Revision[:min(12, len(b.Revision))]
		if b.Modified {
			s += " (modified)"
		}
	}
	if b.Time != "" {
		s += " of " + b.Time
	}
	return fmt.Sprintf("%s %s %s/%s", s, b.Go, runtime.GOOS, runtime.GOARCH)
}

func newVersion(p *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version and what it was built from",
		Args:  cobra.NoArgs,
		RunE: does(func(cmd *cobra.Command, _ []string) error {
			b := buildOf(readBuildInfo())
			if asJSON, err := asJSON(cmd); err != nil || asJSON {
				return errors.Join(err, writeJSON(p.stdout, b))
			}
			_, err := fmt.Fprintf(p.stdout, "entrepot %s\n", b)
			return err
		}),
	}
	addOutputFlag(cmd.Flags())
	return cmd
}
