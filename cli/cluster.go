package cli

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	dockercli "github.com/docker/cli/cli"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// defaultNodePort is the node port of an agent with default flags.
const defaultNodePort = "2377"

// membershipFlags are what init and join have in common.
type membershipFlags struct {
	listenAddr    string
	advertiseAddr string
	availability  string
}

func (f *membershipFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.listenAddr, "listen-addr", "", "ADDRESS[:PORT] or interface of the node port (default: as the agent was started)")
	cmd.Flags().StringVar(&f.advertiseAddr, "advertise-addr", "", "Address, ADDRESS:PORT or interface that the other nodes reach this one by (default: the machine's only one)")
	cmd.Flags().StringVar(&f.availability, "availability", string(swarm.NodeAvailabilityActive), "active: takes tasks; pause: takes no new ones; drain: takes none")
	_ = cmd.RegisterFlagCompletionFunc("availability", cobra.FixedCompletions(availabilities(), cobra.ShellCompDirectiveNoFileComp))
}

func availabilities() []string {
	return []string{string(swarm.NodeAvailabilityActive), string(swarm.NodeAvailabilityPause), string(swarm.NodeAvailabilityDrain)}
}

func (f *membershipFlags) check() error {
	if !slices.Contains(availabilities(), f.availability) {
		return fmt.Errorf("invalid availability %q: choose one of %s", f.availability, strings.Join(availabilities(), ", "))
	}
	return nil
}

func newInit(e *engine) *cobra.Command {
	var common membershipFlags
	var historyLimit int64
	var heartbeat, certExpiry time.Duration
	var force, yes bool
	cmd := &cobra.Command{
		Use:               "init [OPTIONS]",
		Short:             "Make a cluster with this node as its first manager",
		Example:           "  swarm init\n  swarm init --advertise-addr 192.0.2.10\n  swarm init --force-new-cluster",
		Args:              dockercli.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := common.check(); err != nil {
				return err
			}
			if force {
				if err := onlyWithForce(cmd); err != nil {
					return err
				}
				return runForceNewCluster(cmd.Context(), e, common.advertiseAddr, yes)
			}
			options := client.SwarmInitOptions{
				ListenAddr:    common.listenAddr,
				AdvertiseAddr: common.advertiseAddr,
				Availability:  swarm.NodeAvailability(common.availability),
			}
			if cmd.Flags().Changed("task-history-limit") {
				options.Spec.Orchestration.TaskHistoryRetentionLimit = &historyLimit
			}
			// Zero means the default, which the agent knows.
			if cmd.Flags().Changed("dispatcher-heartbeat") {
				options.Spec.Dispatcher.HeartbeatPeriod = heartbeat
			}
			if cmd.Flags().Changed("cert-expiry") {
				options.Spec.CAConfig.NodeCertExpiry = certExpiry
			}
			return runInit(cmd.Context(), e, options)
		},
	}
	common.add(cmd)
	cmd.Flags().Int64Var(&historyLimit, "task-history-limit", 5, "How many ended tasks to keep per slot")
	cmd.Flags().DurationVar(&heartbeat, "dispatcher-heartbeat", 5*time.Second, "How long a node may be silent before its tasks are replaced")
	cmd.Flags().DurationVar(&certExpiry, "cert-expiry", 90*24*time.Hour, "How long a node's certificate is valid")
	cmd.Flags().BoolVar(&force, "force-new-cluster", false, "On a manager of a cluster that lost its quorum for good: make it the only manager")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "With --force-new-cluster: do not ask")
	return cmd
}

// onlyWithForce refuses flags that a forced new cluster, which keeps its settings, would ignore.
func onlyWithForce(cmd *cobra.Command) (err error) {
	cmd.Flags().Visit(func(f *pflag.Flag) {
		switch f.Name {
		case "force-new-cluster", "yes", "advertise-addr", "host":
		default:
			err = fmt.Errorf("--%s cannot be used with --force-new-cluster, which keeps the cluster's settings: change them afterwards", f.Name)
		}
	})
	return err
}

func runInit(ctx context.Context, e *engine, options client.SwarmInitOptions) error {
	made, err := e.Client().SwarmInit(ctx, options)
	if err != nil {
		return err
	}
	fmt.Fprintf(e.Out(), "Cluster made: this node (%s) is its first manager.\n\n", made.NodeID)
	if err := printJoinCommand(ctx, e, made.NodeID, swarm.NodeRoleWorker); err != nil {
		return err
	}
	fmt.Fprintln(e.Out(), "To add a manager, run 'swarm join-token manager' here and follow what it prints.")
	return nil
}

func newJoin(e *engine) *cobra.Command {
	var common membershipFlags
	var token string
	cmd := &cobra.Command{
		Use:               "join [OPTIONS] --token TOKEN HOST[:PORT]",
		Short:             "Join this node to a cluster, as the token says: as worker or as manager",
		Example:           "  swarm join --token SWMTKN-1-… 192.0.2.10:2377",
		Args:              dockercli.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := common.check(); err != nil {
				return err
			}
			if token == "" {
				return fmt.Errorf("a token is needed to join: run 'swarm join-token worker' on a manager and use the command that it prints")
			}
			return runJoin(cmd.Context(), e, client.SwarmJoinOptions{
				ListenAddr:    common.listenAddr,
				AdvertiseAddr: common.advertiseAddr,
				Availability:  swarm.NodeAvailability(common.availability),
				JoinToken:     token,
				RemoteAddrs:   []string{withNodePort(args[0])},
			})
		},
	}
	common.add(cmd)
	cmd.Flags().StringVar(&token, "token", "", "Join token, printed by 'swarm join-token'")
	return cmd
}

// withNodePort adds the default port to an address without one.
func withNodePort(address string) string {
	if _, _, err := net.SplitHostPort(address); err == nil {
		return address
	}
	return net.JoinHostPort(strings.Trim(address, "[]"), defaultNodePort)
}

func runJoin(ctx context.Context, e *engine, options client.SwarmJoinOptions) error {
	if _, err := e.Client().SwarmJoin(ctx, options); err != nil {
		return err
	}
	here, err := e.Client().Info(ctx, client.InfoOptions{})
	if err != nil {
		return err
	}
	role := "worker"
	if here.Info.Swarm.ControlAvailable {
		role = "manager"
	}
	fmt.Fprintf(e.Out(), "This node (%s) joined the cluster as a %s.\n", here.Info.Swarm.NodeID, role)
	return nil
}

func newJoinToken(e *engine) *cobra.Command {
	var rotate, quiet bool
	cmd := &cobra.Command{
		Use:       "join-token [OPTIONS] (worker|manager)",
		Short:     "Print, or replace, the token that lets nodes join",
		Example:   "  swarm join-token worker\n  swarm join-token --rotate --quiet manager",
		Args:      dockercli.ExactArgs(1),
		ValidArgs: []string{"worker", "manager"},
		RunE: func(cmd *cobra.Command, args []string) error {
			role := swarm.NodeRole(args[0])
			if role != swarm.NodeRoleWorker && role != swarm.NodeRoleManager {
				return fmt.Errorf("unknown role %q: choose worker or manager", args[0])
			}
			return runJoinToken(cmd.Context(), e, role, rotate, quiet)
		},
	}
	cmd.Flags().BoolVar(&rotate, "rotate", false, "Make a new token; the old one stops working, nodes that joined with it stay")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Print the token alone")
	return cmd
}

func runJoinToken(ctx context.Context, e *engine, role swarm.NodeRole, rotate, quiet bool) error {
	if rotate {
		if err := rotateJoinToken(ctx, e, role); err != nil {
			return err
		}
		if !quiet {
			fmt.Fprintf(e.Out(), "The %s token was replaced; the old one no longer works.\n\n", role)
		}
	}
	if quiet {
		cluster, err := e.Client().SwarmInspect(ctx, client.SwarmInspectOptions{})
		if err != nil {
			return err
		}
		fmt.Fprintln(e.Out(), tokenOf(cluster.Swarm, role))
		return nil
	}
	here, err := e.Client().Info(ctx, client.InfoOptions{})
	if err != nil {
		return err
	}
	return printJoinCommand(ctx, e, here.Info.Swarm.NodeID, role)
}

func rotateJoinToken(ctx context.Context, e *engine, role swarm.NodeRole) error {
	cluster, err := e.Client().SwarmInspect(ctx, client.SwarmInspectOptions{})
	if err != nil {
		return err
	}
	_, err = e.Client().SwarmUpdate(ctx, client.SwarmUpdateOptions{
		Version:            cluster.Swarm.Version,
		Spec:               cluster.Swarm.Spec,
		RotateWorkerToken:  role == swarm.NodeRoleWorker,
		RotateManagerToken: role == swarm.NodeRoleManager,
	})
	return err
}

func tokenOf(cluster swarm.Swarm, role swarm.NodeRole) string {
	if role == swarm.NodeRoleManager {
		return cluster.JoinTokens.Manager
	}
	return cluster.JoinTokens.Worker
}

// printJoinCommand prints the whole command that adds a node, with this manager's address.
func printJoinCommand(ctx context.Context, e *engine, nodeID string, role swarm.NodeRole) error {
	cluster, err := e.Client().SwarmInspect(ctx, client.SwarmInspectOptions{})
	if err != nil {
		return err
	}
	node, err := e.Client().NodeInspect(ctx, nodeID, client.NodeInspectOptions{})
	if err != nil {
		return err
	}
	if node.Node.ManagerStatus == nil {
		return fmt.Errorf("this node is not a manager yet: run 'swarm join-token %s' again in a moment", role)
	}
	fmt.Fprintf(e.Out(), "To add a %s, run this on the other machine:\n\n    swarm join --token %s %s\n\n", role, tokenOf(cluster.Swarm, role), node.Node.ManagerStatus.Addr)
	return nil
}

func newLeave(e *engine) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:               "leave [OPTIONS]",
		Short:             "Take this node out of its cluster and remove all that the cluster put on it",
		Example:           "  swarm leave\n  swarm leave --force",
		Args:              dockercli.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := e.Client().SwarmLeave(cmd.Context(), client.SwarmLeaveOptions{Force: force}); err != nil {
				return err
			}
			fmt.Fprintln(e.Out(), "This node left the cluster.")
			return nil
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Leave although this node is a manager; the last manager takes the cluster's state with it")
	return cmd
}
