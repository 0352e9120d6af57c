package operator

import (
	_ "embed" // for description
	"net/http"
)

// description says in OpenAPI 3.1 what the API takes and answers. Its schemas are JSON
// Schema of 2020-12. Tests hold the handlers to it, and it to the handlers.
//
//go:embed openapi.yaml
var description []byte

// describe answers with the description.
func describe(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write(description) // the client is gone where this fails
}
