package app

import (
	"runtime/debug"
	"strings"
	"testing"
)

func TestVersionTellsWhatItWasBuiltFrom(t *testing.T) {
	info := &debug.BuildInfo{
		GoVersion: "go1.26.8",
		Main:      debug.Module{Version: "v1.2.3"},
		Settings: []debug.BuildSetting{
			{Key: "vcs.revision", Value: "0123456789abcdef0123"},
			{Key: "vcs.time", Value: "2026-11-24T00:00:00Z"},
			{Key: "vcs.modified", Value: "true"},
		},
	}
	got := buildOf(info).String()
	want := "v1.2.3 commit 0123456789ab (modified) of 2026-11-24T00:00:00Z go1.26.8 "
	if !strings.HasPrefix(got, want) {
		t.Errorf("want %q first, got %q", want, got)
	}
}

func TestVersionOfAPlainBuildIsDevel(t *testing.T) {
	for _, version := range []string{"", "(devel)"} {
		got := buildOf(&debug.BuildInfo{GoVersion: "go1.26.8", Main: debug.Module{Version: version}}).String()
		if !strings.HasPrefix(got, "devel go1.26.8 ") {
			t.Errorf("%q: got %q", version, got)
		}
	}
}
