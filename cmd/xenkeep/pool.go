package main

import (
	"context"
	"io"
	"os"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"xenkeep/job/config"
	"xenkeep/xapi"
)

// poolFlags define the pool, the user, and the hosts' certificates.
type poolFlags struct {
	url, user, passwordFile string
	fingerprints            fingerprintList
	caFile                  string
	insecure                bool

	config config.Secret  // the password's, of a config file
	noAsk  bool           // the terminal is not asked
	flags  *pflag.FlagSet // until the config has filled in the rest
}

func (f *poolFlags) add(cmd *cobra.Command) {
	s := cmd.Flags()
	f.flags = s
	s.Var(poolValue{f}, "pool", "`URL` of any host of the pool, or the name of a pool of the config")
	s.StringVar(&f.user, "pool-user", "root", "`name` to log in with")
	s.StringVar(&f.passwordFile, "pool-password-file", "", "`file` whose content is the pool's password")
	s.Var(&f.fingerprints, "pool-fingerprint", "SHA-256 `fingerprint` of a host's certificate; may be repeated")
	s.StringVar(&f.caFile, "pool-ca-file", "", "`file` of CA certificates (PEM) that vouch for the hosts")
	s.BoolVar(&f.insecure, "pool-insecure", false, "trust any host, and permit plain HTTP: anyone on the network path can read and change all")
}

// fingerprintList is a list of fingerprints, which may stand as openssl writes
// them: "SHA256 Fingerprint=AB:CD:...".
type fingerprintList []string

func (l *fingerprintList) String() string { return strings.Join(*l, ",") }
func (l *fingerprintList) Type() string   { return "list" }

func (l *fingerprintList) Set(text string) error {
	// The words contain white space, which is between fingerprints too.
	text = fingerprintWords.ReplaceAllString(text, "sha256=")
	var words list
	if err := words.Set(text); err != nil {
		return err
	}
	for _, w := range words {
		f, err := xapi.CleanFingerprint(w)
		if err != nil {
			return err
		}
		*l = append(*l, f)
	}
	return nil
}

var fingerprintWords = regexp.MustCompile(`(?i)sha-?256\s+fingerprint\s*=\s*`)

func (f *poolFlags) check() error {
	if err := f.fill(); err != nil {
		return err
	}
	if f.url == "" {
		return usagef("which pool? give --pool, set XENKEEP_POOL, or give a config that names it with --config")
	}
	return nil
}

// dial logs in.
func (f *poolFlags) dial(ctx context.Context, stderr io.Writer) (*xapi.Client, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	password, err := f.password(ctx, stderr)
	if err != nil {
		return nil, err
	}
	d := diagnosticsOf(ctx)
	return xapi.Dial(ctx, xapi.Config{
		Trace: d.traceFunc(), Log: d.log,
		URL: f.url, User: f.user, Password: string(password), UserAgent: "xenkeep/" + versionText(),
		Trust: xapi.Trust{Fingerprints: f.fingerprints, CAFile: f.caFile, Insecure: f.insecure},
	})
}

func (f *poolFlags) password(ctx context.Context, stderr io.Writer) ([]byte, error) {
	if f.passwordFile != "" {
		k, err := readPasswordFile(f.passwordFile)
		return k.secret.Password, err
	}
	if !f.config.IsZero() {
		return f.config.Read(ctx)
	}
	if p := os.Getenv("XENKEEP_POOL_PASSWORD"); p != "" {
		return []byte(p), nil
	}
	if f.noAsk || !term.IsTerminal(int(os.Stdin.Fd())) {
		return nil, usagef("no password of the pool: give --pool-password-file, or set XENKEEP_POOL_PASSWORD_FILE or XENKEEP_POOL_PASSWORD")
	}
	return ask(ctx, stderr, "password of "+f.user+" on "+f.url+": ")
}
