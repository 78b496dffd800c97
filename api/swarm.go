package api

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"swarm/raftstore"
	"swarm/service/spec"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

// clusterName is the only name that the cluster's settings can have.
const clusterName = "default"

func (a *API) swarmInspect(w http.ResponseWriter, r *request) error {
	state, err := a.view(w, r)
	if err != nil {
		return err
	}
	cluster := state.Cluster()
	return writeJSON(w, http.StatusOK, swarm.Swarm{ClusterInfo: renderCluster(cluster), JoinTokens: cluster.JoinTokens})
}

// renderCluster shows settings with the values in force, also where they were left to their defaults.
func renderCluster(c *raftstore.Cluster) swarm.ClusterInfo {
	info := swarm.ClusterInfo{
		ID: c.ID, Meta: renderMeta(c.Meta), Spec: c.Spec, TLSInfo: tlsInfo(c.RootPEM),
		DataPathPort: c.DataPathPort, SubnetSize: c.SubnetSize, DefaultAddrPool: []netip.Prefix{},
	}
	if info.Spec.Labels == nil {
		info.Spec.Labels = map[string]string{}
	}
	info.Spec.CAConfig.SigningCAKey = ""
	history := spec.TaskHistory(c.Spec)
	info.Spec.Orchestration.TaskHistoryRetentionLimit = &history
	info.Spec.Dispatcher.HeartbeatPeriod = spec.HeartbeatPeriod(c.Spec)
	for _, pool := range c.DefaultAddrPool {
		if prefix, err := netip.ParsePrefix(pool); err == nil {
			info.DefaultAddrPool = append(info.DefaultAddrPool, prefix)
		}
	}
	return info
}

// tlsInfo describes the root certificate that the cluster trusts.
func tlsInfo(rootPEM []byte) swarm.TLSInfo {
	info := swarm.TLSInfo{TrustRoot: string(rootPEM)}
	block, _ := pem.Decode(rootPEM)
	if block == nil {
		return info
	}
	if root, err := x509.ParseCertificate(block.Bytes); err == nil {
		info.CertIssuerSubject = root.RawSubject
		info.CertIssuerPublicKey = root.RawSubjectPublicKeyInfo
	}
	return info
}

func (a *API) swarmInit(w http.ResponseWriter, r *request) error {
	var body swarm.InitRequest
	if err := r.decode(&body); err != nil {
		return err
	}
	if inSwarm(a.cfg.Node.Status().State) && !body.ForceNewCluster {
		return unavailable(textSwarmExists)
	}
	if body.AutoLockManagers {
		return autolockNotYet()
	}
	// A forced new cluster keeps its settings.
	if err := checkClusterSpec(&body.Spec); err != nil && !body.ForceNewCluster {
		return err
	}
	id, err := a.cfg.Node.Init(r.Context(), body)
	if err != nil {
		return err
	}
	a.log.Info("swarm initialized", "node", id)
	return writeJSON(w, http.StatusOK, id)
}

// swarmRecovery previews POST /swarm/init with ForceNewCluster. It is an endpoint of ours.
func (a *API) swarmRecovery(w http.ResponseWriter, r *request) error {
	preview, err := a.cfg.Node.PreviewRecovery(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, preview)
}

func autolockNotYet() error {
	return errdefs.ErrNotImplemented.WithMessage("autolock is not supported yet: managers seal their state with a key of their own; leave --autolock out")
}

// inSwarm says whether a node in this state has to leave before it can init or join.
func inSwarm(state swarm.LocalNodeState) bool {
	return state != swarm.LocalNodeStateInactive && state != ""
}

func checkClusterSpec(s *swarm.Spec) error {
	if err := spec.ValidateCluster(*s); err != nil {
		return err
	}
	s.Name = clusterName
	return nil
}

func (a *API) swarmJoin(w http.ResponseWriter, r *request) error {
	var body swarm.JoinRequest
	if err := r.decode(&body); err != nil {
		return err
	}
	if inSwarm(a.cfg.Node.Status().State) {
		return unavailable(textSwarmExists)
	}
	if len(body.RemoteAddrs) == 0 {
		return invalid("at least 1 RemoteAddr is required to join")
	}
	if err := a.cfg.Node.Join(r.Context(), body); err != nil {
		return err
	}
	a.log.Info("swarm joined", "managers", body.RemoteAddrs)
	w.WriteHeader(http.StatusOK)
	return nil
}

func (a *API) swarmLeave(w http.ResponseWriter, r *request) error {
	status := a.cfg.Node.Status()
	if !inSwarm(status.State) {
		return unavailable(textNoSwarm)
	}
	force := r.flag("force")
	if status.Store != nil && !force {
		return unavailable(a.leaveWarning(status.Store))
	}
	if err := a.cfg.Node.Leave(r.Context(), force); err != nil {
		return err
	}
	a.log.Info("swarm left", "force", force)
	w.WriteHeader(http.StatusOK)
	return nil
}

// leaveWarning says what the cluster loses when this manager leaves.
func (a *API) leaveWarning(store *raftstore.Store) string {
	text := "You are attempting to leave the swarm on a node that is participating as a manager. "
	up, all := managerCounts(store.Local(), a.members())
	switch {
	case all <= 1:
		return text + "Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message."
	case up-1 < all/2+1:
		text += fmt.Sprintf("Removing this node leaves %d managers out of %d. Without a Raft quorum your swarm will be inaccessible. ", up-1, all)
	}
	return text + "Demote it first (`node demote`), which keeps the quorum right. Use `--force` to suppress this message."
}

func (a *API) swarmUpdate(w http.ResponseWriter, r *request) error {
	if _, err := a.manager(); err != nil {
		return err
	}
	version, err := r.objectVersion("swarm")
	if err != nil {
		return err
	}
	var wanted swarm.Spec
	if err := r.decode(&wanted); err != nil {
		return err
	}
	if r.flag("rotateManagerUnlockKey") {
		return autolockNotYet()
	}
	rotate := rotation{worker: r.flag("rotateWorkerToken"), manager: r.flag("rotateManagerToken")}
	if (rotate.worker || rotate.manager) && a.cfg.NewJoinToken == nil {
		return errdefs.ErrNotImplemented.WithMessage("this agent cannot make join tokens")
	}
	err = a.update(r.Context(), func(tx *raftstore.Tx) error { return a.updateCluster(tx, version, wanted, rotate) })
	if err != nil {
		return err
	}
	a.log.Info("swarm updated", "rotated worker token", rotate.worker, "rotated manager token", rotate.manager)
	w.WriteHeader(http.StatusOK)
	return nil
}

// rotation names the join tokens to be replaced.
type rotation struct{ worker, manager bool }

func (a *API) updateCluster(tx *raftstore.Tx, version uint64, wanted swarm.Spec, rotate rotation) error {
	row := tx.Cluster()
	if row == nil {
		return unavailable(textManagerNotUp)
	}
	if row.Version != version {
		return errOutdated
	}
	next := *row
	next.Spec = mergeClusterSpec(row.Spec, wanted)
	if err := checkClusterSpec(&next.Spec); err != nil {
		return err
	}
	var err error
	if rotate.worker {
		if next.JoinTokens.Worker, err = a.cfg.NewJoinToken(row.RootPEM); err != nil {
			return fmt.Errorf("make worker join token: %w", err)
		}
	}
	if rotate.manager {
		if next.JoinTokens.Manager, err = a.cfg.NewJoinToken(row.RootPEM); err != nil {
			return fmt.Errorf("make manager join token: %w", err)
		}
	}
	next.UpdatedAt = time.Now().UTC()
	tx.PutCluster(next)
	return nil
}

// mergeClusterSpec keeps the current value of every setting that a client left out.
func mergeClusterSpec(current, wanted swarm.Spec) swarm.Spec {
	if wanted.Orchestration.TaskHistoryRetentionLimit == nil {
		wanted.Orchestration = current.Orchestration
	}
	keep(&wanted.Raft.SnapshotInterval, current.Raft.SnapshotInterval)
	keep(&wanted.Raft.KeepOldSnapshots, current.Raft.KeepOldSnapshots)
	keep(&wanted.Raft.LogEntriesForSlowFollowers, current.Raft.LogEntriesForSlowFollowers)
	keep(&wanted.Raft.ElectionTick, current.Raft.ElectionTick)
	keep(&wanted.Raft.HeartbeatTick, current.Raft.HeartbeatTick)
	keep(&wanted.Dispatcher.HeartbeatPeriod, current.Dispatcher.HeartbeatPeriod)
	keep(&wanted.CAConfig.NodeCertExpiry, current.CAConfig.NodeCertExpiry)
	return wanted
}

func keep[T comparable](wanted *T, current T) {
	var none T
	if *wanted == none {
		*wanted = current
	}
}

// swarmUnlockKey answers an empty key, which is how clients learn that none is set.
func (a *API) swarmUnlockKey(w http.ResponseWriter, r *request) error {
	if _, err := a.manager(); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, swarm.UnlockKeyResponse{})
}

func (a *API) swarmUnlock(w http.ResponseWriter, r *request) error {
	var body swarm.UnlockRequest
	if err := r.decode(&body); err != nil {
		return err
	}
	switch state := a.cfg.Node.Status().State; {
	case !inSwarm(state):
		return unavailable(textNoSwarm)
	case state == swarm.LocalNodeStateLocked:
		return autolockNotYet()
	}
	return errdefs.ErrConflict.WithMessage("swarm is not locked")
}
