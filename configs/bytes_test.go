package configs

import "testing"

func TestSizesAreReadAndWrittenAlike(t *testing.T) {
	for _, c := range []struct {
		text  string
		size  Bytes
		shown string
	}{
		{"0", 0, "0B"},
		{"1", 1, "1B"},
		{"1025", 1025, "1025B"},
		{"64MiB", 64 << 20, "64MiB"},
		{"64M", 64 << 20, "64MiB"},
		{"64MB", 64 << 20, "64MiB"},
		{"64 mb", 64 << 20, "64MiB"},
		{"1.5GiB", 3 << 29, "1536MiB"},
		{"2TiB", 2 << 40, "2TiB"},
	} {
		got, err := ParseBytes(c.text)
		if err != nil || got != c.size {
			t.Errorf("ParseBytes(%q): want %d, got %d, %v", c.text, c.size, got, err)
		}
		if got.String() != c.shown {
			t.Errorf("Bytes(%d): want %s, got %s", got, c.shown, got)
		}
		if again, err := ParseBytes(got.String()); err != nil || again != got {
			t.Errorf("ParseBytes(%q): want %d, got %d, %v", got.String(), got, again, err)
		}
	}
}

func TestWhatIsNoSizeIsRefused(t *testing.T) {
	for _, text := range []string{"", "much", "-1", "-64MiB", "64XiB", "1e30", "99999999TiB", "80%"} {
		if got, err := ParseBytes(text); err == nil {
			t.Errorf("ParseBytes(%q): want an error, got %d", text, got)
		}
	}
}

func FuzzParseBytesIsNeverNegative(f *testing.F) {
	f.Add("64MiB")
	f.Add("1e30")
	f.Add("NaN")
	f.Fuzz(func(t *testing.T, text string) {
		if got, err := ParseBytes(text); err == nil && got < 0 {
			t.Errorf("ParseBytes(%q) = %d", text, got)
		}
	})
}
