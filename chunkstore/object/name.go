package object

import "strings"

// maxName is the greatest length of a name in bytes: S3's limit of 1024, minus
// room for a prefix.
const maxName = 512

// CheckName checks that name is a valid object name: one or more parts, joined
// by slashes, of lower-case letters, digits, '.', '_' and '-'. A part must not
// be empty, begin with a dot, or be longer than 128 bytes. Such names remain
// distinct on every object storage, and on file systems that ignore case. The
// error is of class ErrName.
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

// CheckRange checks that offset and length are a range that Store.Get accepts.
func CheckRange(op, name string, offset, length int64) error {
	if (offset < 0 && length >= 0) || (length > 0 && offset+length < 0) {
		return &Error{Op: op, Name: name, Class: ErrName}
	}
	return nil
}

// Span resolves a range of Store.Get for an object of size bytes. It returns
// the absolute offset and the number of bytes to read. The error is of class
// ErrShort, or ErrTooLarge if the range is too long to be read to the end.
func Span(op, name string, size, offset, length int64) (from, n int64, err error) {
	switch {
	case offset < 0:
		from = max(size+offset, 0)
		return from, size - from, CheckWhole(op, name, size-from)
	case offset > size || (length >= 0 && offset+length > size):
		return 0, 0, &Error{Op: op, Name: name, Class: ErrShort}
	case length < 0:
		return offset, size - offset, CheckWhole(op, name, size-offset)
	}
	return offset, length, nil
}

// CheckPrefix checks that prefix can be the beginning of a valid name. It may
// be empty, and may end within a part or with a slash.
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
