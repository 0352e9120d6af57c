package configs

import (
	"strings"
	"testing"
	"time"
)

func TestDurationsMayBeInDays(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"30s": 30 * time.Second, "1h30m": 90 * time.Minute, "0s": 0, "90d": 90 * 24 * time.Hour, "1d12h": 36 * time.Hour, "0d": 0, "106751d": 106751 * 24 * time.Hour, "-1m": -time.Minute,
	} {
		if got, err := ParseDuration(text); err != nil || got != want {
			t.Errorf("ParseDuration(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "d", "1", "-1d", "1.5d", "1d-1h", "1dd", "1d1", "106752d", "106751d24h", "99999999999999999999d", "12h1d", "a day"} {
		if got, err := ParseDuration(text); err == nil || !strings.Contains(err.Error(), "no duration") {
			t.Errorf("ParseDuration(%q) = %v, %v; want an error", text, got, err)
		}
	}
}
