package cli

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"

	"swarm/agent"

	dockercli "github.com/docker/cli/cli"
	"github.com/spf13/cobra"
)

func newAgent() *cobra.Command {
	var cfg agent.Config
	cmd := &cobra.Command{
		Use:   "agent [OPTIONS]",
		Short: "Run this machine's agent",
		Long: `Run this machine's agent, in the foreground, as root.

Every node of a cluster runs the same agent; its role, manager or worker, can change at run time.
SIGTERM and SIGINT end the agent; the containers run on and the next agent takes them over.
A second signal ends it at once. 'swarm leave' is what removes the containers.`,
		Example:           "  swarm agent\n  swarm agent --advertise-addr 192.0.2.10 --node-label zone=a",
		Args:              dockercli.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return untilSignal(cmd.Context(), func(ctx context.Context) error { return agent.Run(ctx, cfg) })
		},
	}
	cfg.Version = version
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&cfg.DataDir, "data-dir", "/var/lib/swarm", "Where everything that must survive a reboot is kept")
	flags.StringVar(&cfg.RunDir, "run-dir", "/run/swarm", "Where sockets, pipes and mounts are; the API is RUN-DIR/swarm.sock")
	flags.StringVar(&cfg.ListenAddr, "listen-addr", "0.0.0.0:2377", "Address of the node port")
	flags.StringVar(&cfg.AdvertiseAddr, "advertise-addr", "", "Address, ADDRESS:PORT or interface that the other nodes reach this one by")
	flags.IntVar(&cfg.GossipPort, "gossip-port", 7946, "TCP and UDP port of the failure detection")
	flags.StringVar(&cfg.Hostname, "hostname", "", "Name of this node (default: the machine's)")
	flags.StringVar(&cfg.CgroupParent, "cgroup-parent", "/swarm", "Cgroup that holds the containers")
	flags.StringVar(&cfg.Containerd, "containerd", "", "Socket of a containerd to use (default: a private one is started)")
	flags.StringArrayVar(&cfg.NodeResources, "node-resources", nil, "What this node has to give: NanoCPUs=N or MemoryBytes=N (default: what the machine has)")
	flags.StringArrayVar(&cfg.NodeLabels, "node-label", nil, "Label KEY=VALUE of this node, for constraints on engine.labels.KEY")
	flags.StringArrayVar(&cfg.InsecureRegistries, "insecure-registry", nil, "Registry HOST[:PORT] to speak plain HTTP to")
	flags.StringVar(&cfg.MetricsAddr, "metrics-addr", "", "ADDRESS:PORT where nodes of this cluster may read metrics, over mutual TLS (default: only on RUN-DIR/metrics.sock)")
	flags.BoolVar(&cfg.Debug, "debug", false, "Log more, and serve Go's profiles on RUN-DIR/metrics.sock")
	return cmd
}

func newKeeper() *cobra.Command {
	var runDir, logDir string
	cmd := &cobra.Command{
		Use:     "keeper [OPTIONS]",
		Short:   "Hold what must outlive the agent; started by the agent",
		Example: "  swarm keeper --run-dir /run/swarm --log-dir /var/lib/swarm/logs",
		Hidden:  true,
		Args:    dockercli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return untilSignal(cmd.Context(), func(ctx context.Context) error { return agent.RunKeeper(ctx, runDir, logDir) })
		},
	}
	cmd.Flags().StringVar(&runDir, "run-dir", "", "The agent's run directory")
	cmd.Flags().StringVar(&logDir, "log-dir", "", "Where container logs are written")
	return cmd
}

// untilSignal runs a long-lived part until SIGTERM or SIGINT; a second signal does what it does to any program.
func untilSignal(ctx context.Context, run func(context.Context) error) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	err := run(ctx)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
