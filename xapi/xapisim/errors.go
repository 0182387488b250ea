package xapisim

import "strings"

// Error is an API error: a code and its parameters.
type Error struct {
	Code   string
	Params []string
}

func (e *Error) Error() string {
	return e.Code + ": [ " + strings.Join(e.Params, "; ") + " ]"
}

func fail(code string, params ...string) *Error {
	return &Error{Code: code, Params: params}
}

// asError converts any error to an API error.
func asError(err error) *Error {
	if e, ok := err.(*Error); ok {
		return e
	}
	if m, ok := err.(*missingError); ok {
		return m.api
	}
	return fail("INTERNAL_ERROR", err.Error())
}

func (e *Error) list() []any {
	return append([]any{e.Code}, strs(e.Params...)...)
}
