package hub

import "slices"

// Uncounted answers GETs of manifests as Docker Hub answers those that it doesn't count:
// under LimitPulls they cost no pull, and carry no RateLimit headers.
func Uncounted() Fault { return Fault{kind: ManifestGet, uncounted: true} }

func isUncounted(met []*rule) bool {
	return slices.ContainsFunc(met, func(r *rule) bool { return r.uncounted })
}
