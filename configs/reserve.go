package configs

import (
	"fmt"
	"strconv"
	"strings"
)

// Reserve is a number of pulls that are kept for images that aren't cached, or
// ReserveAuto.
type Reserve int

// ReserveAuto keeps as many as such images have needed lately. It is written "auto".
const ReserveAuto Reserve = -1

// ParseReserve reads a whole number from 0, or auto.
func ParseReserve(s string) (Reserve, error) {
	if s = strings.TrimSpace(s); s == "auto" {
		return ReserveAuto, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > 1_000_000_000 {
		return 0, fmt.Errorf("want a number of pulls from 0, or auto; got %q", s)
	}
	return Reserve(n), nil
}

// String returns the reserve as ParseReserve reads it.
func (r Reserve) String() string {
	if r == ReserveAuto {
		return "auto"
	}
	return strconv.Itoa(int(r))
}

// MarshalYAML writes the reserve as String does.
func (r Reserve) MarshalYAML() (any, error) { return plain(r.String()), nil }
