package admin

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
)

// scrubber answers with a line of JSON now and then while all that is stored is
// verified. It ends when the client goes away. The last line is the result, or
// has an error.
type scrubber func(ctx context.Context, rate int64, told func(any) error) error

func (s scrubber) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var rate int64
	if text := r.URL.Query().Get("rate"); text != "" {
		var err error
		if rate, err = strconv.ParseInt(text, 10, 64); err != nil || rate < 0 {
			http.Error(w, "rate is in bytes a second, such as /scrub?rate=8388608", http.StatusBadRequest)
			return
		}
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	enc := json.NewEncoder(w)
	told := func(v any) error {
		if err := enc.Encode(v); err != nil {
			return err
		}
		return http.NewResponseController(w).Flush()
	}
	if err := s(r.Context(), rate, told); err != nil && r.Context().Err() == nil {
		_ = told(map[string]string{"error": err.Error()}) // the client is gone where this fails
	}
}
