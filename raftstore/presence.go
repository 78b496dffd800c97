package raftstore

import (
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// Presence is what the managers know of a node's agent. The empty one is that of a node that never came.
type Presence string

const (
	// PresenceHeard: a manager has a session with the agent and hears its beats.
	PresenceHeard Presence = "heard"
	// PresenceAnnounced: the agent said good-bye and why; nothing is guessed for as long as it may take.
	PresenceAnnounced Presence = "announced"
	// PresenceAway: the agent is gone, but the node's port accepts, so only the agent is concerned: containers run on,
	// traffic goes on, and the grace time runs.
	PresenceAway Presence = "away"
	// PresenceSuspect: nothing of the node answers, or its agent is silent. New connections avoid its endpoints while others exist; nothing is moved.
	PresenceSuspect Presence = "suspect"
	// PresenceLost: the manager that heard the node is lost, so nobody knows. It is never a suspicion of the node.
	PresenceLost Presence = "lost"
	// PresenceDown: nobody heard the node for the grace time, or it announced that it goes for good; its tasks are replaced.
	PresenceDown Presence = "down"
)

// Session says which manager, if any, hears the node's agent, and else what is known of it.
type Session struct {
	// Manager is the id of the manager that serves the session, or served the last one; ID is the session's own id.
	Manager string
	ID      string
	// Presence is what is known now, and Reason why, where there is more to say: what a good-bye announced.
	Presence Presence
	Reason   string
	// Silence is how long the node had been silent when Presence was written.
	Silence time.Duration
	// Since is when Presence was written, by the clock of the manager that did.
	Since time.Time
}

// Heard says whether the managers hear the agent.
func (s Session) Heard() bool { return s.Presence == PresenceHeard }

// Observe takes what was learned of a node's agent, and says it in the API's words too.
func (n *Node) Observe(s Session) {
	s.Since = s.Since.UTC().Round(0)
	n.Session = s
	n.Status.State, n.Status.Message = s.status()
}

// presenceOf is what rows of the first format say.
func presenceOf(heard bool, state swarm.NodeState) Presence {
	switch {
	case heard:
		return PresenceHeard
	case state == swarm.NodeStateDown:
		return PresenceDown
	case state == swarm.NodeStateDisconnected:
		return PresenceAway
	}
	return ""
}

// status is what the API says of a node.
func (s Session) status() (state swarm.NodeState, message string) {
	switch s.Presence {
	case PresenceHeard:
		return swarm.NodeStateReady, ""
	case PresenceAnnounced:
		return swarm.NodeStateDisconnected, "the node announced: " + s.Reason
	case PresenceAway:
		return swarm.NodeStateDisconnected, "its agent does not answer, its containers run on"
	case PresenceSuspect:
		return swarm.NodeStateUnknown, "the node does not answer, new connections avoid it"
	case PresenceLost:
		return swarm.NodeStateUnknown, "the manager that heard the node is lost"
	case PresenceDown:
		if s.Reason != "" {
			return swarm.NodeStateDown, "the node announced: " + s.Reason
		}
		return swarm.NodeStateDown, "heartbeat failure"
	}
	return swarm.NodeStateUnknown, ""
}
