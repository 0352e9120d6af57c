package admin

import (
	"context"
	"encoding/json"
	"net/http"
)

// explainer answers what is here of a reference, as JSON.
type explainer func(ctx context.Context, reference string) (any, error)

func (e explainer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	reference := r.URL.Query().Get("reference")
	if reference == "" {
		http.Error(w, "name a reference: /explain?reference=docker.io/library/nginx:1.27", http.StatusBadRequest)
		return
	}
	v, err := e(r.Context(), reference)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v) // the client is gone where this fails
}
