package cli

import (
	"fmt"
	"io"
	"strings"

	dockercli "github.com/docker/cli/cli"
	"github.com/spf13/cobra"
)

// Groups of the root's help.
const (
	groupCluster = "cluster"
	groupWork    = "work"
	groupNode    = "node"
)

// usageTemplate is how every command explains itself; flags are wrapped at 100 columns.
const usageTemplate = `Usage:  {{if .HasAvailableSubCommands}}{{.CommandPath}}{{if .HasAvailableLocalFlags}} [OPTIONS]{{end}} COMMAND{{else}}{{.UseLine}}{{end}}

{{or .Long .Short | trim}}
{{- if .Aliases}}

Aliases:
  {{.NameAndAliases}}
{{- end}}
{{- if .HasExample}}

Examples:
{{.Example | trimTrailingWhitespaces}}
{{- end}}
{{- $commands := .Commands}}
{{- range $group := .Groups}}

{{.Title}}
{{- range $commands}}{{if and (eq .GroupID $group.ID) .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}
{{- end}}
{{- if and .HasAvailableSubCommands (not .Groups)}}

Commands:
{{- range $commands}}{{if .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}
{{- end}}
{{- if .HasAvailableLocalFlags}}

Options:
{{.LocalFlags.FlagUsagesWrapped 100 | trimTrailingWhitespaces}}
{{- end}}
{{- if .HasAvailableSubCommands}}

Run '{{.CommandPath}} COMMAND --help' for more about a command.
{{- end}}
`

// newRoot builds the tree for one command line: our commands, and docker's for what has its API.
func newRoot(args []string, stdin io.ReadCloser, stdout, stderr io.Writer) (*cobra.Command, error) {
	e, err := newEngine(stdin, stdout, stderr)
	if err != nil {
		return nil, err
	}
	root := &cobra.Command{
		Use:                   "swarm [OPTIONS] COMMAND",
		Short:                 "Run containers on a cluster of Linux machines",
		Example:               "  swarm init\n  swarm service create --name hello --replicas 3 IMAGE\n  swarm service ps hello",
		Version:               version,
		SilenceUsage:          true,
		SilenceErrors:         true,
		TraverseChildren:      true, // service create has a --host of its own
		DisableFlagsInUseLine: true,
		RunE:                  unknownCommand,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if showsProgress(cmd) {
				return e.rewriteHints()
			}
			return nil
		},
	}
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetUsageTemplate(usageTemplate)
	root.SetHelpTemplate("{{.UsageString}}")
	root.SetVersionTemplate("swarm version {{.Version}}\n")
	root.SetFlagErrorFunc(flagError)
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	root.PersistentFlags().BoolP("help", "h", false, "Print usage")
	_ = root.PersistentFlags().MarkHidden("help")
	root.Flags().BoolP("version", "v", false, "Print this program's version")
	root.Flags().StringVarP(&e.host, "host", "H", "", "Socket of the agent to talk to (default $"+hostVariable+", else "+defaultHost+")")

	root.AddGroup(&cobra.Group{ID: groupCluster, Title: "Cluster:"}, &cobra.Group{ID: groupWork, Title: "Work:"}, &cobra.Group{ID: groupNode, Title: "This program:"})
	add(root, groupCluster, newInit(e), newJoin(e), newJoinToken(e), newLeave(e), newInfo(e))
	add(root, groupNode, newAgent(), newKeeper(), newVersion(e), newHelp())
	if !longLived(args) {
		hoistDocker(root, e)
	}
	root.SetHelpCommand(&cobra.Command{Hidden: true}) // help is newHelp
	addCompletion(root)
	acceptHostEverywhere(root, e)
	return root, nil
}

// longLived tells the agent and the keeper, which should not hold docker's commands in memory for months.
func longLived(args []string) bool {
	return len(args) > 0 && (args[0] == "agent" || args[0] == "keeper")
}

func add(root *cobra.Command, group string, commands ...*cobra.Command) {
	for _, c := range commands {
		c.GroupID = group
		c.DisableFlagsInUseLine = true
		root.AddCommand(c)
	}
}

func addCompletion(root *cobra.Command) {
	root.SetCompletionCommandGroupID(groupNode)
	root.InitDefaultCompletionCmd("completion")
	for _, c := range root.Commands() {
		if c.Name() != "completion" {
			continue
		}
		c.Short = "Print the completion script of a shell"
		c.Example = "  swarm completion bash > /etc/bash_completion.d/swarm"
		for _, shell := range c.Commands() {
			shell.Example = "  swarm completion " + shell.Name()
		}
	}
}

func newHelp() *cobra.Command {
	return &cobra.Command{
		Use:     "help [COMMAND]",
		Short:   "Print the help of a command",
		Example: "  swarm help service create",
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) (names []string, _ cobra.ShellCompDirective) {
			if about, rest, err := cmd.Root().Find(args); err == nil && len(rest) == 0 {
				for _, c := range about.Commands() {
					if c.IsAvailableCommand() {
						names = append(names, c.Name())
					}
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return fmt.Errorf("swarm: unknown command: swarm %s\n\nRun 'swarm --help' for more information", strings.Join(args, " "))
			}
			return about.Help()
		},
	}
}

// acceptHostEverywhere lets --host stand after the command too, where no flag of the command itself is called so.
func acceptHostEverywhere(cmd *cobra.Command, e *engine) {
	for _, c := range cmd.Commands() {
		acceptHostEverywhere(c, e)
		if c.HasSubCommands() || c.DisableFlagParsing || c.Flags().Lookup("host") != nil || c.Flags().ShorthandLookup("H") != nil {
			continue
		}
		c.Flags().StringVarP(&e.host, "host", "H", "", "Socket of the agent to talk to")
		_ = c.Flags().MarkHidden("host")
	}
}

// flagError explains a flag that cannot be read. Flags of a command that does not exist are put to the root: then the command is what is wrong.
func flagError(cmd *cobra.Command, err error) error {
	if read := cmd.Flags().Args(); !cmd.HasParent() && len(read) > 0 {
		return unknownCommand(cmd, read)
	}
	return dockercli.FlagErrorFunc(cmd, err)
}

func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		cmd.SetOut(cmd.ErrOrStderr())
		return cmd.Help()
	}
	hint := ""
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = fmt.Sprintf("\n\nDid you mean %s?", strings.Join(near, " or "))
	}
	return fmt.Errorf("swarm: unknown command: swarm %s%s\n\nRun 'swarm --help' for more information", args[0], hint)
}
