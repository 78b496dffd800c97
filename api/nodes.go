package api

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"swarm/raftstore"
	"swarm/service/spec"

	"github.com/moby/moby/api/types/swarm"
)

// findNode looks up by id, host name, id prefix, or "self".
func (a *API) findNode(state *raftstore.State, ref string) (*raftstore.Node, error) {
	if ref == "self" {
		ref = a.cfg.Node.Status().NodeID
	}
	if row, ok := state.Nodes.Get(ref); ok {
		return row, nil
	}
	var named, prefixed []*raftstore.Node
	for row := range state.Nodes.All() {
		if row.Description.Hostname == ref || row.Spec.Name != "" && row.Spec.Name == ref {
			named = append(named, row)
		}
		if strings.HasPrefix(row.ID, ref) {
			prefixed = append(prefixed, row)
		}
	}
	found := named
	if len(found) == 0 {
		found = prefixed
	}
	switch {
	case len(found) == 0 || ref == "":
		return nil, notFound("node %s not found", ref)
	case len(found) > 1:
		return nil, invalid("node %s is ambiguous (%d matches found)", ref, len(found))
	}
	return found[0], nil
}

func (a *API) nodeList(w http.ResponseWriter, r *request) error {
	f, err := r.filters("id", "name", "label", "node.label", "role", "membership")
	if err != nil {
		return err
	}
	for _, role := range f["role"] {
		if role != string(swarm.NodeRoleManager) && role != string(swarm.NodeRoleWorker) {
			return invalid("invalid role filter: '%s'", role)
		}
	}
	for _, m := range f["membership"] {
		if m != "accepted" && m != "pending" {
			return invalid("invalid membership filter: '%s'", m)
		}
	}
	state, err := a.view(w, r)
	if err != nil {
		return err
	}
	members := a.members()
	list := []swarm.Node{}
	for row := range state.Nodes.All() {
		if f.prefix("id", row.ID) && f.prefix("name", nodeName(row)) && f.labels("label", row.Description.Engine.Labels) &&
			f.labels("node.label", row.Spec.Labels) && f.exact("role", string(row.Role)) && f.exact("membership", "accepted") {
			list = append(list, renderNode(row, members))
		}
	}
	return writeJSON(w, http.StatusOK, list)
}

func nodeName(row *raftstore.Node) string {
	if row.Description.Hostname != "" {
		return row.Description.Hostname
	}
	return row.Spec.Name
}

func (a *API) nodeInspect(w http.ResponseWriter, r *request) error {
	state, err := a.view(w, r)
	if err != nil {
		return err
	}
	row, err := a.findNode(state, r.vars["id"])
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, renderNode(row, a.members()))
}

// members is raft's configuration by node id; empty when this node is no manager. A manager that gossip holds dead is
// unreachable also when this node does not lead and so cannot tell by raft.
func (a *API) members() map[string]raftstore.Member {
	members := map[string]raftstore.Member{}
	status := a.cfg.Node.Status()
	if status.Store == nil {
		return members
	}
	var reached map[string]bool
	if leaderless(status.Store) >= leaderWait {
		reached = status.Store.Reach() // without a leader nobody else knows
	}
	for _, m := range status.Store.Members() {
		if reached != nil && m.Voter {
			m.Reachable = reached[m.NodeID]
		}
		members[m.NodeID] = m
	}
	for _, g := range status.Gossip {
		if m, ok := members[g.NodeID]; ok && (g.State == "dead" || g.State == "left") {
			m.Reachable = false
			members[g.NodeID] = m
		}
	}
	return members
}

func renderNode(row *raftstore.Node, members map[string]raftstore.Member) swarm.Node {
	node := swarm.Node{ID: row.ID, Meta: renderMeta(row.Meta), Spec: row.Spec, Description: row.Description, Status: row.Status}
	if node.Spec.Labels == nil {
		node.Spec.Labels = map[string]string{}
	}
	if node.Status.State == "" {
		node.Status.State = swarm.NodeStateUnknown
	}
	if node.Status.Addr == "" {
		node.Status.Addr = hostOf(row.Address)
	}
	if m, ok := members[row.ID]; ok {
		node.ManagerStatus = &swarm.ManagerStatus{Leader: m.Leader, Reachability: swarm.ReachabilityReachable, Addr: m.Address}
		if !reachable(row, m) {
			node.ManagerStatus.Reachability = swarm.ReachabilityUnreachable
		}
	}
	return node
}

// reachable says whether a manager counts as there. Raft tells the leader alone; the others go by what is known of the node's agent.
func reachable(row *raftstore.Node, m raftstore.Member) bool {
	return m.Reachable && row.Status.State != swarm.NodeStateDown && (m.Leader || row.Session.Presence != raftstore.PresenceSuspect)
}

func hostOf(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return host
}

func (a *API) nodeUpdate(w http.ResponseWriter, r *request) error {
	if _, err := a.manager(); err != nil {
		return err
	}
	version, err := r.objectVersion("node")
	if err != nil {
		return err
	}
	var wanted swarm.NodeSpec
	if err := r.decode(&wanted); err != nil {
		return err
	}
	if err := spec.ValidateNode(wanted); err != nil {
		return err
	}
	members := a.members()
	var id string
	err = a.update(r.Context(), func(tx *raftstore.Tx) error {
		row, err := a.findNode(&tx.State, r.vars["id"])
		if err != nil {
			return err
		}
		id = row.ID
		if row.Version != version {
			return errOutdated
		}
		if wanted.Role != row.Spec.Role {
			tx.Guard(raftstore.GuardManagers)
		}
		if wanted.Role == swarm.NodeRoleWorker && row.Spec.Role == swarm.NodeRoleManager {
			if err := checkDemotion(&tx.State, row, members); err != nil {
				return err
			}
		}
		next := *row
		next.Spec = wanted
		next.UpdatedAt = time.Now().UTC()
		tx.PutNode(next)
		return nil
	})
	if err != nil {
		return err
	}
	a.log.Info("node updated", "node", id, "role", wanted.Role, "availability", wanted.Availability)
	w.WriteHeader(http.StatusOK)
	return nil
}

// checkDemotion refuses to empty the set of managers, and to leave it without a majority that can be reached.
func checkDemotion(state *raftstore.State, row *raftstore.Node, members map[string]raftstore.Member) error {
	if !state.AnotherManager(row.ID) {
		return refused("attempting to demote the last manager of the swarm")
	}
	voters, up := 0, 0
	for id, m := range members {
		if id == row.ID || !m.Voter {
			continue
		}
		voters++
		if other, ok := state.Nodes.Get(id); ok && reachable(other, m) {
			up++
		}
	}
	if members[row.ID].Voter && up < voters/2+1 {
		return refused("can't remove member from the raft: this would result in a loss of quorum (%d of the other %d managers can be reached)", up, voters)
	}
	return nil
}

func (a *API) nodeRemove(w http.ResponseWriter, r *request) error {
	members := a.members()
	var id string
	err := a.update(r.Context(), func(tx *raftstore.Tx) error {
		row, err := a.findNode(&tx.State, r.vars["id"])
		if err != nil {
			return err
		}
		id = row.ID
		if err := checkRemoval(row, members, r.flag("force")); err != nil {
			return err
		}
		tx.Guard(raftstore.GuardManagers)
		tx.DeleteNode(row.ID)
		return nil
	})
	if err != nil {
		return err
	}
	a.log.Info("node removed", "node", id, "force", r.flag("force"))
	w.WriteHeader(http.StatusOK)
	return nil
}

func checkRemoval(row *raftstore.Node, members map[string]raftstore.Member, force bool) error {
	if _, member := members[row.ID]; member || row.Spec.Role == swarm.NodeRoleManager {
		return refused("node %s is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal", row.ID)
	}
	if !force && row.Status.State != swarm.NodeStateDown {
		return refused("node %s is not down and can't be removed", row.ID)
	}
	return nil
}

// managerCounts is how many managers can be reached and how many there are.
func managerCounts(state *raftstore.State, members map[string]raftstore.Member) (up, all int) {
	for id, m := range members {
		all++
		if row, ok := state.Nodes.Get(id); ok && reachable(row, m) {
			up++
		}
	}
	return up, all
}

// evenManagersWarning says what an even number of managers is worth; empty for an odd one.
func evenManagersWarning(managers int) string {
	switch {
	case managers == 2:
		return "Running Swarm in a two-manager configuration. This configuration provides no fault tolerance, and poses a high risk to lose control over the cluster. Add a third manager or demote one."
	case managers > 0 && managers%2 == 0:
		return fmt.Sprintf("Running Swarm with %d managers tolerates no more failures than %d would. Use an odd number of managers.", managers, managers-1)
	}
	return ""
}
