// Package cli is the command line: client verbs speak HTTP to an agent, and "swarm agent" is the agent itself.
// main hands over to it; the verbs for services, nodes and images are docker's own commands, hoisted to our root and put in our words.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	dockercli "github.com/docker/cli/cli"
)

// Exit statuses. Scripts written for docker read them in the same way.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 125 // a flag that does not exist or does not parse
)

// Main runs one command line and returns the exit status.
func Main(args []string, stdout, stderr io.Writer) int {
	return run(context.Background(), args[1:], os.Stdin, stdout, stderr)
}

func run(ctx context.Context, args []string, stdin io.ReadCloser, stdout, stderr io.Writer) int {
	root, err := newRoot(args, stdin, stdout, stderr)
	if err != nil {
		fmt.Fprintln(stderr, err)
		return exitFailure
	}
	return exitStatus(root.ExecuteContext(ctx), stderr)
}

// exitStatus prints err, if there is something to print, and turns it into an exit status.
func exitStatus(err error, stderr io.Writer) int {
	if err == nil {
		return exitOK
	}
	// The client wraps a failed connection in the request's address, which says nothing more.
	if lost := new(unreachableError); errors.As(err, &lost) {
		err = lost
	}
	if text := err.Error(); text != "" && !errdefs.IsCanceled(err) {
		fmt.Fprintln(stderr, ourCommands(text))
	}
	if status := new(dockercli.StatusError); errors.As(err, status) && status.StatusCode != 0 {
		return status.StatusCode
	}
	return exitFailure
}

// ourCommands names commands as they are here. The agent's own texts are those that scripts written for docker look for,
// next steps included.
func ourCommands(text string) string {
	return strings.NewReplacer("docker swarm ", "swarm ", "docker node ", "swarm node ", "docker service ", "swarm service ", "docker info", "swarm info").Replace(text)
}
