package clouds

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	// azureResource is what tokens for registries are for, in all of Azure's clouds.
	azureResource = "https://containerregistry.azure.net"
	// azureUser goes with a refresh token (ACR, "Authenticate with an Azure container
	// registry").
	azureUser = "00000000-0000-0000-0000-000000000000"
)

// NewAzure returns the logins of Azure Container Registry: with the pod's workload identity,
// else the managed identity of the app or the machine. clientID is that of the identity; if it
// is "", AZURE_CLIENT_ID, else the only identity that there is.
func NewAzure(o Options, clientID string) *Provider {
	a := &azure{newCaller(o.UserAgent), o.Env, clientID}
	return newProvider(Azure, o, a.login)
}

type azure struct {
	*caller
	env      func(string) string
	clientID string
}

// login exchanges a token of Microsoft Entra for a refresh token of the registry (ACR,
// "AAD-OAuth"). Only the registry itself is shown the token.
func (a *azure) login(ctx context.Context, scheme, host string) (Login, time.Time, error) {
	access, err := a.access(ctx)
	if err != nil {
		return Login{}, time.Time{}, err
	}
	form := url.Values{"grant_type": {"access_token"}, "service": {host}, "access_token": {access}}
	if tenant := a.env("AZURE_TENANT_ID"); tenant != "" {
		form.Set("tenant", tenant)
	}
	const what = "the registry's token exchange"
	raw, err := a.do(ctx, call{what: what, client: a.api, method: http.MethodPost, url: scheme + "://" + host + "/oauth2/exchange",
		header: map[string]string{"Content-Type": "application/x-www-form-urlencoded"}, body: form.Encode(), secrets: []string{access},
		advise: func(status int, _ string) string {
			if status == http.StatusUnauthorized || status == http.StatusForbidden {
				return "give the identity the role AcrPull on this registry"
			}
			return ""
		}})
	if err != nil {
		return Login{}, time.Time{}, err
	}
	var doc struct {
		Token string `json:"refresh_token"`
	}
	if err := readJSON(what, raw, &doc); err != nil {
		return Login{}, time.Time{}, err
	}
	return Login{Username: azureUser, IdentityToken: doc.Token}, expiry(doc.Token), usable(what, doc.Token)
}

// access gets a token of Microsoft Entra for registries.
func (a *azure) access(ctx context.Context) (string, error) {
	id := first(a.clientID, a.env("AZURE_CLIENT_ID"))
	if a.env("AZURE_FEDERATED_TOKEN_FILE") != "" {
		return a.workload(ctx, id)
	}
	c := call{what: "the instance metadata service", client: a.local, method: http.MethodGet, header: map[string]string{"Metadata": "true"}}
	const remedy = "assign a managed identity to this machine, and set azure.client_id if it has several; in AKS, enable workload identity for this pod"
	q := url.Values{"api-version": {"2018-02-01"}, "resource": {azureResource}}
	if id != "" {
		q.Set("client_id", id)
	}
	if at, secret := a.env("IDENTITY_ENDPOINT"), a.env("IDENTITY_HEADER"); at != "" && secret != "" {
		// App Service and Container Apps.
		q.Set("api-version", "2019-08-01")
		c.what, c.url, c.header, c.secrets = "the app's identity endpoint", at, map[string]string{"X-IDENTITY-HEADER": secret}, []string{secret}
	} else {
		c.url = first(a.env("AZURE_POD_IDENTITY_AUTHORITY_HOST"), "http://169.254.169.254") + "/metadata/identity/oauth2/token"
	}
	c.url += "?" + q.Encode()
	c.advise = func(status int, _ string) string {
		if status >= 400 && status < 500 && status != http.StatusTooManyRequests {
			return remedy
		}
		return ""
	}
	token, _, err := a.accessToken(ctx, c)
	if answered := (*answerError)(nil); err != nil && !errors.As(err, &answered) {
		err = fmt.Errorf("%w; %s", err, remedy)
	}
	return token, err
}

// workload exchanges the pod's token (Microsoft identity platform, "OAuth 2.0 client
// credentials flow": access token request with a federated credential).
func (a *azure) workload(ctx context.Context, id string) (string, error) {
	tenant := a.env("AZURE_TENANT_ID")
	if id == "" || tenant == "" {
		return "", errors.New("AZURE_FEDERATED_TOKEN_FILE is set, and AZURE_CLIENT_ID or AZURE_TENANT_ID is not; the workload identity webhook sets all three")
	}
	assertion, err := secretFile("AZURE_FEDERATED_TOKEN_FILE", a.env("AZURE_FEDERATED_TOKEN_FILE"))
	if err != nil {
		return "", err
	}
	at := first(a.env("AZURE_AUTHORITY_HOST"), "https://login.microsoftonline.com") + "/" + url.PathEscape(tenant) + "/oauth2/v2.0/token"
	if err := secure(at); err != nil {
		return "", err
	}
	token, _, err := a.accessToken(ctx, call{what: "Microsoft Entra", client: a.api, method: http.MethodPost, url: at,
		header: map[string]string{"Content-Type": "application/x-www-form-urlencoded"},
		body: url.Values{"grant_type": {"client_credentials"}, "client_id": {id}, "scope": {azureResource + "/.default"},
			"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}, "client_assertion": {assertion}}.Encode(),
		secrets: []string{assertion},
		advise: func(status int, _ string) string {
			if status == http.StatusBadRequest || status == http.StatusUnauthorized {
				return "check AZURE_CLIENT_ID, AZURE_TENANT_ID, and that the identity has a federated credential for this cluster and service account"
			}
			return ""
		}})
	return token, err
}

// expiry returns when a JWT says that it ends, the zero time if it doesn't. The signature is
// not verified: the time says when to renew the token, nothing else.
func expiry(token string) time.Time {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}
	}
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	var claims struct {
		Expires float64 `json:"exp"`
	}
	if err != nil || json.Unmarshal(raw, &claims) != nil || claims.Expires <= 0 || claims.Expires > 1e11 {
		return time.Time{}
	}
	return time.Unix(int64(claims.Expires), 0)
}
