package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"matriarch/internal/api"
	"matriarch/internal/config"
)

// apiAccess is what the configuration says of the HTTP port.
func apiAccess(a config.API) (api.Access, error) {
	allow, err := api.ParseAllow(a.Allow)
	if err != nil {
		return api.Access{}, fmt.Errorf("api.allow: %w", err)
	}
	return api.Access{
		ReadsClosed: a.Reads == "closed", Writes: a.Writes == "on", Allow: allow, Rate: a.RateLimit,
		Credentials: func() (api.Credentials, error) { return apiCredentials(a) },
	}, nil
}

// shortestToken keeps a token from being guessed.
const shortestToken = 20

func apiCredentials(a config.API) (c api.Credentials, err error) {
	if a.TokenFile != "" {
		if c.Token, err = secretOf(a.TokenFile); err != nil {
			return c, fmt.Errorf("api.token_file: %w", err)
		}
		if len(c.Token) < shortestToken {
			return c, fmt.Errorf("api.token_file: the token has %d characters, at least %d are needed", len(c.Token), shortestToken)
		}
	}
	if a.PasswordFile != "" {
		c.User = a.Username
		if c.Password, err = secretOf(a.PasswordFile); err != nil {
			return c, fmt.Errorf("api.password_file: %w", err)
		}
	}
	return c, nil
}

func secretOf(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	s := strings.TrimSpace(string(b))
	if s == "" {
		return "", errors.New("the file is empty")
	}
	return s, nil
}
