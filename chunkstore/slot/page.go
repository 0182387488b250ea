package slot

import (
	"bufio"
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"xenkeep/chunkstore/seal"
)

const (
	pageBegin = "-----BEGIN XENKEEP KEY-----"
	pageEnd   = "-----END XENKEEP KEY-----"
	lineChars = 48 // base32 characters per line, in groups of 8
)

var pageEncoding = base32.StdEncoding.WithPadding(base32.NoPadding)

// Page returns keys and config as a page for printing: text lines of base32,
// each with its own checksum, so that OpenPage can name a mistyped line. Anyone
// who has the page can open the repository: no password protects it.
func Page(keys *seal.Keys, config json.RawMessage) ([]byte, error) {
	body, err := marshalSecrets(keys, config)
	if err != nil {
		return nil, err
	}
	var packed bytes.Buffer
	z, err := flate.NewWriter(&packed, flate.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(body); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(packed.Bytes())
	packed.Write(sum[:8])
	text := pageEncoding.EncodeToString(packed.Bytes())

	var out bytes.Buffer
	fmt.Fprintf(&out, "%s\n", pageBegin)
	for n := 1; len(text) > 0; n++ {
		line := text[:min(lineChars, len(text))]
		text = text[len(line):]
		fmt.Fprintf(&out, "%3d", n)
		for i := 0; i < len(line); i += 8 {
			fmt.Fprintf(&out, " %s", line[i:min(i+8, len(line))])
		}
		fmt.Fprintf(&out, " %s\n", lineCheck(n, line))
	}
	fmt.Fprintf(&out, "%s\n", pageEnd)
	return out.Bytes(), nil
}

func lineCheck(n int, line string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %s", n, line))
	return hex.EncodeToString(sum[:2])
}

// IsPage reports whether text looks like a page.
func IsPage(text []byte) bool { return bytes.Contains(text, []byte(pageBegin)) }

// OpenPage parses a page. There may be other text around it.
func OpenPage(text []byte) (*seal.Keys, json.RawMessage, error) {
	var code strings.Builder
	scan := bufio.NewScanner(bytes.NewReader(text))
	inside, ended := false, false
	n := 0
	for scan.Scan() {
		line := strings.TrimSpace(scan.Text())
		switch {
		case line == pageBegin:
			inside = true
			continue
		case line == pageEnd:
			ended = inside
		}
		if ended {
			break
		}
		if !inside || line == "" {
			continue
		}
		n++
		fields := strings.Fields(strings.ToUpper(line))
		if len(fields) < 3 {
			return nil, nil, fmt.Errorf("key page: line %d is not whole: %w", n, seal.ErrCorrupt)
		}
		data := strings.Join(fields[1:len(fields)-1], "")
		if fields[0] != fmt.Sprint(n) || !strings.EqualFold(fields[len(fields)-1], lineCheck(n, data)) {
			return nil, nil, fmt.Errorf("key page: line %d does not fit its check: %w", n, seal.ErrCorrupt)
		}
		code.WriteString(data)
	}
	if err := scan.Err(); err != nil {
		return nil, nil, err
	}
	if !ended {
		return nil, nil, fmt.Errorf("key page: no line %q: %w", pageEnd, seal.ErrCorrupt)
	}
	packed, err := pageEncoding.DecodeString(code.String())
	if err != nil || len(packed) < 8 {
		return nil, nil, fmt.Errorf("key page: %w", seal.ErrCorrupt)
	}
	sum := sha256.Sum256(packed[:len(packed)-8])
	if !bytes.Equal(sum[:8], packed[len(packed)-8:]) {
		return nil, nil, fmt.Errorf("key page: lines are missing or changed: %w", seal.ErrCorrupt)
	}
	body, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(packed[:len(packed)-8])), 1<<20))
	if err != nil {
		return nil, nil, fmt.Errorf("key page: %v: %w", err, seal.ErrCorrupt)
	}
	return unmarshalSecrets(body)
}
