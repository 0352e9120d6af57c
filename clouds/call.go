package clouds

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	// maxAnswer bounds what is read of an answer, maxSecretFile of a token file.
	maxAnswer     = 256 << 10
	maxSecretFile = 64 << 10
	// tries is how often one request is sent at most, callTime bounds each time.
	tries    = 3
	callTime = 8 * time.Second
)

// caller sends requests to a cloud's endpoints. It follows no redirect, for each request has
// something secret in it or in its answer.
type caller struct {
	agent string
	// api is for endpoints that a proxy may stand before, local for those of the machine.
	api, local *http.Client
}

func newCaller(agent string) *caller {
	client := func(proxy func(*http.Request) (*url.URL, error)) *http.Client {
		return &http.Client{
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport: &http.Transport{
				Proxy:               proxy,
				DialContext:         (&net.Dialer{Timeout: 3 * time.Second}).DialContext,
				TLSHandshakeTimeout: 5 * time.Second,
				DisableKeepAlives:   true, // hours pass between two requests
				ForceAttemptHTTP2:   true,
			},
		}
	}
	return &caller{agent: agent, api: client(http.ProxyFromEnvironment), local: client(nil)}
}

// call is one request to a cloud.
type call struct {
	// what names the endpoint in messages: "the STS endpoint".
	what   string
	client *http.Client
	method string
	url    string
	header map[string]string
	body   string
	// sign, if it is set, signs the request just before it is sent.
	sign func(*http.Request)
	// secrets are cut out of what the endpoint says.
	secrets []string
	// advise, if it is set, says what to do about an answer of that status.
	advise func(status int, said string) string
}

// answerError is an answer other than 200.
type answerError struct {
	at     string
	status int
	said   string
	advice string
}

func (e *answerError) Error() string {
	text := fmt.Sprintf("%s answered %d", e.at, e.status)
	if e.said != "" {
		text += ": " + e.said
	}
	if e.advice != "" {
		text += "; " + e.advice
	}
	return text
}

// do sends c, again after a pause if the endpoint is not reached, throttles or fails, and
// returns the body of its answer. The error names the endpoint and holds no secret.
func (s *caller) do(ctx context.Context, c call) ([]byte, error) {
	pause := backoff.ExponentialBackOff{InitialInterval: 200 * time.Millisecond, RandomizationFactor: 0.5, Multiplier: 3, MaxInterval: 2 * time.Second}
	pause.Reset()
	for left := tries - 1; ; left-- {
		body, again, err := s.once(ctx, c)
		if err == nil || !again || left == 0 {
			return body, err
		}
		timer := time.NewTimer(pause.NextBackOff())
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, err
		case <-timer.C:
		}
	}
}

// once sends c once. It returns also whether it is worth a repetition.
func (s *caller) once(ctx context.Context, c call) (body []byte, again bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, c.method, c.url, strings.NewReader(c.body))
	if err != nil || req.URL.Host == "" {
		return nil, false, fmt.Errorf("%s has an address that is no URL", c.what)
	}
	at := fmt.Sprintf("%s at %s", c.what, req.URL.Scheme+"://"+req.URL.Host+req.URL.EscapedPath())
	req.Header.Set("User-Agent", s.agent)
	for k, v := range c.header {
		req.Header.Set(k, v)
	}
	if c.sign != nil {
		c.sign(req)
	}
	res, err := c.client.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // the URL is named already
		}
		return nil, true, fmt.Errorf("%s can't be reached: %s", at, c.hide(err.Error()))
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, true, fmt.Errorf("%s broke off its answer", at)
	case len(raw) > maxAnswer:
		return nil, false, fmt.Errorf("%s answered with more than %d bytes", at, maxAnswer)
	case res.StatusCode == http.StatusOK:
		return raw, false, nil
	}
	e := &answerError{at: at, status: res.StatusCode, said: c.hide(said(raw))}
	switch {
	case c.advise != nil && c.advise(e.status, e.said) != "":
		e.advice = c.advise(e.status, e.said)
	case e.status >= 300 && e.status < 400:
		e.advice = "redirects are not followed"
	}
	return nil, e.status == http.StatusTooManyRequests || e.status >= 500 || strings.Contains(e.said, "Throttl"), e
}

// hide cuts the secrets of c out of text, and what looks like a signed token.
func (c call) hide(text string) string {
	for _, s := range c.secrets {
		if s != "" {
			text = strings.NewReplacer(s, "***", url.QueryEscape(s), "***").Replace(text)
		}
	}
	return signedToken.ReplaceAllString(text, "***")
}

var signedToken = regexp.MustCompile(`eyJ[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]*)*`)

// said returns what an endpoint's answer says of an error, in one of the forms that the
// clouds have: AWS's JSON and XML, OAuth2's, Google's and the registries' JSON. It is one
// line of printable text, "" if nothing can be read.
func said(raw []byte) string {
	var doc struct {
		Type        string `json:"__type"`
		Message     string `json:"message"` // "Message" too: names are read in any case
		Error       any    `json:"error"`
		Description string `json:"error_description"`
		Errors      []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	var tree struct {
		Code    string `xml:"Error>Code"`
		Message string `xml:"Error>Message"`
	}
	var parts []string
	if json.Unmarshal(raw, &doc) == nil {
		parts = []string{doc.Type, doc.Message}
		switch e := doc.Error.(type) {
		case string:
			parts = append(parts, e)
		case map[string]any:
			for _, k := range []string{"status", "message"} {
				if s, ok := e[k].(string); ok {
					parts = append(parts, s)
				}
			}
		}
		parts = append(parts, doc.Description)
		if len(doc.Errors) > 0 {
			parts = append(parts, doc.Errors[0].Code, doc.Errors[0].Message)
		}
	} else if xml.Unmarshal(raw, &tree) == nil {
		parts = []string{tree.Code, tree.Message}
	}
	var text []string
	for _, p := range parts {
		if p = clean(p); p != "" {
			text = append(text, p)
		}
	}
	return strings.Join(text, ": ")
}

// clean makes one short line of text that a stranger wrote.
func clean(text string) string {
	const most = 300
	text = strings.Join(strings.Fields(text), " ")
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, text)
	if len(text) > most {
		text = text[:most] + "..."
	}
	return text
}

// readJSON reads an endpoint's answer. Its error doesn't quote the answer.
func readJSON(what string, raw []byte, into any) error {
	if err := json.Unmarshal(bytes.TrimPrefix(raw, []byte("\ufeff")), into); err != nil {
		return fmt.Errorf("%s gave an answer that is not the documented JSON", what)
	}
	return nil
}

// usable returns an error if v can't be a secret in a header: it is empty, long, or has
// other characters than the printable ones of ASCII.
func usable(what, v string) error {
	if v == "" {
		return fmt.Errorf("%s gave an answer without a token", what)
	}
	for i := range len(v) {
		if v[i] <= ' ' || v[i] > '~' {
			return fmt.Errorf("%s gave a token with characters that can't be sent", what)
		}
	}
	return nil
}

// secretFile reads a token file, less the white space around it. setting is the variable
// that names it.
func secretFile(setting, path string) (string, error) {
	f, err := os.Open(path) // #nosec G304 -- the operator's environment names it
	if err != nil {
		return "", fmt.Errorf("read the file that %s names: %w", setting, err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	text := strings.TrimSpace(string(raw))
	switch {
	case err != nil:
		return "", fmt.Errorf("read the file that %s names: %w", setting, err)
	case len(raw) > maxSecretFile:
		return "", fmt.Errorf("%s names %s, which has more than %d bytes and is no token", setting, path, maxSecretFile)
	case text == "":
		return "", fmt.Errorf("%s names %s, which is empty", setting, path)
	}
	return text, nil
}
