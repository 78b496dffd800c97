package rpc

import "sync"

// calls are the live connections that this node opened, by the id of the node at the other end.
type calls struct {
	mu   sync.Mutex
	live map[string]map[*called]struct{}
}

func (k *calls) add(c *called) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.live == nil {
		k.live = map[string]map[*called]struct{}{}
	}
	if k.live[c.peer.NodeID] == nil {
		k.live[c.peer.NodeID] = map[*called]struct{}{}
	}
	k.live[c.peer.NodeID][c] = struct{}{}
}

func (k *calls) forget(c *called) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.live[c.peer.NodeID], c)
	if len(k.live[c.peer.NodeID]) == 0 {
		delete(k.live, c.peer.NodeID)
	}
}

// of lists the live connections to a node.
func (k *calls) of(nodeID string) (found []*called) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for c := range k.live[nodeID] {
		found = append(found, c)
	}
	return found
}
