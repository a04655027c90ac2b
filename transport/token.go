package transport

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"time"
)

// ErrTokenDamaged says that a token was not copied whole.
var ErrTokenDamaged = errors.New("token damaged: copy it whole")

// ErrTokenExpired says that a token's time is over by this host's clock.
var ErrTokenExpired = errors.New("token expired")

const (
	tokenPrefix = "mt1."
	tokenMax    = 2048 // characters; a real one has about 200
	secretLen   = 32   // bytes
)

var (
	tokenEncoding = base64.RawURLEncoding
	// A CRC finds every burst up to 32 bits, hence every wrong character and every swap of neighbours, for certain.
	tokenTable = crc32.MakeTable(crc32.Castagnoli)
)

// Token lets a host join. Whether it may still be used (expiry, number of uses) is decided by the cluster's state under its ID; the
// expiry in it only allows an early message.
type Token struct {
	ClusterID     string
	CAFingerprint string // as CA.Fingerprint
	ID            string // public: shown in lists and logs
	Secret        string // base64 of 32 random bytes; the state keeps HashSecret of it
	Expires       int64  // Unix seconds; 0 means never
	Server        string // optional: an address to join at
}

// NewToken draws an ID and a secret.
func NewToken(clusterID, caFingerprint string, expires time.Time, server string) Token {
	var id [4]byte
	var secret [secretLen]byte
	rand.Read(id[:]) // never fails
	rand.Read(secret[:])
	t := Token{ClusterID: clusterID, CAFingerprint: caFingerprint, ID: hex.EncodeToString(id[:]), Secret: tokenEncoding.EncodeToString(secret[:]), Server: server}
	if !expires.IsZero() {
		t.Expires = expires.Unix()
	}
	return t
}

// HashSecret is what the replicated state keeps. The secret has 256 random bits, so a plain hash is enough.
func HashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// SecretMatches compares a secret with a hash in constant time.
func SecretMatches(secret, hash string) bool {
	return subtle.ConstantTimeCompare([]byte(HashSecret(secret)), []byte(hash)) == 1
}

// String names the token without its secret.
func (t Token) String() string { return fmt.Sprintf("token %s of cluster %s", t.ID, t.ClusterID) }

// GoString hides the secret from %#v as well.
func (t Token) GoString() string { return t.String() }

// Expired reports whether the token's time is over at now.
func (t Token) Expired(now time.Time) bool { return t.Expires != 0 && now.Unix() >= t.Expires }

// Encode writes the form that people copy: "mt1." and URL-safe characters, the secret included.
func (t Token) Encode() (string, error) {
	if err := errors.Join(checkID("cluster id", t.ClusterID), checkID("token id", t.ID)); err != nil {
		return "", fmt.Errorf("encode token: %w", err)
	}
	fp, err := parseFingerprint(t.CAFingerprint)
	if err != nil {
		return "", fmt.Errorf("encode token: %w", err)
	}
	secret, err := tokenEncoding.DecodeString(t.Secret)
	if err != nil || len(secret) != secretLen {
		return "", errors.New("encode token: secret is not 32 bytes in base64")
	}
	if t.Expires < 0 || len(t.Server) > 255 {
		return "", errors.New("encode token: negative expiry or server address above 255 characters")
	}
	b := append(fp, secret...)
	b = binary.AppendUvarint(b, uint64(t.Expires))
	for _, s := range []string{t.ClusterID, t.ID, t.Server} {
		b = append(b, byte(len(s)))
		b = append(b, s...)
	}
	// Little-endian, so that a burst across the border is found for certain too.
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, tokenTable))
	return tokenPrefix + tokenEncoding.EncodeToString(b), nil
}

// ParseToken reads what Encode wrote. A token that is not whole gives ErrTokenDamaged.
func ParseToken(s string) (Token, error) {
	s = strings.TrimSpace(s)
	body, ok := strings.CutPrefix(s, tokenPrefix)
	if !ok {
		return Token{}, fmt.Errorf("read token: it must begin with %s: %w", tokenPrefix, ErrTokenDamaged)
	}
	if len(s) > tokenMax {
		return Token{}, fmt.Errorf("read token: %d characters are too many: %w", len(s), ErrTokenDamaged)
	}
	b, err := tokenEncoding.DecodeString(body)
	if err != nil || len(b) < crc32.Size {
		return Token{}, fmt.Errorf("read token: %w", ErrTokenDamaged)
	}
	t, ok := decodeToken(b[:len(b)-crc32.Size])
	if !ok {
		return Token{}, fmt.Errorf("read token: %w", ErrTokenDamaged)
	}
	// Written again it must be the same, checksum and all: one token has one spelling.
	if again, err := t.Encode(); err != nil || again != s {
		return Token{}, fmt.Errorf("read token: checksum: %w", ErrTokenDamaged)
	}
	return t, nil
}

func decodeToken(b []byte) (t Token, ok bool) {
	if len(b) < sha256.Size+secretLen {
		return t, false
	}
	t.CAFingerprint = "sha256:" + hex.EncodeToString(b[:sha256.Size])
	b = b[sha256.Size:]
	t.Secret = tokenEncoding.EncodeToString(b[:secretLen])
	b = b[secretLen:]
	exp, n := binary.Uvarint(b)
	if n <= 0 || exp > 1<<62 {
		return t, false
	}
	t.Expires, b = int64(exp), b[n:]
	for _, f := range []*string{&t.ClusterID, &t.ID, &t.Server} {
		if len(b) < 1 || len(b) < 1+int(b[0]) {
			return t, false
		}
		*f, b = string(b[1:1+int(b[0])]), b[1+int(b[0]):]
	}
	return t, len(b) == 0
}

func parseFingerprint(s string) ([]byte, error) {
	h, ok := strings.CutPrefix(s, "sha256:")
	b, err := hex.DecodeString(h)
	if !ok || err != nil || len(b) != sha256.Size || h != hex.EncodeToString(b) {
		return nil, fmt.Errorf("fingerprint %q: want sha256: and 64 hexadecimal digits", s)
	}
	return b, nil
}
