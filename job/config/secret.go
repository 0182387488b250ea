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

// maxSecret is longer than any password or token.
const maxSecret = 64 << 10

// Secret is the source of a secret, never the secret itself.
type Secret struct {
	File    string `toml:"file"`
	Command string `toml:"command"` // a shell command that prints it
	Env     string `toml:"env"`
	// Obscured files are in the form of VmBackup's create-password-file: base64.
	Obscured bool `toml:"obscured"`

	key string // of the config, for errors
}

// IsZero reports whether no source is set.
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

// Read reads the secret and converts it with SecretText.
func (s Secret) Read(ctx context.Context) ([]byte, error) {
	p, _, err := s.ReadLiteral(ctx)
	return p, err
}

// ReadLiteral is Read, and also returns the secret with its byte order mark, or nil if
// it has none: earlier versions treated the mark as a part of the secret.
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
		return nil, nil, fmt.Errorf("%s: none is set", key)
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
