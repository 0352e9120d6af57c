package configs

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

const day = 24 * time.Hour

// ParseDuration reads a duration as Go writes it, "1h30m", and days as well: "90d",
// "1d12h". A day has 24 hours.
func ParseDuration(s string) (time.Duration, error) {
	wrong := fmt.Errorf("%q is no duration; write one such as 30s, 12h or 90d", s)
	days, rest, ok := strings.Cut(s, "d")
	if !ok {
		d, err := time.ParseDuration(s)
		if err != nil {
			return 0, wrong
		}
		return d, nil
	}
	n, err := strconv.ParseUint(days, 10, 32)
	if err != nil || n > uint64(math.MaxInt64/day) {
		return 0, wrong
	}
	whole := time.Duration(n) * day // #nosec G115 -- bounded above
	if rest == "" {
		return whole, nil
	}
	part, err := time.ParseDuration(rest)
	if err != nil || part < 0 || whole+part < whole {
		return 0, wrong
	}
	return whole + part, nil
}
