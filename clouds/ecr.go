package clouds

import (
	"context"
	"encoding/base64"
	"errors"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"
)

// regionForm is the form of a region's name.
var regionForm = regexp.MustCompile(`^[a-z]+(-[a-z0-9]+)+$`)

// IsRegion reports whether name has the form of an AWS region.
func IsRegion(name string) bool { return regionForm.MatchString(name) }

// NewECR returns the logins of Amazon ECR and ECR Public. region is that of Options.Hosts, of
// which the name does not tell it.
func NewECR(o Options, region string) *Provider {
	e := &ecr{aws: aws{newCaller(o.UserAgent), o.Env}, region: region}
	return newProvider(ECR, o, e.login)
}

type ecr struct {
	aws
	region string
}

// ecrAPI is where logins for a host are had.
type ecrAPI struct {
	url, region, suffix string
	service, target     string
}

// api returns the API for a host: of its region, dual-stack or FIPS as its name is.
func (e *ecr) api(host string) ecrAPI {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if slices.Contains(ecrPublic, host) {
		return ecrAPI{url: "https://api.ecr-public.us-east-1.amazonaws.com", region: "us-east-1", suffix: "amazonaws.com",
			service: "ecr-public", target: "SpencerFrontendService.GetAuthorizationToken"}
	}
	a := ecrAPI{region: e.region, suffix: regionSuffix(e.region), service: "ecr", target: "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken"}
	name, domain := "api.ecr", a.suffix
	if m := ecrHost.FindStringSubmatch(host); m != nil {
		a.region, domain, a.suffix = m[2], m[3], m[3]
		switch domain {
		case "on.aws":
			name, domain, a.suffix = "ecr", "api.aws", regionSuffix(m[2])
		case "on.amazonwebservices.com.cn":
			name, domain, a.suffix = "ecr", "api.amazonwebservices.com.cn", regionSuffix(m[2])
		}
		if m[1] != "" {
			name = "ecr-fips"
		}
	}
	a.url = "https://" + name + "." + a.region + "." + domain
	return a
}

// login calls GetAuthorizationToken (Amazon ECR and ECR Public API References).
func (e *ecr) login(ctx context.Context, _, host string) (Login, time.Time, error) {
	api := e.api(host)
	keys, err := e.keys(ctx, api.region, api.suffix)
	if err != nil {
		return Login{}, time.Time{}, err
	}
	setting := "AWS_ENDPOINT_URL_" + strings.ToUpper(strings.ReplaceAll(api.service, "-", "_"))
	const what, body = "the ECR API", "{}"
	raw, err := e.do(ctx, call{
		what: what, client: e.caller.api, method: http.MethodPost, body: body,
		url:     first(e.env(setting), e.env("AWS_ENDPOINT_URL"), api.url) + "/",
		header:  map[string]string{"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": api.target},
		sign:    func(req *http.Request) { sign(req, body, keys, api.region, api.service, time.Now()) },
		secrets: []string{keys.secret, keys.session},
		advise:  adviseECR(api.service),
	})
	if err != nil {
		return Login{}, time.Time{}, err
	}
	type data struct {
		Token   string  `json:"authorizationToken"`
		Expires float64 `json:"expiresAt"`
	}
	var doc struct {
		Data []data `json:"authorizationData"`
	}
	var public struct {
		Data data `json:"authorizationData"`
	}
	if api.service == "ecr-public" {
		err = readJSON(what, raw, &public)
		doc.Data = []data{public.Data}
	} else {
		err = readJSON(what, raw, &doc)
	}
	if err != nil {
		return Login{}, time.Time{}, err
	}
	if len(doc.Data) == 0 {
		return Login{}, time.Time{}, errors.New(what + " gave an answer without a token")
	}
	pair, err := base64.StdEncoding.DecodeString(doc.Data[0].Token)
	user, password, found := strings.Cut(string(pair), ":")
	if err != nil || !found || user == "" {
		return Login{}, time.Time{}, errors.New(what + " gave a token that is no user and password")
	}
	if err := usable(what, password); err != nil {
		return Login{}, time.Time{}, err
	}
	var until time.Time
	if s := doc.Data[0].Expires; s > 0 && s < 1e11 {
		until = time.UnixMilli(int64(s * 1000))
	}
	return Login{Username: user, Password: password}, until, nil
}

func adviseECR(service string) func(status int, said string) string {
	return func(status int, said string) string {
		switch {
		case strings.Contains(said, "InvalidSignature"), strings.Contains(said, "RequestExpired"), strings.Contains(said, "Skewed"):
			return "check this machine's clock, and the secret key"
		case strings.Contains(said, "UnrecognizedClient"), strings.Contains(said, "ExpiredToken"):
			return "the AWS credentials are not, or no longer, good; check where they come from"
		case strings.Contains(said, "AccessDenied") && service == "ecr-public":
			return "allow the role ecr-public:GetAuthorizationToken and sts:GetServiceBearerToken"
		case strings.Contains(said, "AccessDenied"):
			return "allow the role ecr:GetAuthorizationToken"
		}
		return ""
	}
}
