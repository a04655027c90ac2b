package proxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func header(command, family byte, body []byte) []byte {
	out := append([]byte(signature), command, family)
	return append(binary.BigEndian.AppendUint16(out, uint16(len(body))), body...)
}

func tcp4(from string) []byte {
	ip := netip.MustParseAddr(from).As4()
	return append(ip[:], 10, 0, 0, 1, 0x30, 0x39, 0x15, 0x38)
}

func tcp6(from string) []byte {
	ip := netip.MustParseAddr(from).As16()
	return append(append(ip[:], make([]byte, 16)...), 0x30, 0x39, 0x15, 0x38)
}

func TestReadHeader(t *testing.T) {
	tlv := []byte{0x04, 0, 1, 0xff}
	for name, tc := range map[string]struct {
		in   []byte
		want string
		err  error
	}{
		"IPv4":                         {in: header(0x21, 0x11, tcp4("198.51.100.7")), want: "198.51.100.7:12345"},
		"IPv4 with more behind":        {in: header(0x21, 0x11, append(tcp4("198.51.100.7"), tlv...)), want: "198.51.100.7:12345"},
		"IPv6":                         {in: header(0x21, 0x21, tcp6("2001:db8::7")), want: "[2001:db8::7]:12345"},
		"IPv4 inside IPv6":             {in: header(0x21, 0x21, tcp6("::ffff:198.51.100.7")), want: "198.51.100.7:12345"},
		"health check":                 {in: header(0x20, 0x00, nil)},
		"health check with an address": {in: header(0x20, 0x11, tcp4("198.51.100.7"))},
		"unspecified":                  {in: header(0x21, 0x00, tlv)},
		"Unix socket":                  {in: header(0x21, 0x31, make([]byte, 216))},
		"UDP":                          {in: header(0x21, 0x12, tcp4("198.51.100.7")), err: errHeader},
		"addresses too short":          {in: header(0x21, 0x21, tcp4("198.51.100.7")), err: errHeader},
		"version 1":                    {in: []byte("PROXY TCP4 198.51.100.7 10.0.0.1 12345 5432\r\n"), err: errHeader},
		"version 3":                    {in: header(0x31, 0x11, tcp4("198.51.100.7")), err: errHeader},
		"unknown command":              {in: header(0x22, 0x11, tcp4("198.51.100.7")), err: errHeader},
		"too long":                     {in: header(0x21, 0x11, make([]byte, maxHeader+1)), err: errHeader},
		"cut in the middle":            {in: header(0x21, 0x11, tcp4("198.51.100.7"))[:20], err: io.ErrUnexpectedEOF},
		"nothing":                      {err: io.EOF},
	} {
		t.Run(name, func(t *testing.T) {
			r := bytes.NewReader(append(tc.in, "rest"...))
			if tc.err != nil && !errors.Is(tc.err, errHeader) {
				r = bytes.NewReader(tc.in)
			}
			got, err := readHeader(r)
			if !errors.Is(err, tc.err) {
				t.Fatalf("got %v, want %v", err, tc.err)
			}
			want, _ := netip.ParseAddrPort(tc.want)
			if got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			if rest, _ := io.ReadAll(r); tc.err == nil && string(rest) != "rest" {
				t.Errorf("%q is left behind the header", rest)
			}
		})
	}
}

func TestReadPacket(t *testing.T) {
	coded := func(length int, code uint32, body int) []byte {
		out := binary.BigEndian.AppendUint32(nil, uint32(length))
		return append(binary.BigEndian.AppendUint32(out, code), make([]byte, body)...)
	}
	for name, tc := range map[string]struct {
		in   []byte
		want opening
		read int
		err  error
	}{
		"session":             {in: startupPacket(), want: wantSession, read: len(startupPacket())},
		"TLS":                 {in: sslRequest, want: wantEncryption, read: 8},
		"GSSAPI":              {in: coded(8, codeGSS, 0), want: wantEncryption, read: 8},
		"cancel":              {in: cancelPacket(1), want: wantCancel, read: 16},
		"cancel, long secret": {in: coded(268, codeCancel, 260), want: wantCancel, read: 268},
		"direct TLS":          {in: []byte{0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc}, want: wantTLS, read: 8},
		"largest":             {in: coded(10000, 3<<16, 9992), want: wantSession, read: 10000},
		"too large":           {in: coded(10001, 3<<16, 9993), err: errMalformed},
		"too small":           {in: coded(7, 3<<16, 0), err: errMalformed},
		"long SSL request":    {in: coded(9, codeSSL, 1), err: errMalformed},
		"short cancel":        {in: coded(15, codeCancel, 7), err: errMalformed},
		"HTTP":                {in: []byte("GET / HTTP/1.0"), err: errMalformed},
		"cut":                 {in: startupPacket()[:12], err: io.ErrUnexpectedEOF},
	} {
		t.Run(name, func(t *testing.T) {
			in := tc.in
			if tc.err == nil {
				in = append(bytes.Clone(in), "rest"...)
			}
			p, err := readPacket(bytes.NewReader(in))
			if !errors.Is(err, tc.err) {
				t.Fatalf("got %v, want %v", err, tc.err)
			}
			if err == nil && (p.opening != tc.want || !bytes.Equal(p.raw, in[:tc.read])) {
				t.Errorf("got %d with %d bytes, want %d with %d", p.opening, len(p.raw), tc.want, tc.read)
			}
		})
	}
}

func TestErrorResponseReadsBack(t *testing.T) {
	b := errorResponse("57P03", "waited 10s", "try again")
	a, err := readAnswer(io.MultiReader(bytes.NewReader(b), strings.NewReader("rest")))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(answer{b, "57P03", "waited 10s"}, a, cmp.AllowUnexported(answer{})); diff != "" {
		t.Error(diff)
	}
}

func FuzzReadHeader(f *testing.F) {
	f.Add(header(0x21, 0x11, tcp4("198.51.100.7")))
	f.Add(header(0x21, 0x21, tcp6("2001:db8::7")))
	f.Add(header(0x20, 0x00, nil))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		addr, err := readHeader(r)
		if err != nil && addr.IsValid() {
			t.Error("an address of a header that was refused")
		}
		if used := len(in) - r.Len(); used > fixedHeader+maxHeader {
			t.Errorf("read %d bytes", used)
		}
	})
}

func FuzzReadPacket(f *testing.F) {
	f.Add(startupPacket())
	f.Add(cancelPacket(1))
	f.Add(sslRequest)
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		p, err := readPacket(r)
		if used := len(in) - r.Len(); err == nil && !bytes.Equal(p.raw, in[:used]) || used > maxPacket {
			t.Errorf("read %d bytes, kept %d", used, len(p.raw))
		}
	})
}

func FuzzReadAnswer(f *testing.F) {
	f.Add(errorResponse("57P03", "no", "hint"))
	f.Add(authOK)
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		a, err := readAnswer(r)
		if used := len(in) - r.Len(); err == nil && !bytes.Equal(a.raw, in[:used]) {
			t.Errorf("read %d bytes, kept %d: the client would miss some", used, len(a.raw))
		}
	})
}
