package hub

import "net/http"

// RefuseHead makes requests of a HEAD kind fail with status, while the GET of the
// same thing works: a registry that does not implement HEAD, or implements it wrongly.
func RefuseHead(k Kind, status int) Fault { return Answer(k, status) }

// IngressPage is a 404 by what stands in front of a registry whose backend is gone.
type IngressPage struct{ ContentType, Body string }

// The 404 pages of common ingresses. None of them is a registry's word.
var (
	TraefikPage  = IngressPage{"text/plain; charset=utf-8", "404 page not found\n"}
	NginxPage    = IngressPage{"text/html", "<html>\r\n<head><title>404 Not Found</title></head>\r\n<body>\r\n<center><h1>404 Not Found</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"}
	DefaultPage  = IngressPage{"text/plain; charset=utf-8", "default backend - 404"}
	KongPage     = IngressPage{"application/json; charset=utf-8", `{"message":"no Route matched with those values"}`}
	EnvoyPage    = IngressPage{} // istio sends no body
	UntypedPage  = IngressPage{"", "404 page not found\n"}
	MislabelPage = IngressPage{"application/json", "<!DOCTYPE html><title>404</title>"}
)

// Ingress answers requests of a kind as an ingress without a backend does. With Any
// the token server and the CDN, which stand elsewhere, are not affected.
func Ingress(k Kind, p IngressPage) Fault {
	f := Fault{kind: k, status: http.StatusNotFound, body: p.Body, header: http.Header{
		"Docker-Distribution-Api-Version": nil, "Content-Type": nil,
	}}
	if p.ContentType != "" {
		f.header["Content-Type"] = []string{p.ContentType}
	}
	if k == Any {
		f.kind = registryKinds
	}
	return f
}

// BareNotFound is the 404 of a registry that sends no error document: the header that
// names the registry API is its only sign.
func BareNotFound(k Kind) Fault {
	return Fault{kind: k, status: http.StatusNotFound, header: http.Header{"Content-Type": nil}}
}

// registryKinds is whatever the registry's own listener is asked.
const registryKinds Kind = "registry"
