package operator

import "net/http"

// Reloaded are the keys of the configuration that have changed, "upstreams.docker.io.tags".
type Reloaded struct {
	// Changed are in force.
	Changed []string `json:"changed"`
	// NeedRestart will be in force with the next start.
	NeedRestart []string `json:"needRestart"`
}

// reload reads the configuration again.
func (a *API) reload(*http.Request) (any, error) {
	if a.Reload == nil {
		return nil, Errorf(http.StatusConflict, "nothing is served that could be told of another configuration")
	}
	r, err := a.Reload()
	if err != nil {
		return nil, Errorf(http.StatusConflict, "%s", err.Error())
	}
	// Lists, also where they are empty.
	r.Changed, r.NeedRestart = append([]string{}, r.Changed...), append([]string{}, r.NeedRestart...)
	return r, nil
}
