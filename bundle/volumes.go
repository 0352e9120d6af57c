package bundle

import (
	"errors"
	"io"
	"os"
)

// volumes reads files as if they were one.
type volumes struct {
	names []string
	file  *os.File // nil between two
}

func (v *volumes) Read(b []byte) (int, error) {
	for {
		if v.file == nil {
			if len(v.names) == 0 {
				return 0, io.EOF
			}
			f, err := os.Open(v.names[0])
			if err != nil {
				return 0, err
			}
			v.file, v.names = f, v.names[1:]
		}
		n, err := v.file.Read(b)
		if !errors.Is(err, io.EOF) {
			return n, err
		}
		err = v.file.Close()
		v.file = nil
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// Close lets go of the files.
func (v *volumes) Close() error {
	if v.file == nil {
		return nil
	}
	return v.file.Close()
}
