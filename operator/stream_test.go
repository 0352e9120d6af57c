package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// upload answers with how many bytes came, after an event of them, or with an error.
func upload(after error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		writeLines(w, r, func(_ context.Context, r *http.Request, tell Tell) (any, error) {
			b, err := io.ReadAll(r.Body)
			if err != nil {
				return nil, err
			}
			if r.Header.Get("Content-Type") != "application/octet-stream" {
				return nil, invalidf("it came as %s", r.Header.Get("Content-Type"))
			}
			if err := tell(Progress{Unit: "bytes", Done: len(b)}); err != nil {
				return nil, err
			}
			return len(b), after
		})
	}
}

func TestAnUploadIsAnsweredByEventsAndAResult(t *testing.T) {
	c, came, events := serving(t, upload(nil)), 0, 0
	err := c.Upload(t.Context(), "x", nil, strings.NewReader("four"), func(json.RawMessage) error { events++; return nil }, &came)
	if err != nil || came != 4 || events != 1 {
		t.Errorf("want 4 after an event, got %d after %d, %v", came, events, err)
	}
}

func TestAnErrorBehindEventsIsTold(t *testing.T) {
	c := serving(t, upload(fmt.Errorf("take it in: %w", Errorf(http.StatusConflict, "it is held"))))
	var e *Error
	if err := c.Upload(t.Context(), "x", nil, strings.NewReader("four"), nil, nil); !errors.As(err, &e) || e.Status != http.StatusConflict || e.Detail != "take it in: it is held" {
		t.Errorf("want the problem, with what was done, got %#v, %v", e, err)
	}
}

func TestAnEventThatIsRefusedEndsARun(t *testing.T) {
	enough, ended := errors.New("enough"), make(chan error, 1)
	c := serving(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		writeLines(w, r, func(ctx context.Context, _ *http.Request, tell Tell) (any, error) {
			defer func() { ended <- context.Cause(ctx) }()
			if err := tell(Progress{Unit: "blobs"}); err != nil {
				return nil, err
			}
			<-ctx.Done()
			return nil, ctx.Err()
		})
	}))
	if err := c.Run(t.Context(), "x", nil, nil, func(json.RawMessage) error { return enough }, nil); !errors.Is(err, enough) {
		t.Errorf("want what the event was refused with, got %v", err)
	}
	if err := <-ended; err == nil {
		t.Error("the handler went on although nobody listened")
	}
}

func TestADownloadThatBreaksOffTellsWhy(t *testing.T) {
	gone := errors.New("the disk is gone")
	for name, c := range map[string]struct {
		sent string
		err  error
	}{
		"whole":          {"all of it", nil},
		"after bytes":    {"half", gone},
		"before a byte":  {"", gone},
		"nothing at all": {"", nil},
	} {
		t.Run(name, func(t *testing.T) {
			client := serving(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				writeBytes(w, r, "application/octet-stream", func(_ context.Context, _ *http.Request, w io.Writer) error {
					if c.sent != "" {
						if _, err := io.WriteString(w, c.sent); err != nil {
							return err
						}
					}
					return c.err
				})
			}))
			var got []byte
			resp, err := client.Download(t.Context(), "x", nil, nil)
			if err == nil {
				got, err = io.ReadAll(resp.Body)
				resp.Body.Close()
			}
			var e *Error
			switch {
			case string(got) != c.sent:
				t.Errorf("want %q, got %q", c.sent, got)
			case c.err == nil && err != nil:
				t.Errorf("want no error, got %v", err)
			case c.err != nil && (!errors.As(err, &e) || e.Status != http.StatusInternalServerError || e.Detail != c.err.Error()):
				t.Errorf("want %v as a problem, got %v", c.err, err)
			}
		})
	}
}

func TestAnAnswerThatIsNoneIsTold(t *testing.T) {
	for body, want := range map[string]string{"": "not understood", "<html>": "not understood", `{"a":`: "not understood"} {
		c := serving(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) }))
		if err := c.Get(t.Context(), "status", nil, &Status{}); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "/api/v1/status") {
			t.Errorf("%q: want %q and of what, got %v", body, want, err)
		}
	}
	c := serving(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "not yours", http.StatusForbidden) }))
	var e *Error
	if err := c.Get(t.Context(), "status", nil, &Status{}); !errors.As(err, &e) || e.Status != http.StatusForbidden || !strings.Contains(e.Detail, "not yours") {
		t.Errorf("want the text as a problem, got %v", err)
	}
}
