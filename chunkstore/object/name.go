package object

import "strings"

// maxName is the longest name in bytes: S3's 1024 less room for a prefix.
const maxName = 512

// CheckName tells whether name may name an object: parts of lower-case letters,
// digits, '.', '_' and '-', none empty or beginning with a dot or longer than
// 128 bytes, joined by slashes. File systems that fold case, and every object
// storage, keep such names apart. The error is of class ErrName.
func CheckName(op, name string) error {
	if len(name) <= maxName {
		ok := true
		for part := range strings.SplitSeq(name, "/") {
			if !validPart(part) {
				ok = false
				break
			}
		}
		if ok {
			return nil
		}
	}
	return &Error{Op: op, Name: name, Class: ErrName}
}

func validPart(part string) bool {
	if part == "" || part[0] == '.' || len(part) > 128 {
		return false
	}
	for i := range len(part) {
		c := part[i]
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

// CheckRange tells whether offset and length are a range that Store.Get takes.
func CheckRange(op, name string, offset, length int64) error {
	if (offset < 0 && length >= 0) || (length > 0 && offset+length < 0) {
		return &Error{Op: op, Name: name, Class: ErrName}
	}
	return nil
}

// Span resolves a range of Store.Get against an object of size bytes: where to
// read and how much. The error is of class ErrShort.
func Span(op, name string, size, offset, length int64) (from, n int64, err error) {
	switch {
	case offset < 0:
		from = max(size+offset, 0)
		return from, size - from, nil
	case offset > size || (length >= 0 && offset+length > size):
		return 0, 0, &Error{Op: op, Name: name, Class: ErrShort}
	case length < 0:
		return offset, size - offset, nil
	}
	return offset, length, nil
}

// CheckPrefix tells whether prefix may begin a name: it may be empty, or end
// within a part or with a slash.
func CheckPrefix(op, prefix string) error {
	whole := prefix
	if whole == "" || strings.HasSuffix(whole, "/") {
		whole += "x"
	}
	if CheckName(op, whole) != nil {
		return &Error{Op: op, Name: prefix, Class: ErrName}
	}
	return nil
}
