package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"xenkeep/job/doctor"
)

// stepLine is one step of a self-test as it ends.
type stepLine struct {
	Type string `json:"type"` // "step"
	doctor.SelfTestStep
}

// selfTestLine ends the list. It repeats the steps, so that this line alone can
// be attached to an issue.
type selfTestLine struct {
	doctor.SelfTestReport
	Version string `json:"version"` // of xenkeep
}

func (o *doctorOptions) runSelfTest(cmd *cobra.Command) error {
	ctx := cmd.Context()
	pool, err := o.pool.dial(ctx, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer pool.Close(context.WithoutCancel(ctx))
	out := cmd.OutOrStdout()
	var errs []error
	rep, err := doctor.SelfTest(ctx, pool, doctor.SelfTestOptions{SR: o.sr, Step: func(s doctor.SelfTestStep) {
		if o.output.json {
			errs = append(errs, writeLine(out, stepLine{"step", s}))
			return
		}
		_, werr := fmt.Fprintln(out, stepText(s))
		errs = append(errs, werr)
	}})
	if rep == nil {
		return err
	}
	if o.output.json {
		errs = append(errs, writeLine(out, selfTestLine{*rep, versionText()}))
	} else {
		_, werr := fmt.Fprintf(out, "%s: xenkeep %s, %s (API %s), %s, SR of type %s, disk of %s, %.1f s\n", rep.Status, versionText(), rep.Product, rep.API,
			plural(rep.Hosts, "host"), rep.SRType, humanize.IBytes(uint64(rep.Size)), rep.Duration)
		errs = append(errs, werr)
	}
	if errors.Is(err, doctor.ErrSelfTest) {
		if len(rep.Left) > 0 {
			err = fmt.Errorf("VDI %s could not be removed: %w", strings.Join(rep.Left, ", "), err)
		}
		err = fmt.Errorf("SR %s: %w", o.sr, err)
	}
	return errors.Join(append(errs, err)...)
}

// stepText is, for example, "ok       read over NBD               100 MiB at 215 MiB/s, every byte is equal".
func stepText(s doctor.SelfTestStep) string {
	text := s.Text
	if s.Bytes > 0 {
		rate := humanize.IBytes(uint64(s.Bytes))
		if s.Rate() > 0 {
			rate += " at " + humanize.IBytes(uint64(s.Rate())) + "/s"
		}
		if text != "" {
			rate += ", "
		}
		text = rate + text
	}
	return strings.TrimRight(fmt.Sprintf("%-7s  %-28s  %s", s.State, s.Name, oneLine(text)), " ")
}
