package doctor

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
)

// Environment checks that the proxy variables of this shell lead no client past the
// cache.
type Environment struct {
	// URL is where clients reach the cache.
	URL string
	// Proxy gives the proxy for a request, as http.ProxyFromEnvironment does.
	Proxy func(*http.Request) (*url.URL, error)
}

// Name is "proxy variables".
func (Environment) Name() string { return "proxy variables" }

// Look asks for the proxy of a request to the cache.
func (e Environment) Look(ctx context.Context) []Finding {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.URL+"/v2/", nil)
	if err != nil {
		return []Finding{{Status: Failure, Seen: fmt.Sprintf("%q is no URL", e.URL), Advice: "write http://cache:5000"}}
	}
	via, err := e.Proxy(req)
	switch {
	case err != nil:
		return []Finding{{Status: Warning, Seen: "HTTP_PROXY or HTTPS_PROXY is no URL", Advice: "write http://host:port"}}
	case via != nil:
		return []Finding{{Status: Warning, Seen: fmt.Sprintf("HTTP_PROXY or HTTPS_PROXY of this shell sends requests for the cache to %s", via.Host),
			Advice: fmt.Sprintf("add %s to NO_PROXY, in the environment of the clients' daemons as well", req.URL.Hostname())}}
	}
	return []Finding{{Status: OK, Seen: "none of this shell leads past the cache"}}
}
