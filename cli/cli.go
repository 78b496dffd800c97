// Package cli is the command line: client verbs speak HTTP to an agent, "swarm agent" is the agent itself.
package cli

import "io"

// Main runs one command line and returns the exit status.
func Main(args []string, stdout, stderr io.Writer) int { panic("contract") }
