package configs

import "testing"

func TestRoomIsASizeOrAShare(t *testing.T) {
	for _, c := range []struct {
		text, shown string
		size        Bytes
		percent     int
		share       bool
	}{
		{"500GB", "500GiB", 500 << 30, 0, false},
		{"1025", "1025B", 1025, 0, false},
		{"0", "0B", 0, 0, false},
		{"80%", "80%", 0, 80, true},
		{" 5 % ", "5%", 0, 5, true},
		{"100%", "100%", 0, 100, true},
		{"0%", "0B", 0, 0, false},
	} {
		r, err := ParseRoom(c.text)
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		percent, share := r.Share()
		if r.String() != c.shown || r.Size() != c.size || percent != c.percent && share || share != c.share {
			t.Errorf("%q: got %s, size %d, share %d%% %v; want %s, %d, %d%% %v", c.text, r, r.Size(), percent, share, c.shown, c.size, c.percent, c.share)
		}
		if again, err := ParseRoom(r.String()); err != nil || again != r {
			t.Errorf("%q: written as %s and read as %v, %v", c.text, r, again, err)
		}
	}
	for _, text := range []string{"", "%", "-1%", "101%", "80.5%", "much", "-1GB", "80%%", "1e9%"} {
		if r, err := ParseRoom(text); err == nil {
			t.Errorf("%q: got %s, want an error", text, r)
		}
	}
}
