package operator

// Routes lists what the API answers: "GET /api/v1/status".
func (a *API) Routes() []string {
	var list []string
	for _, r := range a.routes {
		list = append(list, r.method+" "+r.path)
	}
	return list
}
