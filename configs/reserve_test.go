package configs

import "testing"

func TestReserveIsANumberOrAuto(t *testing.T) {
	for text, want := range map[string]Reserve{"auto": ReserveAuto, "0": 0, " 12 ": 12} {
		r, err := ParseReserve(text)
		if err != nil || r != want {
			t.Errorf("%q is %d, %v; want %d", text, r, err, want)
			continue
		}
		if again, err := ParseReserve(r.String()); err != nil || again != r {
			t.Errorf("%q is written as %q", text, r)
		}
	}
	for _, text := range []string{"", "-1", "many", "10%", "99999999999999999999"} {
		if r, err := ParseReserve(text); err == nil {
			t.Errorf("%q is taken for %s", text, r)
		}
	}
}
