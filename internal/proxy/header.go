package proxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
)

// signature begins every PROXY header of version 2.
const signature = "\r\n\r\n\x00\r\nQUIT\n"

const (
	fixedHeader = len(signature) + 4
	maxHeader   = 4096 // of what follows the fixed part: addresses take 36 bytes, a certificate's name some hundred
)

var errHeader = errors.New("malformed PROXY header")

// readHeader reads a PROXY header of version 2 and nothing behind it. The address is not valid where the header names none: health checks of
// the load balancer (LOCAL) and families other than IP.
func readHeader(r io.Reader) (netip.AddrPort, error) {
	var none netip.AddrPort
	head := make([]byte, fixedHeader)
	if _, err := io.ReadFull(r, head); err != nil {
		return none, fmt.Errorf("read the PROXY header: %w", err)
	}
	if string(head[:len(signature)]) != signature {
		return none, fmt.Errorf("%w: it does not begin with the signature of version 2", errHeader)
	}
	command, family, n := head[12], head[13], int(binary.BigEndian.Uint16(head[14:]))
	if command != 0x20 && command != 0x21 {
		return none, fmt.Errorf("%w: version and command %#02x", errHeader, command)
	}
	if n > maxHeader {
		return none, fmt.Errorf("%w: %d bytes, at most %d are taken", errHeader, n, maxHeader)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return none, fmt.Errorf("read the PROXY header: %w", err)
	}
	if command == 0x20 {
		return none, nil
	}
	size := map[byte]int{0x00: 0, 0x11: 4, 0x21: 16, 0x31: 0} // unspecified, TCP over IPv4, over IPv6, Unix stream
	ip, ok := size[family]
	if !ok || (ip > 0 && n < 2*ip+4) {
		return none, fmt.Errorf("%w: family %#02x with %d bytes of addresses", errHeader, family, n)
	}
	if ip == 0 {
		return none, nil
	}
	addr, _ := netip.AddrFromSlice(body[:ip])
	return netip.AddrPortFrom(addr.Unmap(), binary.BigEndian.Uint16(body[2*ip:])), nil
}
