package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"swarm/api"

	dockercli "github.com/docker/cli/cli"
	"github.com/docker/cli/templates"
	"github.com/moby/moby/api/types/swarm"
	"github.com/spf13/cobra"
)

func newInfo(e *engine) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:               "info [OPTIONS]",
		Short:             "Show this node, its cluster, and which nodes are seen alive",
		Example:           "  swarm info\n  swarm info --format '{{.Swarm.NodeID}}'",
		Args:              dockercli.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var here api.Info
			if err := e.get(cmd.Context(), "/info", &here); err != nil {
				return err
			}
			if format != "" {
				return printFormatted(e.Out(), format, here)
			}
			printInfo(e.Out(), here)
			for _, warning := range warnings(here) {
				fmt.Fprintln(e.Err(), "WARNING: "+warning)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "Print by a Go template, or 'json'")
	return cmd
}

func printFormatted(out io.Writer, format string, value any) error {
	if format == "json" {
		format = "{{json .}}"
	}
	template, err := templates.Parse(format)
	if err != nil {
		return fmt.Errorf("--format %q: %w (try --format json to see the fields)", format, err)
	}
	if err := template.Execute(out, value); err != nil {
		return fmt.Errorf("--format %q: %w (try --format json to see the fields)", format, err)
	}
	_, err = fmt.Fprintln(out)
	return err
}

func printInfo(out io.Writer, here api.Info) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	defer w.Flush()
	line := func(name string, value any) { fmt.Fprintf(w, "%s:\t%v\n", name, value) }

	line("Node", strings.TrimSpace(here.Name+" "+here.Swarm.NodeID))
	line("State", state(here.Swarm))
	if here.Swarm.Error != "" {
		line("Error", here.Swarm.Error)
	}
	if here.Swarm.NodeAddr != "" {
		line("Address", here.Swarm.NodeAddr)
	}
	line("Machine", fmt.Sprintf("%s, %s, kernel %s, %d CPUs, %d MiB", here.OperatingSystem, here.Architecture, here.KernelVersion, here.NCPU, here.MemTotal>>20))
	line("Version", here.ServerVersion)
	line("Containers", fmt.Sprintf("%d running, %d in all", here.ContainersRunning, here.Containers))
	line("Images", here.Images)
	if len(here.Labels) > 0 {
		line("Labels", strings.Join(here.Labels, " "))
	}
	if here.Swarm.Cluster != nil {
		line("Cluster", here.Swarm.Cluster.ID)
	}
	if here.Swarm.ControlAvailable {
		line("Nodes", fmt.Sprintf("%d, of which %d managers", here.Swarm.Nodes, here.Swarm.Managers))
	}
	if len(here.Swarm.RemoteManagers) > 0 {
		line("Managers", managers(here.Swarm.RemoteManagers))
	}
	if len(here.SwarmSuspects) > 0 {
		line("Avoided", strings.Join(here.SwarmSuspects, " "))
	}
	if len(here.SwarmMembers) > 0 {
		fmt.Fprintln(w, "Seen by gossip:")
		for _, m := range here.SwarmMembers {
			fmt.Fprintf(w, "  %s\t%s\t%s\n", m.NodeID, m.Address, m.State)
		}
	}
}

// warnings are those of the node and those of the cluster, which may repeat each other.
func warnings(here api.Info) []string {
	all := slices.Concat(here.Warnings, here.Swarm.Warnings)
	slices.Sort(all)
	return slices.Compact(all)
}

func state(s swarm.Info) string {
	switch {
	case s.LocalNodeState == swarm.LocalNodeStateInactive:
		return "not in a cluster (run 'swarm init' or 'swarm join')"
	case s.LocalNodeState != swarm.LocalNodeStateActive:
		return string(s.LocalNodeState)
	case s.ControlAvailable:
		return "active, manager"
	}
	return "active, worker"
}

func managers(peers []swarm.Peer) string {
	var addresses []string
	for _, p := range peers {
		addresses = append(addresses, p.Addr)
	}
	slices.Sort(addresses)
	return strings.Join(addresses, " ")
}
