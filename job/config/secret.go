package config

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"

	"xenkeep/internal/child"
)

// maxSecret is more than any password or token has.
const maxSecret = 64 << 10

// Secret says where a secret is to be had: never the secret itself.
type Secret struct {
	File    string `toml:"file"`
	Command string `toml:"command"` // of the shell; what it prints
	Env     string `toml:"env"`
	// Obscured files are those of VmBackup's create-password-file: base64.
	Obscured bool `toml:"obscured"`

	key string // of the config, for errors
}

// IsZero reports whether no source is given.
func (s Secret) IsZero() bool {
	s.key = ""
	return s == Secret{}
}

func (s Secret) validate() error {
	n := 0
	for _, v := range []string{s.File, s.Command, s.Env} {
		if v != "" {
			n++
		}
	}
	if n > 1 {
		return errors.New("one of file, command and env")
	}
	if s.Obscured && s.File == "" {
		return errors.New("obscured goes with file")
	}
	return nil
}

// Read fetches the secret as SecretText has it.
func (s Secret) Read(ctx context.Context) ([]byte, error) {
	p, _, err := s.ReadLiteral(ctx)
	return p, err
}

// ReadLiteral is Read that also returns the secret with its byte order mark,
// and nil where it has none: earlier versions took the mark as part of it.
func (s Secret) ReadLiteral(ctx context.Context) (secret, literal []byte, err error) {
	var p []byte
	var from string
	key := cmp.Or(s.key, "secret")
	switch {
	case s.File != "":
		from = "file " + s.File
		f, err := os.Open(s.File)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", key, err)
		}
		p, err = io.ReadAll(io.LimitReader(f, maxSecret+1))
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", key, err)
		}
	case s.Command != "":
		from = "command"
		var err error
		cmd := exec.CommandContext(ctx, "sh", "-c", s.Command)
		cmd.Env = child.Env()
		if p, err = cmd.Output(); err != nil {
			return nil, nil, fmt.Errorf("%s: command: %w", key, err)
		}
	case s.Env != "":
		from = "variable " + s.Env
		p = []byte(os.Getenv(s.Env))
	default:
		return nil, nil, fmt.Errorf("%s: none is given", key)
	}
	if whole := bytes.TrimRight(p, "\r\n"); !s.Obscured && !bytes.Equal(whole, SecretText(p)) {
		literal = whole
	}
	p = SecretText(p)
	if s.Obscured {
		plain, err := Unobscure(p)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %s: %w", key, from, err)
		}
		p = plain
	}
	if len(p) == 0 {
		return nil, nil, fmt.Errorf("%s: %s: empty", key, from)
	}
	if len(p) > maxSecret {
		return nil, nil, fmt.Errorf("%s: %s: too long", key, from)
	}
	return p, literal, nil
}
