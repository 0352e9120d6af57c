package main

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/crypto/bcrypt"
)

// login is how clients are known; empty where nobody asks who they are.
type login string

const (
	password login = "password"
	token    login = "token"
)

// secret is the password and the token.
const secret = "a-secret-of-the-bench-that-is-long-enough"

// authorization is the header that clients send.
func (l login) authorization() string {
	switch l {
	case password:
		return "Basic " + base64.StdEncoding.EncodeToString([]byte("bench:"+secret))
	case token:
		return "Bearer " + secret
	}
	return ""
}

// configuration is the key auth of Entrepot; what it names is written into dir.
func (l login) configuration(dir string) (map[string]any, error) {
	if l == token {
		sum := sha256.Sum256([]byte(secret))
		return map[string]any{"tokens": []map[string]any{{"name": "bench", "sha256": hex.EncodeToString(sum[:])}}}, nil
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(secret), bcrypt.DefaultCost)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "htpasswd")
	return map[string]any{"htpasswd": file}, os.WriteFile(file, fmt.Appendf(nil, "bench:%s\n", hash), 0o600)
}
