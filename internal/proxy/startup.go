package proxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// opening says what a client's startup packet asks for.
type opening int

const (
	wantSession    opening = iota // a session in clear text
	wantEncryption                // SSLRequest or GSSENCRequest: answered with one byte
	wantCancel                    // a cancel request
	wantTLS                       // TLS without asking first (sslnegotiation=direct)
)

// packet is one startup packet, or the first bytes of a TLS handshake, as received.
type packet struct {
	opening
	raw []byte
}

const (
	codeCancel = 80877102
	codeSSL    = 80877103
	codeGSS    = 80877104

	packetHeader = 8     // length and code, both big endian
	maxPacket    = 10000 // PostgreSQL's own limit
	minCancel    = 16
	maxCancel    = 12 + 256 // a secret has up to 256 bytes since protocol 3.2
	tlsHandshake = 0x16     // first byte of a ClientHello; as a packet's first byte it would mean 350 MB
)

var errMalformed = errors.New("not a PostgreSQL startup packet")

// readPacket reads exactly one startup packet and nothing behind it.
func readPacket(r io.Reader) (packet, error) {
	head := make([]byte, packetHeader)
	if _, err := io.ReadFull(r, head); err != nil {
		return packet{}, fmt.Errorf("read the startup packet: %w", err)
	}
	if head[0] == tlsHandshake {
		return packet{wantTLS, head}, nil
	}
	n, code := binary.BigEndian.Uint32(head), binary.BigEndian.Uint32(head[4:])
	p := packet{raw: head}
	least, most := uint32(packetHeader), uint32(maxPacket)
	switch code {
	case codeSSL, codeGSS:
		p.opening, most = wantEncryption, packetHeader
	case codeCancel:
		p.opening, least, most = wantCancel, minCancel, maxCancel
	}
	if n < least || n > most {
		return packet{}, fmt.Errorf("%w: code %d with a length of %d bytes", errMalformed, code, n)
	}
	p.raw = append(p.raw, make([]byte, n-packetHeader)...)
	if _, err := io.ReadFull(r, p.raw[packetHeader:]); err != nil {
		return packet{}, fmt.Errorf("read the startup packet: %w", err)
	}
	return p, nil
}

// SQLSTATEs that are sent or understood.
const (
	stateNotNow   = "57P03" // cannot_connect_now
	stateTooMany  = "53300" // too_many_connections
	stateNotLetIn = "28000" // invalid_authorization_specification: no entry in pg_hba.conf
)

// errorResponse is the message with which PostgreSQL refuses a session.
func errorResponse(state, message, hint string) []byte {
	var body []byte
	for _, f := range []struct {
		key  byte
		text string
	}{{'S', "FATAL"}, {'V', "FATAL"}, {'C', state}, {'M', message}, {'H', hint}} {
		if f.text != "" {
			body = append(append(append(body, f.key), f.text...), 0)
		}
	}
	body = append(body, 0)
	out := binary.BigEndian.AppendUint32([]byte{'E'}, uint32(len(body)+4))
	return append(out, body...)
}

const (
	answerHeader = 5 // type and length
	maxRefusal   = 16 << 10
)

// answer is a server's first message, as far as it was read: the whole of a refusal, the header of anything else.
type answer struct {
	raw            []byte
	state, message string // of a refusal
}

// readAnswer reads a server's first message after a startup packet in clear text.
func readAnswer(r io.Reader) (answer, error) {
	head := make([]byte, answerHeader)
	if _, err := io.ReadFull(r, head); err != nil {
		return answer{}, fmt.Errorf("read the server's answer: %w", err)
	}
	n := binary.BigEndian.Uint32(head[1:])
	if head[0] != 'E' || n < 4 || n > maxRefusal {
		return answer{raw: head}, nil
	}
	a := answer{raw: append(head, make([]byte, n-4)...)}
	if _, err := io.ReadFull(r, a.raw[answerHeader:]); err != nil {
		return answer{}, fmt.Errorf("read the server's answer: %w", err)
	}
	a.state, a.message = fields(a.raw[answerHeader:])
	return a, nil
}

// fields finds SQLSTATE and message in the body of an ErrorResponse.
func fields(body []byte) (state, message string) {
	for len(body) > 1 && body[0] != 0 {
		end := 1
		for end < len(body) && body[end] != 0 {
			end++
		}
		switch text := string(body[1:end]); body[0] {
		case 'C':
			state = text
		case 'M':
			message = text
		}
		body = body[min(end+1, len(body)):]
	}
	return state, message
}
