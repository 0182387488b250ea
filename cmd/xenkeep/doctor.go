package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"xenkeep/chunkstore/object/all"
	"xenkeep/job/doctor"
)

type doctorOptions struct {
	repository repositoryFlags
	pool       poolFlags
	output     outputFlags
	selfTest   bool
	sr         string
}

// doctorLine is one thing that doctor looked at.
type doctorLine struct {
	Type string `json:"type"` // "finding"
	doctor.Finding
}

// doctorSummary ends doctor's list.
type doctorSummary struct {
	Type   string `json:"type"`   // "summary"
	Status string `json:"status"` // "ok", "warn" or "fail", the worst of the findings
	OK     int    `json:"ok"`
	Warn   int    `json:"warn"`
	Fail   int    `json:"fail"`
}

func newDoctorCommand() *cobra.Command {
	var o doctorOptions
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look over pool and repository before the first backup",
		Long: `Look over all that a backup needs: login, versions, roles, each SR's driver and what
it supports, NBD networks, certificates, that the repository opens with this password
and can be written. Of pool and repository the one that is not given is left out. The
exit code is 1 when a backup would fail.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runDoctor(cmd, &o) },
	}
	o.repository.add(cmd)
	o.pool.add(cmd)
	o.output.add(cmd)
	cmd.Flags().BoolVar(&o.selfTest, "self-test", false, "write, snapshot, read and compare a small disk of its own on --sr")
	cmd.Flags().StringVar(&o.sr, "sr", "", "SR of the self-test, name or UUID")
	return cmd
}

func runDoctor(cmd *cobra.Command, o *doctorOptions) error {
	if err := o.fill(cmd); err != nil {
		return err
	}
	if o.repository.location == "" && o.pool.url == "" {
		return usagef("nothing to examine: give --pool, --repository or both, or a config with --config")
	}
	switch {
	case o.selfTest && o.pool.url == "":
		return usagef("--self-test needs --pool")
	case o.selfTest && o.sr == "":
		return usagef("--self-test needs --sr: the SR on which it may create a disk of 100 MiB")
	case o.sr != "" && !o.selfTest:
		return usagef("--sr requires --self-test")
	case o.selfTest:
		return o.runSelfTest(cmd)
	}
	findings, err := o.examine(cmd.Context(), cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	sum := doctorSummary{Type: "summary", Status: doctor.OK}
	var errs []error
	for _, f := range findings {
		switch f.Level {
		case doctor.OK:
			sum.OK++
		case doctor.Warn:
			sum.Warn++
		default:
			sum.Fail++
		}
		if o.output.json {
			errs = append(errs, writeLine(cmd.OutOrStdout(), doctorLine{"finding", f}))
		} else {
			errs = append(errs, printFinding(cmd.OutOrStdout(), f))
		}
	}
	switch {
	case sum.Fail > 0:
		sum.Status = doctor.Fail
		errs = append(errs, reported{errors.New("a backup would fail")})
	case sum.Warn > 0:
		sum.Status = doctor.Warn
	}
	if o.output.json {
		errs = append(errs, writeLine(cmd.OutOrStdout(), sum))
	}
	return errors.Join(errs...)
}

// fill takes values from the config that are not set otherwise. A config that is not
// named on the command line is ignored if any value is set.
func (o *doctorOptions) fill(cmd *cobra.Command) error {
	if _, explicit := foundConfig(cmd.Flags()); !explicit && o.repository.location+o.pool.url != "" {
		return nil
	}
	return errors.Join(o.repository.fill(), o.pool.fill())
}

func printFinding(w io.Writer, f doctor.Finding) error {
	level := map[string]string{doctor.OK: "ok  ", doctor.Warn: "warn", doctor.Fail: "FAIL"}[f.Level]
	_, err := fmt.Fprintf(w, "%s  %s: %s\n", level, printable(f.What), oneLine(f.Text))
	if err == nil && f.Hint != "" {
		_, err = fmt.Fprintf(w, "      hint: %s\n", oneLine(f.Hint))
	}
	return err
}

// examine turns failures into findings, so that everything is examined.
func (o *doctorOptions) examine(ctx context.Context, stderr io.Writer) ([]doctor.Finding, error) {
	var findings []doctor.Finding
	fail := func(what string, err error) {
		findings = append(findings, doctor.Finding{Level: doctor.Fail, What: what, Text: message(err), Hint: hint(err)})
	}
	if o.repository.location != "" {
		f, what, err := o.examineRepository(ctx, stderr)
		findings = append(findings, f...)
		if err != nil {
			fail(what, err)
		}
	}
	if o.pool.url != "" && ctx.Err() == nil {
		f, what, err := o.examinePool(ctx, stderr)
		findings = append(findings, f...)
		if err != nil {
			fail(what, err)
		}
	}
	return findings, ctx.Err()
}

func (o *doctorOptions) examineRepository(ctx context.Context, stderr io.Writer) ([]doctor.Finding, string, error) {
	objects, err := all.Open(ctx, o.repository.location, o.repository.storage(ctx, stderr))
	if err != nil {
		return nil, "storage", err
	}
	f := []doctor.Finding{{Level: doctor.OK, What: "storage", Text: objects.Location() + " answers"}}
	r, err := o.repository.unlock(ctx, objects, stderr)
	if err != nil {
		return f, "password", err
	}
	defer r.Close()
	f = append(f, doctor.Finding{Level: doctor.OK, What: "password", Text: "opens the repository"})
	more, err := doctor.Repository(ctx, r)
	return append(f, more...), "repository", err
}

func (o *doctorOptions) examinePool(ctx context.Context, stderr io.Writer) ([]doctor.Finding, string, error) {
	pool, err := o.pool.dial(ctx, stderr)
	if err != nil {
		return nil, "login", err
	}
	defer pool.Close(ctx)
	f, err := doctor.Pool(ctx, pool)
	return f, "pool", err
}
