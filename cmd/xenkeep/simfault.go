package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"xenkeep/xapi/xapisim"
)

// newSimFaultCommand scripts mishaps of a simulated pool.
func newSimFaultCommand() *cobra.Command {
	var pool, do string
	var host int
	var f xapisim.Fault
	cmd := &cobra.Command{
		Use:   "fault",
		Short: "Script a mishap of the simulated pool",
		Long: `Script a mishap of the simulated pool, or let one happen now (--do).

A scripted one happens to the n-th call or transfer of its name from now on: a
call (VM.snapshot, * for any), a path (/export_raw_vdi, /nbd), or a step of the
storage manager (sm.cbt_snapshot).`,
		Example: `  xenkeep sim fault --url URL --on VM.snapshot --nth 2 --code SR_BACKEND_FAILURE_44
  xenkeep sim fault --url URL --on /export_raw_vdi --cut-at 1000000 --stall
  xenkeep sim fault --url URL --do crash --host 1`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.Cut = cmd.Flags().Changed("cut-at") || f.Stall || f.Embedded
			return runSimFault(cmd, pool, do, host, f)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&pool, "url", "", "the simulated pool's `URL`")
	fl.StringVar(&do, "do", "", "what happens immediately: restart, crash, drop-sessions, expire-tasks, gc, clear, kill-nbd, restart-nbd (`action`)")
	fl.IntVar(&host, "host", 0, "the `number` of the host that --do crash, kill-nbd and restart-nbd are about; 0 is the master")
	fl.StringVar(&f.On, "on", "", "the `name` of the call, path or step that it happens to")
	fl.IntVar(&f.Nth, "nth", 1, "at which `match` from now on")
	fl.IntVar(&f.Times, "times", 1, "how many times in a row (`n`); negative: always")
	fl.StringVar(&f.Code, "code", "", "the error `code` it fails with")
	fl.StringArrayVar(&f.Params, "param", nil, "a `parameter` of the error; may be repeated")
	fl.BoolVar(&f.After, "after", false, "fail when the work is done")
	fl.BoolVar(&f.Reset, "reset", false, "reset the connection")
	fl.DurationVar(&f.Delay, "delay", 0, "how `long` the operation takes")
	fl.BoolVar(&f.DropSession, "drop-session", false, "end the caller's session")
	fl.IntVar(&f.Status, "status", 0, "answer with a page of this HTTP `status`")
	fl.Int64Var(&f.CutAt, "cut-at", 0, "stop a stream after this many `bytes`")
	fl.BoolVar(&f.Embedded, "embedded", false, "send the server's error page after the data")
	fl.BoolVar(&f.Stall, "stall", false, "hang where the stream is cut")
	cmd.MarkFlagRequired("url")
	return cmd
}

func runSimFault(cmd *cobra.Command, pool, do string, host int, f xapisim.Fault) error {
	path, q := "fault", url.Values{}
	var content []byte
	switch {
	case (do == "") == (f.On == ""):
		return errors.New("sim fault: needs either --on or --do")
	case do != "" && !slices.Contains(xapisim.Actions, xapisim.Action(do)):
		return fmt.Errorf("sim fault: --do %s: unknown", do)
	case do != "":
		path, q = "do", url.Values{"action": {do}, "host": {strconv.Itoa(host)}}
	default:
		var err error
		if content, err = json.Marshal(f); err != nil {
			return fmt.Errorf("sim fault: %w", err)
		}
	}
	if _, err := askSim(cmd.Context(), pool, path, q, content); err != nil {
		return fmt.Errorf("sim fault: %w", err)
	}
	return nil
}
