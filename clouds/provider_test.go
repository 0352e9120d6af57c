package clouds

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// issuer gives out numbered logins that are good for life, unless it fails.
type issuer struct {
	calls atomic.Int64
	life  time.Duration
	slow  time.Duration
	fails atomic.Bool
}

func (i *issuer) fetch(ctx context.Context, scheme, host string) (Login, time.Time, error) {
	n := i.calls.Add(1)
	if i.slow > 0 {
		select {
		case <-ctx.Done():
			return Login{}, time.Time{}, ctx.Err()
		case <-time.After(i.slow):
		}
	}
	if i.fails.Load() {
		return Login{}, time.Time{}, errors.New("the cloud is down")
	}
	return Login{Username: "u", Password: fmt.Sprint(n)}, time.Now().Add(i.life), nil
}

func provider(t *testing.T, i *issuer) *Provider {
	p := newProvider(Azure, Options{}, i.fetch)
	t.Cleanup(func() { _ = p.Close() })
	return p
}

const registry = "one.azurecr.io"

func wantLogin(t *testing.T, p *Provider, password string) {
	t.Helper()
	got, err := p.Login(t.Context(), registry)
	if err != nil || got.Password != password {
		t.Errorf("want the login %s, got %q, %v", password, got.Password, err)
	}
}

func TestALoginIsRenewedBeforeItEndsWhileNobodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{life: 20 * time.Minute, slow: time.Second}
		p := provider(t, i)
		wantLogin(t, p, "1")
		time.Sleep(14 * time.Minute)
		wantLogin(t, p, "1")
		synctest.Wait()
		if n := i.calls.Load(); n != 1 {
			t.Fatalf("asked %d times before it is due, want 1", n)
		}
		time.Sleep(2 * time.Minute)
		began := time.Now()
		wantLogin(t, p, "1") // at once, though a renewal of a second begins
		if waited := time.Since(began); waited != 0 {
			t.Errorf("a request waited %s for the renewal", waited)
		}
		time.Sleep(2 * time.Second)
		wantLogin(t, p, "2")
		// One that has ended is not shown.
		time.Sleep(time.Hour)
		wantLogin(t, p, "3")
	})
}

func TestALoginOfTwelveHoursIsRenewedAfterOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := provider(t, &issuer{life: 12 * time.Hour})
		wantLogin(t, p, "1")
		time.Sleep(time.Hour)
		wantLogin(t, p, "1")
		synctest.Wait()
		wantLogin(t, p, "2")
	})
}

func TestALoginThatHasEndedByThisClockIsUsedForAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{life: -time.Hour}
		p := provider(t, i)
		for range 10 {
			wantLogin(t, p, "1")
			time.Sleep(time.Second)
		}
		if n := i.calls.Load(); n != 1 {
			t.Errorf("asked %d times, want 1", n)
		}
	})
}

func TestAllWhoAskAtATimeWaitForOneFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{life: time.Hour, slow: time.Second}
		p := provider(t, i)
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() { wantLogin(t, p, "1") })
		}
		// One who goes away does not end it for the others.
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := p.Login(ctx, registry); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("want the end of the context, got %v", err)
		}
		all.Wait()
		if n := i.calls.Load(); n != 1 {
			t.Errorf("asked %d times, want 1", n)
		}
	})
}

func TestAFailureIsRepeatedAfterGrowingPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{life: time.Hour}
		i.fails.Store(true)
		p := provider(t, i)
		began := time.Now()
		var at []int
		for range 400 {
			before := i.calls.Load()
			if _, err := p.Login(t.Context(), registry); err == nil || !strings.Contains(err.Error(), "the cloud is down") || !strings.Contains(err.Error(), registry) {
				t.Fatalf("want the failure and the host, got %v", err)
			}
			if i.calls.Load() != before {
				at = append(at, int(time.Since(began).Seconds()))
			}
			time.Sleep(time.Second)
		}
		if want := "[0 10 30 70 150 270 390]"; fmt.Sprint(at) != want {
			t.Errorf("want fetches at the seconds %s, got %v", want, at)
		}
		i.fails.Store(false)
		time.Sleep(mostRest)
		wantLogin(t, p, "8")
	})
}

func TestTheLastLoginIsUsedUntilItsEndWhileTheCloudFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{life: 20 * time.Minute}
		p := provider(t, i)
		wantLogin(t, p, "1")
		i.fails.Store(true)
		time.Sleep(16 * time.Minute)
		for range 3 {
			wantLogin(t, p, "1")
			synctest.Wait()
			time.Sleep(time.Minute)
		}
		time.Sleep(time.Minute)
		if _, err := p.Login(t.Context(), registry); err == nil {
			t.Error("a login is used after its end")
		}
	})
}

func TestCloseEndsAFetchThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := provider(t, &issuer{slow: time.Hour})
		done := make(chan error)
		go func() { _, err := p.Login(t.Context(), registry); done <- err }()
		synctest.Wait()
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; err == nil {
			t.Error("want an error")
		}
		if _, err := p.Login(t.Context(), registry); err == nil {
			t.Error("want an error after Close")
		}
	})
}

func TestAFetchThatHangsIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := provider(t, &issuer{slow: time.Hour})
		began := time.Now()
		if _, err := p.Login(t.Context(), registry); err == nil || time.Since(began) != flightTime {
			t.Errorf("want an error after %s, got %v after %s", flightTime, err, time.Since(began))
		}
	})
}

func TestOnlyRegistriesOfTheCloudHaveItsLogin(t *testing.T) {
	for c, hosts := range map[Cloud]map[string]bool{
		ECR: {
			"123456789012.dkr.ecr.eu-west-1.amazonaws.com": true, "123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com": true,
			"123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn": true, "123456789012.dkr-ecr.us-east-1.on.aws": true,
			"123456789012.dkr-ecr-fips.us-east-1.on.aws": true, "123456789012.dkr.ecr.eusc-de-east-1.amazonaws.eu": true,
			"public.ecr.aws": true, "123456789012.dkr.ecr.eu-west-1.amazonaws.com:443": true,
			"123456789012.dkr.ecr.eu-west-1.amazonaws.com:8443": false, "12345.dkr.ecr.eu-west-1.amazonaws.com": false,
			"123456789012.dkr.ecr.eu-west-1.amazonaws.com.example.com": false, "123456789012.dkr.ecr.eu-west-1.example.com": false,
			"s3.eu-west-1.amazonaws.com": false, "registry-1.docker.io": false, "": false,
			"x.123456789012.dkr.ecr.eu-west-1.amazonaws.com": false,
		},
		Google: {"gcr.io": true, "eu.gcr.io": true, "europe-docker.pkg.dev": true, "pkg.dev": false, "notgcr.io": false, "gcr.io.example.com": false, "gcr.io:5000": false},
		Azure:  {"one.azurecr.io": true, "one.azurecr.cn": true, "one.eastus.geo.azurecr.io": true, "azurecr.io": false, "oneazurecr.io": false, "one.azurecr.io.example.com": false},
	} {
		i := &issuer{life: time.Hour}
		p := newProvider(c, Options{Hosts: []string{"listed.example", "http://127.0.0.9:5000"}}, i.fetch)
		defer p.Close()
		hosts["listed.example"], hosts["127.0.0.9:5000"], hosts["listed.example:5000"] = true, true, false
		for host, want := range hosts {
			got, err := p.Login(t.Context(), host)
			if err != nil || (got != Login{}) != want {
				t.Errorf("%s at %q: want a login: %t, got %t, %v", c, host, want, got != Login{}, err)
			}
		}
	}
}

func TestPatternsThatACloudsRegistriesMatch(t *testing.T) {
	for pattern, want := range map[string]bool{
		"*.dkr.ecr.*.amazonaws.com": true, "*.dkr.ecr.eu-west-1.amazonaws.com": true, "1234*.dkr.ecr.eu-*.amazonaws.com": true,
		"123456789012.dkr.ecr.*.amazonaws.com": true, "*.dkr-ecr.*.on.aws": true,
		"*.amazonaws.com": false, "*.dkr.ecr.*.example.com": false, "*.s3.*.amazonaws.com": false,
	} {
		if got := ECR.Has(pattern); got != want {
			t.Errorf("%s: want %t, got %t", pattern, want, got)
		}
	}
}

func TestNoFormatShowsALogin(t *testing.T) {
	l, k := Login{Username: "AWS", Password: "hunter2", IdentityToken: "hunter2"}, awsKeys{"id", "hunter2", "hunter2"}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if text := fmt.Sprintf(verb+verb, l, k); strings.Contains(text, "hunter2") {
			t.Errorf("%s shows the secret: %s", verb, text)
		}
	}
}
