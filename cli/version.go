package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	dockercli "github.com/docker/cli/cli"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

// version is this program's. Only the linker writes it (-X swarm/cli.version=…), from the source's tag.
var version = "dev"

func newVersion(e *engine) *cobra.Command {
	return &cobra.Command{
		Use:               "version",
		Short:             "Print the versions of this program and of the agent",
		Example:           "  swarm version",
		Args:              dockercli.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintf(e.Out(), "Client:\n Version:     %s\n API version: %s\n Commit:      %s\n Go version:  %s\n OS/Arch:     %s/%s\n",
				version, client.MaxAPIVersion, commit(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			there, err := e.Client().ServerVersion(cmd.Context(), client.ServerVersionOptions{})
			if err != nil {
				return err
			}
			fmt.Fprintf(e.Out(), "\nAgent:\n Version:     %s\n API version: %s (minimum %s)\n OS/Arch:     %s/%s\n",
				there.Version, there.APIVersion, there.MinAPIVersion, there.Os, there.Arch)
			for _, part := range there.Components {
				if part.Name != "Engine" {
					fmt.Fprintf(e.Out(), " %-12s %s\n", part.Name+":", part.Version)
				}
			}
			return nil
		},
	}
}

// commit is the source's commit when the binary was built from a clone, marked when files differed from it.
func commit() string {
	const digits = 12
	id, changed := "unknown", ""
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision" && len(s.Value) > digits:
				id = s.Value[:digits]
			case s.Key == "vcs.modified" && s.Value == "true":
				changed = "+changes"
			}
		}
	}
	return id + changed
}
