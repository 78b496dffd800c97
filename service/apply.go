package service

import (
	"log/slog"

	"swarm/raftstore"
	"swarm/service/task"

	"github.com/moby/moby/api/types/swarm"
)

// guardName makes two orchestrators, of which one has lost leadership without knowing, run into a conflict.
const guardName = "orchestrator"

// apply writes a step into tx, or nothing when what it was decided on is no longer so. The service is then decided on again.
func (s step) apply(tx *raftstore.Tx) bool {
	for _, c := range s.changes {
		if !c.holds(tx) {
			return false
		}
	}
	for _, c := range s.changes {
		c.write(tx)
	}
	return true
}

// holds says whether a change still makes sense on the rows as they are at commit time.
func (c change) holds(tx *raftstore.Tx) bool {
	switch c.op {
	case opCreate:
		service, ok := tx.Services.Get(c.task.ServiceID)
		return ok && !service.Removing && (c.task.Status.State != swarm.TaskStateAssigned || takesTasks(tx, c.task.NodeID))
	case opUpdateStatus:
		service, ok := tx.Services.Get(c.service.ID)
		return ok && service.SpecVersion == c.service.SpecVersion
	case opRollback:
		service, ok := tx.Services.Get(c.service.ID)
		return ok && service.SpecVersion == c.service.SpecVersion && tx.Spec(service.ID, c.version) != nil
	case opEraseSpec, opEraseService:
		service, ok := tx.Services.Get(c.service.ID)
		return ok && service.SpecVersion == c.service.SpecVersion && service.Removing == c.service.Removing
	}
	row, ok := tx.Tasks.Get(c.task.ID)
	if !ok {
		return false
	}
	switch c.op {
	case opDesire:
		return task.LegalDesired(row.DesiredState, c.desired)
	case opObserve:
		if c.status.State == swarm.TaskStateAssigned && !takesTasks(tx, c.nodeID) {
			return false
		}
		return task.Before(row.Status.State, c.status.State) || row.Status.State == c.status.State && c.status.State == swarm.TaskStatePending
	}
	return true
}

// takesTasks says whether a node is still open for new tasks.
func takesTasks(tx *raftstore.Tx, nodeID string) bool {
	n, ok := tx.Nodes.Get(nodeID)
	return ok && open(n)
}

func (c change) write(tx *raftstore.Tx) {
	switch c.op {
	case opCreate:
		tx.PutTask(*c.task)
	case opDesire:
		c.edit(tx, func(t *raftstore.Task) { t.DesiredState = c.desired })
	case opObserve:
		c.edit(tx, func(t *raftstore.Task) { t.Status, t.NodeID = c.status, c.nodeOf(t) })
	case opErase:
		tx.DeleteTask(c.task.ID)
	case opUpdateStatus:
		row, _ := tx.Services.Get(c.service.ID)
		service := *row
		service.UpdateStatus = c.update
		tx.PutObservedService(service)
	case opRollback:
		c.rollBack(tx)
	case opEraseSpec:
		tx.DeleteSpec(raftstore.SpecID(c.service.ID, c.version))
	case opEraseService:
		tx.DeleteService(c.service.ID)
	}
}

// rollBack makes an earlier spec the current one, as a new version. There is no way back from it but the next update.
func (c change) rollBack(tx *raftstore.Tx) {
	row, _ := tx.Services.Get(c.service.ID)
	service := *row
	service.SpecVersion++
	service.PreviousSpecVersion = 0
	service.UpdateStatus = c.update
	tx.PutService(service)
	v := raftstore.Spec{ServiceID: service.ID, SpecVersion: service.SpecVersion, Spec: *tx.Spec(service.ID, c.version)}
	v.ID = raftstore.SpecID(service.ID, service.SpecVersion)
	tx.PutSpec(v)
}

// edit changes a task's row as observed state: its version stays that of its creation, which orders the tasks of a slot.
func (c change) edit(tx *raftstore.Tx, change func(*raftstore.Task)) {
	row, ok := tx.Tasks.Get(c.task.ID)
	if !ok {
		return
	}
	t := *row
	change(&t)
	tx.PutObservedTask(t)
}

func (c change) nodeOf(t *raftstore.Task) string {
	if c.nodeID != "" {
		return c.nodeID
	}
	return t.NodeID
}

// log writes one line per transition of a task.
func (s step) log(log *slog.Logger, serviceName string) {
	for _, c := range s.changes {
		switch {
		case c.op == opUpdateStatus, c.op == opRollback:
			log.Info("service update", "service", serviceName, "state", c.update.State, "message", c.update.Message)
			continue
		case c.op == opEraseService:
			log.Info("service removed", "service", serviceName)
			continue
		case c.op == opEraseSpec:
			continue
		}
		with := log.With("task", c.task.ID, "service", serviceName, "slot", slotName(c.task), "reason", s.why)
		switch c.op {
		case opCreate:
			logPlace(with.With("desired", c.task.DesiredState), c.task.NodeID, c.task.Status)
		case opDesire:
			with.Info("task wanted", "node", c.task.NodeID, "desired", c.desired)
		case opObserve:
			logPlace(with, c.nodeOf(c.task), c.status)
		case opErase:
			with.Info("task deleted", "node", c.task.NodeID)
		}
	}
}

func logPlace(log *slog.Logger, nodeID string, s raftstore.TaskStatus) {
	switch s.State {
	case swarm.TaskStateAssigned:
		log.Info("task placed", "node", nodeID)
	case swarm.TaskStatePending:
		log.Info("task waits", "err", s.Err)
	default:
		log.Info("task state", "node", nodeID, "state", s.State, "err", s.Err)
	}
}
