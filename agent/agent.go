// Package agent is one node's life: it builds every part, and starts and stops them by the node's role.
// cli's agent command runs it; nothing else constructs long-lived things.
package agent

import "context"

// Config is the flags of swarm agent.
type Config struct {
	DataDir, RunDir               string
	ListenAddr, AdvertiseAddr     string // of the node port, default 0.0.0.0:2377
	DataPathAddr                  string
	DataPathPort, GossipPort      int
	Hostname, CgroupParent, Bpffs string
	Containerd                    string   // address of an existing containerd
	NodeResources                 []string // NanoCPUs=…, MemoryBytes=…, KIND=count
	NodeLabels                    []string // engine labels, key=value
	InsecureRegistries            []string
	Debug                         bool
	Version                       string
}

// Run is the agent until ctx ends. Containers, keeper and containerd live on.
func Run(ctx context.Context, cfg Config) error { panic("contract") }

// RunKeeper is the keeper process.
func RunKeeper(ctx context.Context, runDir, logDir string) error { panic("contract") }
