package operator

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// Bounds of what is read of an answer, in bytes.
const (
	maxDocument = 256 << 20
	maxProblem  = 64 << 10
)

// Client uses the API. It may be used by several goroutines.
type Client struct {
	// HTTP sends the requests.
	HTTP *http.Client
	// Base is the URL of the listener, without a slash at its end.
	Base string
	// most is how many bytes a document may have that is read as a whole; zero is
	// maxDocument.
	most int64
}

// Get reads the JSON document at name into v. A problem that the API tells of is an
// *Error.
func (c *Client) Get(ctx context.Context, name string, query url.Values, v any) error {
	return c.document(ctx, http.MethodGet, name, query, nil, v)
}

// Post sends request, where it is not nil, as JSON, and reads the answer into v.
func (c *Client) Post(ctx context.Context, name string, query url.Values, request, v any) error {
	return c.document(ctx, http.MethodPost, name, query, request, v)
}

func (c *Client) document(ctx context.Context, method, name string, query url.Values, request, v any) error {
	resp, err := c.send(ctx, method, name, query, request)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	most := cmp.Or(c.most, maxDocument)
	body := &io.LimitedReader{R: resp.Body, N: most}
	if err := json.NewDecoder(body).Decode(v); err != nil && body.N <= 0 {
		return fmt.Errorf("the answer of %s is longer than the %d MiB that are read of one: ask for less", c.where(name), most>>20)
	} else if err != nil {
		return fmt.Errorf("%s answered what is not understood: %w", c.where(name), err)
	}
	return nil
}

// Run asks for what takes long: request, where it is not nil, is sent as JSON, each
// event is given to event, and the result is read into result; each may be nil.
// What event gives ends it.
func (c *Client) Run(ctx context.Context, name string, query url.Values, request any, event func(json.RawMessage) error, result any) error {
	resp, err := c.send(ctx, http.MethodPost, name, query, request)
	if err != nil {
		return err
	}
	return c.lines(name, resp.Body, event, result)
}

// Upload sends the bytes of body, and reads the answer as Run does.
func (c *Client) Upload(ctx context.Context, name string, query url.Values, body io.Reader, event func(json.RawMessage) error, result any) error {
	resp, err := c.do(ctx, http.MethodPost, name, query, body, "application/octet-stream")
	if err != nil {
		return err
	}
	return c.lines(name, resp.Body, event, result)
}

// Download asks for bytes. The caller closes the body, which at its end gives the
// problem that broke the answer off, an *Error, instead of io.EOF. request is as in Run.
func (c *Client) Download(ctx context.Context, name string, query url.Values, request any) (*http.Response, error) {
	resp, err := c.send(ctx, http.MethodPost, name, query, request)
	if err == nil {
		resp.Body = &download{ReadCloser: resp.Body, resp: resp}
	}
	return resp, err
}

// download is the body of an answer behind which a problem may stand.
type download struct {
	io.ReadCloser
	resp *http.Response
}

func (d *download) Read(b []byte) (int, error) {
	n, err := d.ReadCloser.Read(b)
	if text := d.resp.Trailer.Get(trailer); err == io.EOF && text != "" {
		e := &Error{}
		if json.Unmarshal([]byte(text), e) != nil {
			e = Errorf(http.StatusInternalServerError, "the answer was broken off")
		}
		return n, e
	}
	return n, err
}

// lines reads a long answer, and closes it.
func (c *Client) lines(name string, body io.ReadCloser, event func(json.RawMessage) error, result any) error {
	defer body.Close()
	dec := json.NewDecoder(body)
	for {
		var line struct {
			Event, Result json.RawMessage
			Error         *Error
		}
		err := dec.Decode(&line)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return fmt.Errorf("%s ended before it was done", c.where(name))
		case err != nil:
			return fmt.Errorf("%s answered what is not understood: %w", c.where(name), err)
		case line.Error != nil:
			return line.Error
		case line.Event != nil:
			if event == nil {
				continue
			}
			if err := event(line.Event); err != nil {
				return err
			}
		default:
			if result == nil || line.Result == nil {
				return nil
			}
			return json.Unmarshal(line.Result, result)
		}
	}
}

func (c *Client) send(ctx context.Context, method, name string, query url.Values, request any) (*http.Response, error) {
	if request == nil {
		return c.do(ctx, method, name, query, nil, "")
	}
	b, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	return c.do(ctx, method, name, query, bytes.NewReader(b), "application/json")
}

// do sends a request, and makes an error of every answer but 200.
func (c *Client) do(ctx context.Context, method, name string, query url.Values, body io.Reader, contentType string) (*http.Response, error) {
	u := c.Base + Prefix + name
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, body)
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := c.HTTP.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxProblem))
	if err != nil {
		return nil, err
	}
	e := &Error{}
	if json.Unmarshal(b, e) != nil || e.Detail == "" {
		e = Errorf(resp.StatusCode, "%s says %s: %s", c.where(name), resp.Status, strings.TrimSpace(string(b)))
	}
	return nil, e
}

func (c *Client) where(name string) string { return c.Base + Prefix + name }
