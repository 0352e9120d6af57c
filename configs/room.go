package configs

import (
	"fmt"
	"strconv"
	"strings"
)

// Room is a part of a file system. It is written as a size or as a share of the
// whole: "500GiB", "80%". Shares are negative here, so that the zero value is no
// room.
type Room int64

// Percent gives the share of a file system that n percent are.
func Percent(n int) Room { return Room(-n) }

// Share gives the percent of the file system; false where it is a size.
func (r Room) Share() (int, bool) { return int(-r), r < 0 }

// Size gives the size; zero where it is a share.
func (r Room) Size() Bytes { return Bytes(max(r, 0)) }

// ParseRoom reads a size, or a whole number of percent from 0 to 100.
func ParseRoom(s string) (Room, error) {
	if n, ok := strings.CutSuffix(strings.TrimSpace(s), "%"); ok {
		p, err := strconv.Atoi(strings.TrimSpace(n))
		if err != nil || p < 0 || p > 100 {
			return 0, fmt.Errorf("%q is no share of a file system; write a whole number from 0%% to 100%%", s)
		}
		return Percent(p), nil
	}
	b, err := ParseBytes(s)
	if err != nil {
		return 0, fmt.Errorf("%q is neither a size nor a share; write one such as 500GiB or 80%%", s)
	}
	return Room(b), nil
}

// String gives the room as ParseRoom reads it.
func (r Room) String() string {
	if p, ok := r.Share(); ok {
		return strconv.Itoa(p) + "%"
	}
	return r.Size().String()
}

// MarshalYAML writes the room as String does.
func (r Room) MarshalYAML() (any, error) { return plain(r.String()), nil }
