package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"matriarch/internal/api"
	"matriarch/internal/config"
)

// TestAPIAccess: what the configuration says of the HTTP port reaches it.
func TestAPIAccess(t *testing.T) {
	net := netip.MustParsePrefix
	for name, tc := range map[string]struct {
		cfg  config.API
		want api.Access
	}{
		"default": {config.Default().API, api.Access{Rate: 200}},
		"closed":  {config.API{Reads: "closed"}, api.Access{ReadsClosed: true}},
		"writes":  {config.API{Writes: "on"}, api.Access{Writes: true}},
		"rate":    {config.API{RateLimit: 7}, api.Access{Rate: 7}},
		"allow":   {config.API{Allow: []string{"10.0.0.7", "10.1.0.0/16"}}, api.Access{Allow: []netip.Prefix{net("10.0.0.7/32"), net("10.1.0.0/16")}}},
	} {
		got, err := apiAccess(tc.cfg)
		if err != nil || got.Credentials == nil {
			t.Errorf("%s: no credentials or %v", name, err)
		}
		got.Credentials = nil
		if !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
	}
	if _, err := apiAccess(config.API{Allow: []string{"anybody"}}); err == nil || !strings.Contains(err.Error(), "api.allow") {
		t.Errorf("error %v", err)
	}
}

// TestAPICredentials: the files are read anew each time, and none that is too weak lets anybody in.
func TestAPICredentials(t *testing.T) {
	dir := t.TempDir()
	cfg := config.API{Username: "admin", TokenFile: filepath.Join(dir, "token"), PasswordFile: filepath.Join(dir, "password")}
	const token, next = "a-token-of-twenty-characters", "another-of-twenty-characters"
	a, err := apiAccess(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, token, password string
		want                  api.Credentials
		says                  string // of the error
	}{
		{"both", token + "\n", "s3cret\n", api.Credentials{Token: token, User: "admin", Password: "s3cret"}, ""},
		{"replaced", next, "other", api.Credentials{Token: next, User: "admin", Password: "other"}, ""},
		{"a short token", "short", "other", api.Credentials{}, "at least 20"},
		{"an empty token", "\n", "other", api.Credentials{}, "api.token_file: the file is empty"},
		{"an empty password", token, "", api.Credentials{}, "api.password_file: the file is empty"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for file, text := range map[string]string{cfg.TokenFile: tc.token, cfg.PasswordFile: tc.password} {
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := a.Credentials()
			if tc.says != "" {
				if err == nil || !strings.Contains(err.Error(), tc.says) {
					t.Fatalf("error %v, want %q", err, tc.says)
				}
				return
			}
			if err != nil || got != tc.want {
				t.Errorf("%+v, %v; want %+v", got, err, tc.want)
			}
		})
	}
	if err := os.Remove(cfg.TokenFile); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Credentials(); err == nil {
		t.Error("no token file, no error")
	}
}
