package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"xenkeep/chunkstore/seal"
	"xenkeep/repo"
)

// version is set by the linker: -X main.version=v1.2.3.
var version string

// versionText returns the version, or the revision that the build recorded.
func versionText() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && (v == "" || v == "(devel)") {
			v = s.Value[:min(12, len(s.Value))]
		}
	}
	if v == "" || v == "(devel)" {
		return "development"
	}
	return v
}

// versionLine is the line that version prints with --json.
type versionLine struct {
	Type    string `json:"type"` // "version"
	Version string `json:"version"`
	Format  int    `json:"format"` // of repositories
	Go      string `json:"go"`
	System  string `json:"system"`
	Zstd    string `json:"zstd"` // the compressor: seal.Encoder
}

func thisVersion() versionLine {
	return versionLine{"version", versionText(), repo.Format, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH, seal.Encoder}
}

func versionSentence() string {
	v := thisVersion()
	return fmt.Sprintf("xenkeep %s, repository format %d, %s, %s, zstd by %s", v.Version, v.Format, v.Go, v.System, v.Zstd)
}

func newVersionCommand() *cobra.Command {
	var o outputFlags
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.json {
				return writeLine(cmd.OutOrStdout(), thisVersion())
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), versionSentence())
			return err
		},
	}
	o.add(cmd)
	return cmd
}
