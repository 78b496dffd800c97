package rpc

// What an agent says when it ends a session on purpose: the reasons of a Goodbye. Others count as a restart.
const (
	GoodbyeRestart  = "restart"  // of the agent; the machine goes on
	GoodbyeDrain    = "drain"    // the same on a drained node
	GoodbyeShutdown = "shutdown" // of the machine: nothing runs on
	GoodbyeLeave    = "leave"
	GoodbyeMove     = "move" // to another manager
)
