package configs

import "testing"

func TestFamilyHasHostsAndNothingElse(t *testing.T) {
	const ecr = "*.dkr.ecr.*.amazonaws.com"
	for _, c := range []struct {
		pattern, host string
		want          bool
	}{
		{ecr, "123456789012.dkr.ecr.us-east-1.amazonaws.com", true},
		{"*.pkg.dev", "us-docker.pkg.dev", true},
		{"*-docker.pkg.dev", "us-docker.pkg.dev", true},
		{"*-docker.pkg.dev", "-docker.pkg.dev", false},
		{"*.azurecr.io", "team.azurecr.io", true},
		{"*.azurecr.io", "azurecr.io", false},
		{"*.azurecr.io", ".azurecr.io", false},
		{"*.azurecr.io", "a.b.azurecr.io", false},
		{"*.azurecr.io", "a.azurecr.io.evil.test", false},
		{"*.azurecr.io", "evil.test/.azurecr.io", false},
		{"*.azurecr.io", "evil.test#.azurecr.io", false},
		{"*.azurecr.io", "a@b.azurecr.io", false},
		{"*.azurecr.io", "a%2e.azurecr.io", false},
		{"*.azurecr.io", "a_b.azurecr.io", false},
		{"*.azurecr.io", "-a.azurecr.io", false},
		{"*.azurecr.io", "a.azurecr.io:443", false},
		{"*.azurecr.io", "A.azurecr.io", false}, // the router lowers it
		{"*.azurecr.io", "*.azurecr.io", false},
		{ecr, "1.dkr.ecr.us-east-1.amazonaws.com.cn", false},
		{ecr, "1.dkr.ecr.amazonaws.com", false},
	} {
		if got := FamilyHas(c.pattern, c.host); got != c.want {
			t.Errorf("%s has %q: %v, want %v", c.pattern, c.host, got, c.want)
		}
	}
}
