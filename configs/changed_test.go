package configs

import (
	"slices"
	"testing"
	"time"
)

func TestChangedTellsWhatARunningProcessTakesOver(t *testing.T) {
	before, after := Default(), Default()
	if now, later := Changed(before, after); len(now)+len(later) > 0 {
		t.Errorf("of two that are alike: %v, %v", now, later)
	}
	after.Listen = ":6000"
	after.Cache.Offline = true
	after.Cache.Memory *= 2
	after.Limits.IdleTimeout = time.Hour
	after.Upstreams["docker.io"].Tags = []TagRule{{Match: "*", TTL: time.Hour}}
	delete(after.Upstreams, "quay.io")
	after.Upstreams["new.test"] = after.Upstreams["ghcr.io"]
	now, later := Changed(before, after)
	if want := []string{"cache.offline", "upstreams.docker.io.tags", "upstreams.new.test", "upstreams.quay.io"}; !slices.Equal(now, want) {
		t.Errorf("now: want %v, got %v", want, now)
	}
	if want := []string{"cache.memory", "limits.idle_timeout", "listen"}; !slices.Equal(later, want) {
		t.Errorf("later: want %v, got %v", want, later)
	}
}

func TestEveryKeyThatIsTakenOverExists(t *testing.T) {
	for _, key := range live {
		if !slices.ContainsFunc(Keys(), func(k Key) bool { return k.Path == key || len(k.Path) > len(key) && k.Path[:len(key)+1] == key+"." }) {
			t.Errorf("there is no key %s", key)
		}
	}
}
