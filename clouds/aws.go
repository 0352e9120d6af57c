package clouds

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// aws finds credentials of AWS as its SDKs do, in their order: the environment, a web
// identity, the container's credentials, the role of the machine. The first source that is
// configured counts; if it fails, no other is tried. Files in ~/.aws are not read. Concurrent
// use is safe.
type aws struct {
	*caller
	env func(string) string
}

// noAWSKeys is the remedy if no source is there at all.
const noAWSKeys = "give this process an IAM role (EKS: a service account's role or Pod Identity; ECS: a task role; EC2: an instance profile, with a metadata hop limit of 2 for containers), or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"

// keys returns credentials; region and suffix say where the STS endpoint is. The error names
// the source that failed and the remedy, and holds no secret.
func (a *aws) keys(ctx context.Context, region, suffix string) (awsKeys, error) {
	k := awsKeys{a.env("AWS_ACCESS_KEY_ID"), a.env("AWS_SECRET_ACCESS_KEY"), a.env("AWS_SESSION_TOKEN")}
	switch {
	case k.id != "" && k.secret != "":
		return k, nil
	case k.id != "" || k.secret != "":
		return awsKeys{}, errors.New("of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY one is not set; set both or neither")
	case a.env("AWS_WEB_IDENTITY_TOKEN_FILE") != "":
		return a.webIdentity(ctx, region, suffix)
	case a.env("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") != "" || a.env("AWS_CONTAINER_CREDENTIALS_FULL_URI") != "":
		return a.container(ctx)
	case strings.EqualFold(a.env("AWS_EC2_METADATA_DISABLED"), "true"):
		return awsKeys{}, errors.New("there are no AWS credentials, and AWS_EC2_METADATA_DISABLED is set; " + noAWSKeys)
	}
	return a.instance(ctx)
}

// webIdentity exchanges a token of the cluster for a role's credentials: STS,
// AssumeRoleWithWebIdentity, at the endpoint of AWS_REGION or of the registry's region.
func (a *aws) webIdentity(ctx context.Context, region, suffix string) (awsKeys, error) {
	role := a.env("AWS_ROLE_ARN")
	if role == "" {
		return awsKeys{}, errors.New("AWS_WEB_IDENTITY_TOKEN_FILE is set and AWS_ROLE_ARN is not; set it to the role to assume")
	}
	token, err := secretFile("AWS_WEB_IDENTITY_TOKEN_FILE", a.env("AWS_WEB_IDENTITY_TOKEN_FILE"))
	if err != nil {
		return awsKeys{}, err
	}
	for _, name := range []string{"AWS_DEFAULT_REGION", "AWS_REGION"} {
		if r := a.env(name); r != "" {
			region, suffix = r, regionSuffix(r)
		}
	}
	if !regionForm.MatchString(region) {
		return awsKeys{}, errors.New("AWS_REGION is no region of AWS")
	}
	session := a.env("AWS_ROLE_SESSION_NAME")
	if session == "" {
		session = "entrepot"
	}
	const what = "the STS endpoint"
	raw, err := a.do(ctx, call{
		what: what, client: a.api, method: http.MethodPost,
		url:    first(a.env("AWS_ENDPOINT_URL_STS"), a.env("AWS_ENDPOINT_URL"), "https://sts."+region+"."+suffix) + "/",
		header: map[string]string{"Content-Type": "application/x-www-form-urlencoded"},
		body: url.Values{"Action": {"AssumeRoleWithWebIdentity"}, "Version": {"2011-06-15"}, "RoleArn": {role},
			"RoleSessionName": {session}, "WebIdentityToken": {token}}.Encode(),
		secrets: []string{token},
		advise: func(status int, _ string) string {
			if status >= 400 && status < 500 && status != http.StatusTooManyRequests {
				return "check that the trust policy of " + clean(role) + " names this cluster's OIDC provider and this service account"
			}
			return ""
		},
	})
	if err != nil {
		return awsKeys{}, err
	}
	var doc struct {
		ID      string `xml:"AssumeRoleWithWebIdentityResult>Credentials>AccessKeyId"`
		Secret  string `xml:"AssumeRoleWithWebIdentityResult>Credentials>SecretAccessKey"`
		Session string `xml:"AssumeRoleWithWebIdentityResult>Credentials>SessionToken"`
	}
	if xml.Unmarshal(raw, &doc) != nil {
		return awsKeys{}, errors.New(what + " gave an answer that is not the documented XML")
	}
	return checkKeys(what, awsKeys{doc.ID, doc.Secret, doc.Session})
}

// container asks the endpoint that ECS and EKS Pod Identity name in the environment (AWS SDKs
// and Tools Reference Guide, "Container credential provider"). Over plain http it asks the
// machine itself and the addresses of those two only.
func (a *aws) container(ctx context.Context) (awsKeys, error) {
	at := a.env("AWS_CONTAINER_CREDENTIALS_FULL_URI")
	if path := a.env("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"); path != "" {
		at = "http://169.254.170.2/" + strings.TrimPrefix(path, "/")
	}
	u, err := url.Parse(at)
	if err != nil || u.Scheme != "https" && (u.Scheme != "http" || !isMachine(u.Hostname())) {
		return awsKeys{}, errors.New("AWS_CONTAINER_CREDENTIALS_FULL_URI is neither https nor an address of this machine, of ECS or of EKS Pod Identity")
	}
	const what = "the container credentials endpoint"
	c := call{what: what, client: a.local, method: http.MethodGet, url: at, header: map[string]string{"Accept": "application/json"},
		advise: func(status int, _ string) string {
			if status >= 400 && status < 500 && status != http.StatusTooManyRequests {
				return "check the task's role, or the Pod Identity association of this service account"
			}
			return ""
		}}
	token := a.env("AWS_CONTAINER_AUTHORIZATION_TOKEN")
	if path := a.env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"); path != "" {
		if token, err = secretFile("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", path); err != nil {
			return awsKeys{}, err
		}
	}
	if token != "" {
		c.header["Authorization"], c.secrets = token, []string{token}
	}
	raw, err := a.do(ctx, c)
	if err != nil {
		return awsKeys{}, err
	}
	return readKeys(what, raw)
}

// isMachine reports whether the container's credentials may be asked for at host over plain
// http.
func isMachine(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip.IsLoopback() || host == "169.254.170.2" || host == "169.254.170.23" || ip.Equal(net.ParseIP("fd00:ec2::23"))
}

// instance asks the instance metadata service, version 2: for a token, for the name of the
// machine's role, for its credentials.
func (a *aws) instance(ctx context.Context) (awsKeys, error) {
	const what = "the instance metadata service"
	base := "http://169.254.169.254"
	if strings.EqualFold(a.env("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE"), "ipv6") {
		base = "http://[fd00:ec2::254]"
	}
	base = strings.TrimSuffix(first(a.env("AWS_EC2_METADATA_SERVICE_ENDPOINT"), base), "/") + "/latest/"
	advise := func(status int, _ string) string {
		if status < 500 && status != http.StatusTooManyRequests {
			return noAWSKeys
		}
		return ""
	}
	token, err := a.do(ctx, call{what: what, client: a.local, method: http.MethodPut, url: base + "api/token",
		header: map[string]string{"X-aws-ec2-metadata-token-ttl-seconds": "300"}, advise: advise})
	if err != nil {
		var answered *answerError
		if !errors.As(err, &answered) {
			err = fmt.Errorf("%w; %s", err, noAWSKeys)
		}
		return awsKeys{}, err
	}
	session := string(token)
	if err := usable(what, session); err != nil {
		return awsKeys{}, err
	}
	get := func(path string) ([]byte, error) {
		return a.do(ctx, call{what: what, client: a.local, method: http.MethodGet, url: base + "meta-data/iam/security-credentials/" + path,
			header: map[string]string{"X-aws-ec2-metadata-token": session}, secrets: []string{session}, advise: advise})
	}
	raw, err := get("")
	if err != nil {
		return awsKeys{}, err
	}
	role, _, _ := strings.Cut(strings.TrimSpace(string(raw)), "\n")
	if role = strings.TrimSpace(role); role == "" {
		return awsKeys{}, errors.New(what + " knows no role of this machine; " + noAWSKeys)
	}
	if raw, err = get(url.PathEscape(role)); err != nil {
		return awsKeys{}, err
	}
	return readKeys(what, raw)
}

// readKeys reads the JSON in which the container's endpoint and the metadata service give
// credentials.
func readKeys(what string, raw []byte) (awsKeys, error) {
	var doc struct{ Code, AccessKeyID, SecretAccessKey, Token string }
	if err := readJSON(what, raw, &doc); err != nil {
		return awsKeys{}, err
	}
	if doc.Code != "" && doc.Code != "Success" {
		return awsKeys{}, fmt.Errorf("%s has no credentials: %s", what, clean(doc.Code))
	}
	return checkKeys(what, awsKeys{doc.AccessKeyID, doc.SecretAccessKey, doc.Token})
}

func checkKeys(what string, k awsKeys) (awsKeys, error) {
	for _, v := range []string{k.id, k.secret, k.session} {
		if err := usable(what, v); err != nil {
			return awsKeys{}, err
		}
	}
	return k, nil
}

// regionSuffix returns the domain of the endpoints of a region.
func regionSuffix(region string) string {
	switch {
	case strings.HasPrefix(region, "cn-"):
		return "amazonaws.com.cn"
	case strings.HasPrefix(region, "eusc-"):
		return "amazonaws.eu"
	}
	return "amazonaws.com"
}

// first returns the first of the values that is not empty, without a slash at its end.
func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return strings.TrimSuffix(v, "/")
		}
	}
	return ""
}
