package containerd

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
)

const (
	// unixPathMax is the longest path of a unix socket, without its final zero.
	unixPathMax = 107
	// socketDirMax is the longest directory that containerd accepts for the sockets of shims.
	socketDirMax = 38
	// oomScore keeps containerd alive longer than what it runs.
	oomScore = -999
)

// unneeded are the plugins of containerd that nothing here uses: they cost memory, sockets and time at start.
var unneeded = [...]string{
	"io.containerd.grpc.v1.cri",
	"io.containerd.cri.v1.images",
	"io.containerd.cri.v1.runtime",
	"io.containerd.podsandbox.controller.v1.podsandbox",
	"io.containerd.sandbox.controller.v1.shim",
	"io.containerd.grpc.v1.sandbox-controllers",
	"io.containerd.grpc.v1.sandboxes",
	"io.containerd.nri.v1.nri",
	"io.containerd.internal.v1.opt",
	"io.containerd.internal.v1.tracing",
	"io.containerd.tracing.processor.v1.otlp",
	"io.containerd.metrics.v1.grpc-otel",
	"io.containerd.ttrpc.v1.otelttrpc",
	"io.containerd.image-verifier.v1.bindir",
	"io.containerd.monitor.container.v1.restart",
	"io.containerd.http.v1.pprof",
	"io.containerd.transfer.v1.local",
	"io.containerd.grpc.v1.transfer",
	"io.containerd.differ.v1.erofs",
	"io.containerd.mount-handler.v1.erofs",
	"io.containerd.snapshotter.v1.blockfile",
	"io.containerd.snapshotter.v1.btrfs",
	"io.containerd.snapshotter.v1.devmapper",
	"io.containerd.snapshotter.v1.erofs",
	"io.containerd.snapshotter.v1.native",
	"io.containerd.snapshotter.v1.zfs",
}

// paths are the files of a private containerd.
type paths struct {
	config, log, root string // under the data directory
	state, socket     string // under the run directory
	pid, shimSockets  string
}

// privatePaths lays a private containerd out. InvalidArgument when its socket's path would be too long for the kernel.
func privatePaths(dataDir, runDir string) (paths, error) {
	p := paths{
		config:      filepath.Join(dataDir, "config.toml"),
		log:         filepath.Join(dataDir, "containerd.log"),
		root:        filepath.Join(dataDir, "root"),
		state:       filepath.Join(runDir, "state"),
		socket:      filepath.Join(runDir, "c.sock"),
		pid:         filepath.Join(runDir, "pid"),
		shimSockets: filepath.Join(runDir, "s"),
	}
	if n := len(p.socket + ".ttrpc"); n > unixPathMax {
		return p, fmt.Errorf("run directory %s is %d characters too long for a unix socket: choose a shorter --run-dir: %w",
			runDir, n-unixPathMax, errdefs.ErrInvalidArgument)
	}
	if len(p.shimSockets) > socketDirMax {
		sum := sha256.Sum256([]byte(runDir))
		p.shimSockets = "/run/swarm-s/" + hex.EncodeToString(sum[:8])
	}
	return p, nil
}

// configTOML is the whole configuration of a private containerd.
func configTOML(p paths) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Written by the agent at each start of containerd; changes are lost.\n")
	fmt.Fprintf(&b, "version = 3\nroot = %q\nstate = %q\noom_score = %d\nimports = []\n", p.root, p.state, oomScore)
	fmt.Fprintf(&b, "disabled_plugins = [\n")
	for _, name := range unneeded {
		fmt.Fprintf(&b, "  %q,\n", name)
	}
	fmt.Fprintf(&b, "]\n\n[debug]\nlevel = \"warn\"\n\n")
	fmt.Fprintf(&b, "[grpc]\naddress = %q\n\n[ttrpc]\naddress = %q\n\n", p.socket, p.socket+".ttrpc")
	fmt.Fprintf(&b, "[plugins.\"io.containerd.shim.v1.manager\"]\nsocket_dir = %q\n", p.shimSockets)
	return b.String()
}
