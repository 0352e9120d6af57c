package operator

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/entrepot-dev/entrepot/cache"
)

// images answers with the cache.Images that ?pattern= takes; with ?pinned=true, of those
// that are pinned. It writes each image as it finds it, so that an answer may have any
// number of them; one that breaks off is no JSON, and has the problem in its trailer.
func (a *API) images(ctx context.Context, r *http.Request, w io.Writer) error {
	f := cache.ImagesFilter{Pattern: r.URL.Query().Get("pattern")}
	var err error
	if f.Pinned, err = flag(r, "pinned"); err != nil {
		return err
	}
	out := bufio.NewWriterSize(w, 32<<10)
	between := "{\n  \"images\": ["
	size, err := a.Cache.EachImage(ctx, f, func(i *cache.Image) error {
		b, err := json.MarshalIndent(i, "    ", "  ")
		if err != nil {
			return err
		}
		_, _ = out.WriteString(between + "\n    ") // Write gives its error, too
		between = ","
		_, err = out.Write(b)
		return err
	})
	if err != nil {
		return err
	}
	end := "\n  ]"
	if between != "," {
		end = between + "]"
	}
	_, _ = fmt.Fprintf(out, "%s,\n  \"size\": %d\n}\n", end, size) // Flush gives its error, too
	return out.Flush()
}

// Images asks for the images that a pattern takes, or those of them that are pinned, and
// calls fn for each; of which the error ends it. It gives what they have on disk in bytes,
// each content counted once. It holds one image at a time.
func (c *Client) Images(ctx context.Context, pattern string, pinned bool, fn func(cache.Image) error) (size int64, err error) {
	body, err := c.ImagesJSON(ctx, pattern, pinned)
	if err != nil {
		return 0, err
	}
	defer body.Close()
	dec := json.NewDecoder(body)
	unclear := func(err error) error {
		if e := (*Error)(nil); errors.As(err, &e) {
			return err
		}
		return fmt.Errorf("%s answered what is not understood: %w", c.where("images"), err)
	}
	for _, want := range []json.Token{json.Delim('{'), "images", json.Delim('[')} {
		if got, err := dec.Token(); err != nil || got != want {
			return 0, unclear(errors.Join(err, fmt.Errorf("%v stands where %v should", got, want)))
		}
	}
	for dec.More() {
		var i cache.Image
		if err := dec.Decode(&i); err != nil {
			return 0, unclear(err)
		}
		if err := fn(i); err != nil {
			return 0, err
		}
	}
	for _, want := range []json.Token{json.Delim(']'), "size"} {
		if got, err := dec.Token(); err != nil || got != want {
			return 0, unclear(errors.Join(err, fmt.Errorf("%v stands where %v should", got, want)))
		}
	}
	if err := dec.Decode(&size); err != nil {
		return 0, unclear(err)
	}
	return size, nil
}

// ImagesJSON is Images that gives the answer as it comes: the JSON of a cache.Images. The
// caller closes it. At its end it gives the problem that broke it off, as Download does.
func (c *Client) ImagesJSON(ctx context.Context, pattern string, pinned bool) (io.ReadCloser, error) {
	query := url.Values{"pattern": {pattern}, "pinned": {strconv.FormatBool(pinned)}}
	resp, err := c.do(ctx, http.MethodGet, "images", query, nil, "")
	if err != nil {
		return nil, err
	}
	return &download{ReadCloser: resp.Body, resp: resp}, nil
}

// flag reads a parameter that is true or false; false where it is not there.
func flag(r *http.Request, name string) (bool, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return false, nil
	}
	v, err := strconv.ParseBool(text)
	if err != nil {
		return false, invalidf("%s is true or false", name)
	}
	return v, nil
}
