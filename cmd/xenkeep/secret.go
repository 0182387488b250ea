package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"xenkeep/chunkstore/slot"
	"xenkeep/internal/child"
	"xenkeep/job/config"
)

// secretFlagsValues are the sources of the repository's password or key.
type secretFlagsValues struct {
	passwordFile, passwordCommand, keyFile string

	password string        // from a variable of its own
	config   config.Secret // of a config file
	noAsk    bool          // neither the terminal nor a command is asked
}

func (f *secretFlagsValues) add(cmd *cobra.Command) {
	s := cmd.Flags()
	s.StringVar(&f.passwordFile, "password-file", "", "`file` whose content is the repository's password")
	s.StringVar(&f.passwordCommand, "password-command", "", "`command` of the shell that prints the repository's password")
	s.StringVar(&f.keyFile, "key-file", "", "key `file` of 32 bytes, or a printed key page, in place of a password")
	cmd.MarkFlagsMutuallyExclusive(secretFlags...)
}

// key opens a repository: one of the two is set.
type key struct {
	secret slot.Secret
	page   []byte
	// literal is, of a password from a file or command that begins with a byte
	// order mark, the password with it: earlier versions took it so.
	literal []byte
}

// passwordFrom returns the password that a file or command holds.
func passwordFrom(p []byte) key {
	k := key{secret: slot.Secret{Password: config.SecretText(p)}}
	if literal := bytes.TrimRight(p, "\r\n"); !bytes.Equal(literal, k.secret.Password) {
		k.literal = literal
	}
	return k
}

// maxSecret bounds how much is read of a file that should hold a password or key.
const maxSecret = 64 << 10

// read returns the password or key from the source that is set. If none is set, it
// asks on the terminal, twice for a new password.
func (f *secretFlagsValues) read(ctx context.Context, stderr io.Writer, isNew bool) (key, error) {
	switch {
	case f.password != "":
		return key{secret: slot.Secret{Password: []byte(f.password)}}, nil
	case f.keyFile != "":
		return f.readKeyFile(isNew)
	case f.passwordFile != "":
		return readPasswordFile(f.passwordFile)
	case f.passwordCommand != "" && f.noAsk:
		return key{}, errNoPassword
	case f.passwordCommand != "":
		return passwordOf(ctx, f.passwordCommand, stderr)
	case !f.config.IsZero():
		p, literal, err := f.config.ReadLiteral(ctx)
		return key{secret: slot.Secret{Password: p}, literal: literal}, err
	}
	if p := os.Getenv("XENKEEP_PASSWORD"); p != "" {
		return key{secret: slot.Secret{Password: []byte(p)}}, nil
	}
	if f.noAsk {
		return key{}, errNoPassword
	}
	return askSecret(ctx, stderr, "password of the repository: ", isNew)
}

// source returns where read takes the password or key from, without any part of
// it. A command can contain a password, so it is not named.
func (f *secretFlagsValues) source() string {
	switch {
	case f.password != "":
		return "a password of the environment"
	case f.keyFile != "":
		return "key file " + f.keyFile
	case f.passwordFile != "":
		return "password file " + f.passwordFile
	case f.passwordCommand != "":
		return "the output of the password command"
	case !f.config.IsZero():
		return "the password of the config"
	case os.Getenv("XENKEEP_PASSWORD") != "":
		return "XENKEEP_PASSWORD"
	}
	return "a password from the terminal"
}

var errNoPassword = errors.New("no password that can be had without a question")

// readNew is read of a password that is not that of XENKEEP_PASSWORD.
func (f *secretFlagsValues) readNew(ctx context.Context, stderr io.Writer) (key, error) {
	if *f != (secretFlagsValues{}) {
		return f.read(ctx, stderr, true)
	}
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return key{}, usagef("no new password: give --new-password-file, --new-password-command or --new-key-file")
	}
	return askSecret(ctx, stderr, "new password: ", true)
}

// askSecret asks the terminal, twice for a new password.
func askSecret(ctx context.Context, stderr io.Writer, prompt string, isNew bool) (key, error) {
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return key{}, usagef("no password: give --password-file, --password-command or --key-file, or set XENKEEP_PASSWORD_FILE, XENKEEP_PASSWORD_COMMAND, XENKEEP_KEY_FILE or XENKEEP_PASSWORD")
	}
	p, err := ask(ctx, stderr, prompt)
	if err == nil && isNew {
		var again []byte
		if again, err = ask(ctx, stderr, "the same again: "); err == nil && !bytes.Equal(p, again) {
			err = errors.New("the two passwords differ")
		}
	}
	return key{secret: slot.Secret{Password: p}}, err
}

func (f *secretFlagsValues) readKeyFile(isNew bool) (key, error) {
	data, err := readSmall(f.keyFile)
	if err != nil {
		return key{}, fmt.Errorf("key file: %w", err)
	}
	text := config.SecretText(data)
	if slot.IsPage(text) {
		if isNew {
			return key{}, usagef("key file %s: a key page opens the repository it is of, not a new one", f.keyFile)
		}
		if _, _, err := slot.OpenPage(text); err != nil {
			// Typed wrong, like a password: no damage to the repository.
			return key{}, fmt.Errorf("%s: %v: %w", f.keyFile, err, slot.ErrWrongSecret)
		}
		return key{page: text}, nil
	}
	k, err := slot.ParseKeyFile(data) // 32 bytes need no mark to begin with
	if err != nil {
		k, err = slot.ParseKeyFile(text)
	}
	if err != nil {
		return key{}, fmt.Errorf("key file %s: %w", f.keyFile, err)
	}
	return key{secret: slot.Secret{KeyFile: k}}, nil
}

func readSmall(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err == nil && len(data) > maxSecret {
		err = fmt.Errorf("%s: too long for a password or key", name)
	}
	return data, err
}

// readPasswordFile reads the password that a file holds, as config.SecretText
// has it.
func readPasswordFile(name string) (key, error) {
	data, err := readSmall(name)
	if err != nil {
		return key{}, fmt.Errorf("password file: %w", err)
	}
	k := passwordFrom(data)
	if len(k.secret.Password) == 0 {
		return key{}, fmt.Errorf("password file %s: empty", name)
	}
	return k, nil
}

func passwordOf(ctx context.Context, command string, stderr io.Writer) (key, error) {
	c := exec.CommandContext(ctx, "sh", "-c", command)
	c.Stderr = stderr
	c.Stdin = os.Stdin
	c.Env = child.Env()
	out, err := c.Output()
	if err != nil {
		return key{}, fmt.Errorf("password command: %w", err)
	}
	k := passwordFrom(out)
	if len(k.secret.Password) == 0 {
		return key{}, errors.New("password command: printed nothing")
	}
	return k, nil
}

// ask reads a line from the terminal without showing it. When ctx ends it
// leaves the terminal as it was.
func ask(ctx context.Context, stderr io.Writer, prompt string) ([]byte, error) {
	fd := int(os.Stdin.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	fmt.Fprint(stderr, prompt)
	defer fmt.Fprintln(stderr)
	type line struct {
		text []byte
		err  error
	}
	got := make(chan line, 1)
	go func() {
		text, err := term.ReadPassword(fd)
		got <- line{text, err}
	}()
	select {
	case <-ctx.Done():
		return nil, errors.Join(context.Cause(ctx), term.Restore(fd, before))
	case l := <-got:
		if l.err != nil {
			return nil, fmt.Errorf("password: %w", l.err)
		}
		if len(l.text) == 0 {
			return nil, errors.New("password: empty")
		}
		return l.text, nil
	}
}
