package server

import "testing"

func TestIfNoneMatchNamesTheTag(t *testing.T) {
	for v, want := range map[string]bool{
		`"sha256:a"`:             true,
		`sha256:a`:               true,
		`W/"sha256:a"`:           true,
		`"x", "sha256:a"`:        true,
		`"x",W/"y" , sha256:a`:   true,
		`*`:                      true,
		`"x", *`:                 true,
		`"sha256:ab"`:            false,
		`"sha256:a`:              false,
		`""`:                     false,
		`"`:                      false,
		`,,`:                     false,
		`w/"sha256:a"`:           false,
		`"sha256:A"`:             false,
		`"sha256:b" "sha256:a"`:  false,
		`W/W/"sha256:a"`:         false,
		` "sha256:a" `:           true,
		`"sha256:b","sha256:a",`: true,
	} {
		if got := namesTag([]byte(v), "sha256:a"); got != want {
			t.Errorf("namesTag(%s) = %v, want %v", v, got, want)
		}
	}
}

func FuzzIfNoneMatch(f *testing.F) {
	f.Add(`"a", W/"b", *`)
	f.Add(`,"`)
	f.Fuzz(func(t *testing.T, v string) {
		if namesTag([]byte(v), "\x00none") && v != "" {
			// Only a star, or the tag itself, may match it.
			for _, c := range []byte(v) {
				if c == '*' || c == 0 {
					return
				}
			}
			t.Errorf("%q names a tag that is not in it", v)
		}
	})
}
