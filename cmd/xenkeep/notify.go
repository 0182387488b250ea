package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"xenkeep/job/config"
	"xenkeep/job/notify"
	"xenkeep/job/report"
)

// errUnsent marks notifications that did not get through.
var errUnsent = errors.New("some notifications could not be sent")

type notifyTestOptions struct {
	output      outputFlags
	config, job string
}

// notificationLine is the result of one notification.
type notificationLine struct {
	Type    string `json:"type"`          // "notification"
	Job     string `json:"job,omitempty"` // "" for [notify]
	Channel string `json:"channel"`
	To      string `json:"to"`
	Sent    bool   `json:"sent"`
	Error   string `json:"error,omitempty"`
}

// notifySummary ends the list.
type notifySummary struct {
	Type   string `json:"type"` // "summary"
	Sent   int    `json:"sent"`
	Failed int    `json:"failed"`
}

func newNotifyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "notify",
		Short: "Try the notifications of a config",
		Args:  cobra.ArbitraryArgs,
		RunE:  needsCommand,
	}
	cmd.AddCommand(newNotifyTestCommand())
	return cmd
}

func newNotifyTestCommand() *cobra.Command {
	var o notifyTestOptions
	cmd := &cobra.Command{
		Use:   "test --config FILE [--job NAME]",
		Short: "Send a test through each notification of a config",
		Long: `Send a test through each notification of a config: those of [notify] and of each job
that has its own, or those of one job. Mail and webhook say that it is a test; of the
pings start, failure and success are all asked for, in this order. The exit code is 1
when one cannot be sent.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runNotifyTest(cmd, &o) },
	}
	o.output.add(cmd)
	cmd.Flags().StringVar(&o.config, "config", "", "the notifications of this config `file`")
	cmd.Flags().StringVar(&o.job, "job", "", "only those of the job with this `name`")
	return cmd
}

// notifications returns the notifications to test, by job; "" stands for [notify].
func (o *notifyTestOptions) notifications(c *config.Config) ([]string, map[string]config.Notify, error) {
	if o.job != "" {
		j, err := c.Job(o.job)
		if err != nil {
			return nil, nil, err
		}
		return []string{o.job}, map[string]config.Notify{o.job: c.Notifications(j)}, nil
	}
	names, all := []string{""}, map[string]config.Notify{"": c.Notify}
	for _, name := range c.JobNames() {
		if n := c.Jobs[name].Notify; n != nil {
			names, all[name] = append(names, name), *n
		}
	}
	return names, all, nil
}

func runNotifyTest(cmd *cobra.Command, o *notifyTestOptions) error {
	if o.config == "" {
		return usagef("which notifications? give their config with --config")
	}
	c, err := config.Load(o.config)
	if err != nil {
		return err
	}
	names, all, err := o.notifications(c)
	if err != nil {
		return err
	}
	w := cmd.OutOrStdout()
	sum := notifySummary{Type: "summary"}
	for _, name := range names {
		now := time.Now().UTC()
		sender := notify.Sender{Config: all[name], Wait: noWait}
		for _, t := range sender.Test(cmd.Context(), &report.Report{
			Type: "report", Test: true, State: report.OK, Job: cmp.Or(name, "notify"), Machine: machineName(), Version: versionText(), Repository: c.Repository.Location,
			Started: now, Ended: now, VMs: []report.VM{},
		}) {
			line := notificationLine{Type: "notification", Job: name, Channel: t.Channel, To: t.To, Sent: t.Err == nil}
			sum.Sent++
			if t.Err != nil {
				sum.Sent, sum.Failed = sum.Sent-1, sum.Failed+1
				line.Error = oneLine(t.Err.Error())
			}
			if o.output.json {
				err = writeLine(w, line)
			} else {
				err = printNotification(cmd, &line)
			}
			if err != nil {
				return err
			}
		}
	}
	switch {
	case o.output.json:
		err = writeLine(w, sum)
	case sum.Sent+sum.Failed == 0:
		return fmt.Errorf("%s: there is no notification: add [notify.mail], [notify.webhook] or [notify.ping]", o.config)
	}
	if err == nil && (sum.Failed > 0 || sum.Sent == 0) {
		err = reported{errUnsent}
	}
	return err
}

// noWait does not wait before another attempt, because the user of a test wants the
// answer immediately.
func noWait(context.Context, time.Duration) error { return errUnsent }

func printNotification(cmd *cobra.Command, l *notificationLine) error {
	of := "notify"
	if l.Job != "" {
		of = "job " + l.Job
	}
	word := "sent    "
	if !l.Sent {
		word = "NOT SENT"
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s  %s: %s to %s", word, printable(of), l.Channel, printable(l.To))
	if err == nil && l.Error != "" {
		_, err = fmt.Fprintf(cmd.OutOrStdout(), ": %s", l.Error)
	}
	if err == nil {
		_, err = fmt.Fprintln(cmd.OutOrStdout())
	}
	return err
}
