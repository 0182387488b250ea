package config

import (
	"bytes"
	"unicode/utf16"
	"unicode/utf8"
)

// The byte order marks that editors write at the beginning of a text file.
var (
	bomUTF8    = []byte{0xef, 0xbb, 0xbf}
	bomUTF16LE = []byte{0xff, 0xfe}
	bomUTF16BE = []byte{0xfe, 0xff}
)

// SecretText returns the secret in a file, or in the output of a command: the text
// without a byte order mark at its beginning and without line ends at its end. Text in
// UTF-16 with a byte order mark, which PowerShell writes, is converted to UTF-8,
// because a person who types the same password types UTF-8.
func SecretText(p []byte) []byte {
	switch {
	case bytes.HasPrefix(p, bomUTF8):
		p = p[len(bomUTF8):]
	case bytes.HasPrefix(p, bomUTF16LE):
		if text, ok := fromUTF16(p[2:], func(b []byte) uint16 { return uint16(b[0]) | uint16(b[1])<<8 }); ok {
			p = text
		}
	case bytes.HasPrefix(p, bomUTF16BE):
		if text, ok := fromUTF16(p[2:], func(b []byte) uint16 { return uint16(b[0])<<8 | uint16(b[1]) }); ok {
			p = text
		}
	}
	return bytes.TrimRight(p, "\r\n")
}

// fromUTF16 converts to UTF-8. It reports false for a text that is not UTF-16: then
// the first two bytes are not a byte order mark either.
func fromUTF16(p []byte, unit func([]byte) uint16) ([]byte, bool) {
	if len(p)%2 != 0 {
		return nil, false
	}
	units := make([]uint16, len(p)/2)
	for i := range units {
		units[i] = unit(p[2*i:])
	}
	var text []byte
	for _, r := range utf16.Decode(units) {
		if r == utf8.RuneError {
			return nil, false
		}
		text = utf8.AppendRune(text, r)
	}
	return text, true
}
