package operator

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// serving gives a client of h.
func serving(t *testing.T, h http.Handler) *Client {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return &Client{HTTP: s.Client(), Base: s.URL}
}

func TestProblemsAreToldAsSuch(t *testing.T) {
	c := serving(t, New(Options{}))
	for name, status := range map[string]int{"none": http.StatusNotFound, "reload": http.StatusConflict} {
		var e *Error
		if err := c.Post(t.Context(), name, nil, nil, nil); !errors.As(err, &e) || e.Status != status || e.Detail == "" {
			t.Errorf("%s: want a problem with status %d, got %v", name, status, err)
		}
	}
	var e *Error
	if err := c.Get(t.Context(), "explain", nil, nil); !errors.As(err, &e) || e.Status != http.StatusBadRequest || !strings.Contains(e.Detail, "reference=") {
		t.Errorf("want what to ask for, got %v", err)
	}
}

func TestReloadTellsListsAlsoWhereTheyAreEmpty(t *testing.T) {
	c := serving(t, New(Options{Reload: func() (Reloaded, error) { return Reloaded{}, nil }}))
	var got map[string]json.RawMessage
	if err := c.Post(t.Context(), "reload", nil, nil, &got); err != nil || string(got["changed"]) != "[]" || string(got["needRestart"]) != "[]" {
		t.Errorf("want two empty lists, got %s, %v", got, err)
	}
}

func TestALongAnswerIsReadToItsResult(t *testing.T) {
	for name, c := range map[string]struct{ body, want string }{
		"whole":       {`{"event":1}` + "\n" + `{"event":2}` + "\n" + `{"result":3}`, ""},
		"failed":      {`{"event":1}` + "\n" + `{"event":2}` + "\n" + `{"error":{"status":500,"title":"x","detail":"the disk is gone"}}`, "the disk is gone"},
		"cut":         {`{"event":1}` + "\n" + `{"event":2}` + "\n", "ended before it was done"},
		"cut in half": {`{"event":1}` + "\n" + `{"event":2}` + "\n" + `{"resu`, "ended before it was done"},
	} {
		t.Run(name, func(t *testing.T) {
			client := serving(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(c.body)) }))
			events, result := 0, 0
			err := client.Run(t.Context(), "x", nil, nil, func(json.RawMessage) error { events++; return nil }, &result)
			if events != 2 {
				t.Errorf("want 2 events, got %d", events)
			}
			switch {
			case c.want == "" && (err != nil || result != 3):
				t.Errorf("want 3, got %d, %v", result, err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("want %q, got %v", c.want, err)
			}
		})
	}
}

// TestADownloadTellsWhyItWasBrokenOff also holds that one that fails before its first
// byte is a problem as others are.
func TestADownloadTellsWhyItWasBrokenOff(t *testing.T) {
	for name, c := range map[string]struct {
		bytes string
		err   error
		want  string
	}{
		"whole":          {"all of it", nil, ""},
		"broken off":     {"some of it", Errorf(http.StatusConflict, "the layer is\ngone: »fetch it«"), "the layer is\ngone: »fetch it«"},
		"of the disk":    {"some of it", errors.New("input/output error"), "input/output error"},
		"not even begun": {"", Errorf(http.StatusNotFound, "there is no such image"), "there is no such image"},
	} {
		t.Run(name, func(t *testing.T) {
			client := serving(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				writeBytes(w, r, "application/octet-stream", func(_ context.Context, _ *http.Request, w io.Writer) error {
					if c.bytes != "" {
						if _, err := io.WriteString(w, c.bytes); err != nil {
							t.Error(err)
						}
					}
					return c.err
				})
			}))
			resp, err := client.Download(t.Context(), "x", nil, nil)
			var got []byte
			if err == nil {
				got, err = io.ReadAll(resp.Body)
				resp.Body.Close()
			}
			if string(got) != c.bytes {
				t.Errorf("want %q, got %q", c.bytes, got)
			}
			var e *Error
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (!errors.As(err, &e) || e.Detail != c.want):
				t.Errorf("want %q, got %v", c.want, err)
			}
		})
	}
}
