package cli

import (
	"slices"
	"strings"

	"github.com/docker/cli/cli/command/commands"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// hoisted are docker's commands that the API serves, with what we say about each: the group's line, then an example per command.
// A command that is not listed does not exist for us.
var hoisted = []struct {
	group    string
	short    string
	examples map[string]string
}{
	{"node", "Manage the cluster's nodes", map[string]string{
		"demote":  "  swarm node demote n2",
		"inspect": "  swarm node inspect self --pretty",
		"ls":      "  swarm node ls\n  swarm node ls --filter role=manager",
		"promote": "  swarm node promote n3",
		"ps":      "  swarm node ps n2",
		"rm":      "  swarm node rm n3",
		"update":  "  swarm node update --availability drain n2\n  swarm node update --label-add disk=ssd n2",
	}},
	{"service", "Manage services", map[string]string{
		"create":   "  swarm service create --name hello --replicas 6 IMAGE\n  swarm service create --name agent --mode global --network host IMAGE COMMAND",
		"inspect":  "  swarm service inspect --pretty hello",
		"logs":     "  swarm service logs --follow --tail 20 hello",
		"ls":       "  swarm service ls",
		"ps":       "  swarm service ps hello\n  swarm service ps --filter desired-state=running hello",
		"rm":       "  swarm service rm hello",
		"rollback": "  swarm service rollback hello",
		"scale":    "  swarm service scale hello=9",
		"update":   "  swarm service update --replicas 9 hello\n  swarm service update --env-add LEVEL=debug hello",
	}},
	{"image", "Manage the images on this node", map[string]string{
		"inspect": "  swarm image inspect hello:1",
		"load":    "  swarm image load --input hello.tar\n  swarm image load < hello.tar",
		"ls":      "  swarm image ls",
		"pull":    "  swarm image pull debian:12",
		"rm":      "  swarm image rm hello:1",
	}},
}

// notOffered are flags of docker's commands that nothing behind the API supports on Linux, or not yet.
// They stay parsed, so that the agent's refusal says why; help and completion do not offer them.
var notOffered = map[string]string{
	"service create": "config credential-spec endpoint-mode generic-resource health-cmd health-interval health-retries health-start-interval " +
		"health-start-period health-timeout isolation max-concurrent memory-swappiness publish secret with-registry-auth",
	"service update": "config-add config-rm credential-spec endpoint-mode generic-resource-add generic-resource-rm health-cmd health-interval " +
		"health-retries health-start-interval health-start-period health-timeout isolation max-concurrent memory-swappiness publish-add publish-rm " +
		"secret-add secret-rm with-registry-auth",
	"image load":    "platform",
	"image pull":    "all-tags disable-content-trust platform",
	"image rm":      "platform",
	"image inspect": "platform",
	"image ls":      "tree",
}

// reworded are help texts that would promise too much.
var reworded = map[string]map[string]string{
	"service create": {
		"mode":       `Service mode ("replicated", "global")`,
		"network":    `Network of the containers ("host", "none"; without it loopback only)`,
		"log-driver": `Logging driver ("json-file", "none")`,
		"log-opt":    "Logging driver options (max-size, max-file)",
	},
	"service update": {
		"log-driver": `Logging driver ("json-file", "none")`,
		"log-opt":    "Logging driver options (max-size, max-file)",
	},
}

// hoistDocker builds docker's tree on the side and moves the wanted groups to our root.
func hoistDocker(root *cobra.Command, e *engine) {
	side := &cobra.Command{Use: "docker"}
	commands.AddCommands(side, e)
	for _, c := range side.Commands() {
		for _, h := range hoisted {
			if c.Name() == h.group {
				side.RemoveCommand(c)
				c.Use, c.Short = h.group+" COMMAND", h.short
				c.Example = firstExample(h.examples)
				keepOnly(c, h.examples)
				inOurWords(c)
				add(root, groupWork, c)
			}
		}
	}
}

func firstExample(examples map[string]string) string {
	for _, name := range []string{"create", "load", "ls"} {
		if text, ok := examples[name]; ok {
			return strings.SplitN(text, "\n", 2)[0]
		}
	}
	return ""
}

func keepOnly(group *cobra.Command, examples map[string]string) {
	for _, c := range group.Commands() {
		example, wanted := examples[c.Name()]
		if !wanted {
			group.RemoveCommand(c)
			continue
		}
		c.Example = example
		path := group.Name() + " " + c.Name()
		for _, flag := range strings.Fields(notOffered[path]) {
			_ = c.Flags().MarkHidden(flag)
		}
		for flag, usage := range reworded[path] {
			c.Flags().Lookup(flag).Usage = usage
		}
	}
}

// inOurWords drops what speaks of docker from a command's help: ready-made alias lines and links to docker's manual.
func inOurWords(cmd *cobra.Command) {
	cmd.Annotations = nil
	cmd.Short = ourWords(cmd.Short)
	cmd.Long = ourWords(cmd.Long)
	cmd.Flags().VisitAll(func(f *pflag.Flag) { f.Usage = ourWords(f.Usage) })
	for _, c := range cmd.Commands() {
		inOurWords(c)
	}
}

func ourWords(text string) string {
	lines := strings.Split(text, "\n")
	lines = slices.DeleteFunc(lines, func(line string) bool { return strings.Contains(line, "docs.docker.com") })
	text = strings.Join(lines, "\n")
	return strings.NewReplacer("the swarm", "the cluster", "swarm agents", "the nodes", "docker ", "swarm ").Replace(text)
}

// showsProgress reports whether a command watches a service until it has converged.
func showsProgress(cmd *cobra.Command) bool {
	if cmd.Parent() == nil || cmd.Parent().Name() != "service" {
		return false
	}
	return slices.Contains([]string{"create", "update", "scale", "rollback"}, cmd.Name())
}
