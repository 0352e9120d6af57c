package configs

import (
	"fmt"
	"strconv"

	"github.com/docker/go-units"
)

// Bytes is a size. It is written as a whole number with a unit of 1024:
// "64MiB", "64M", "200GiB".
type Bytes int64

// binaryUnits are those that String writes, largest first.
var binaryUnits = []struct {
	name string
	size Bytes
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

// ParseBytes reads a size as people write it. Units are of 1024, also where
// they are written KB, MB or GB, as everywhere in Docker's own settings.
func ParseBytes(s string) (Bytes, error) {
	n, err := units.RAMInBytes(s)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%q is no size; write one such as 64MiB or 2GiB", s)
	}
	return Bytes(n), nil
}

// String gives the size exactly, in the largest unit that divides it.
func (b Bytes) String() string {
	for _, u := range binaryUnits {
		if b != 0 && b%u.size == 0 {
			return strconv.FormatInt(int64(b/u.size), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10) + "B"
}

// MarshalYAML writes the size as String does.
func (b Bytes) MarshalYAML() (any, error) { return plain(b.String()), nil }
