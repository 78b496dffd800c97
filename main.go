// Command swarm is the cluster agent and its command line. It hands over to cli and does nothing else.
package main

import (
	"os"

	"swarm/cli"
)

func main() { os.Exit(cli.Main(os.Args, os.Stdout, os.Stderr)) }
