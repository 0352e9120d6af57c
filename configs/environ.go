package configs

import (
	"reflect"
	"regexp"
	"slices"
	"strings"
)

// envPrefix begins the name of every variable that is ours.
const envPrefix = "ENTREPOT_"

// foreignEnv are variables that begin like ours and are none: the path of the
// file itself, a switch of the tests, and what Kubernetes and Docker links put
// into the environment for a service that is called entrepot or entrepot-….
var foreignEnv = regexp.MustCompile(`^ENTREPOT_(CONFIG|REQUIRE_CLIENTS|` +
	`([A-Z0-9_]+_)?(SERVICE_(HOST|PORT)(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?)?))$`)

// envName gives the variable that sets the key of a path: in capitals, with _
// for everything that a variable's name can not hold.
func envName(path string) string {
	return envPrefix + strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, path)
}

// readEnviron lays the environment over the configuration. It sets single keys
// and adds no upstream: a variable's name does not tell where the registry's
// ends.
func (l *loader) readEnviron(environ []string) {
	environ = slices.Sorted(slices.Values(environ))
	byName := map[string][]Key{}
	var allNames []string
	for _, k := range keysIn(reflect.ValueOf(l.cfg).Elem(), "") {
		if k.Env != "" {
			byName[k.Env] = append(byName[k.Env], k)
			allNames = append(allNames, k.Env)
		}
	}
	for _, pair := range environ {
		name, value, _ := strings.Cut(pair, "=")
		if !strings.HasPrefix(name, envPrefix) || foreignEnv.MatchString(name) {
			continue
		}
		at := place{text: "environment variable " + name, line: lineEnviron}
		keys := byName[name]
		switch {
		case len(keys) == 0:
			l.report(at, "", "there is no such key; %s", envAdvice(name, allNames))
		case len(keys) > 1:
			l.report(at, "", "could be %s or %s; set it in the file", keys[0].Path, keys[1].Path)
		default:
			l.where[keys[0].Path] = at
			if err := setText(value, keys[0].value); err != nil {
				l.report(at, keys[0].Path, "%v", err)
			}
		}
	}
}

// envAdvice says what an unknown variable may have been meant to be.
func envAdvice(name string, all []string) string {
	s := suggest(name, all)
	ofUpstream := strings.HasPrefix(name, envPrefix+"UPSTREAMS_")
	// The names of upstreams are long, and those of others not far: what
	// differs by more than a slip is another upstream.
	if s != "" && (!ofUpstream || distance(name, s) <= 2) {
		return "did you mean " + s + "?"
	}
	if ofUpstream {
		return "upstreams are added in the file, and a variable can change only those that are there"
	}
	return "a variable is ENTREPOT_ and a key's path in capitals, such as ENTREPOT_CACHE_DIR"
}

// readFlags lays values from the command line over the configuration.
func (l *loader) readFlags(flags []Flag) {
	keys := keysIn(reflect.ValueOf(l.cfg).Elem(), "")
	for _, f := range flags {
		at := place{text: "flag " + f.Name, line: lineFlag}
		i := slices.IndexFunc(keys, func(k Key) bool { return k.Path == f.Key })
		if i < 0 {
			l.report(at, f.Key, "there is no such key")
			continue
		}
		l.where[f.Key] = at
		if err := setText(f.Value, keys[i].value); err != nil {
			l.report(at, f.Key, "%v", err)
		}
	}
}
