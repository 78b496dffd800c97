package raftstore

import (
	"errors"
	"time"
)

// Recovery is what becoming a cluster of one would mean for a manager that the others cannot be reached from.
type Recovery struct {
	NodeID string
	// LastIndex is that of the last entry in this manager's log, LastChange when the newest change in it was proposed.
	LastIndex  uint64
	LastChange time.Time
	// Unconfirmed is how many changes in the log are not known to be committed. They are kept, because they may have been acknowledged.
	Unconfirmed int
	// LastContact is when this manager last heard of a leader; zero if that is not known. What the others
	// committed after that is lost.
	LastContact time.Time
	// Removed are the managers that would not be managers any more.
	Removed []Member
	// Services and Tasks are how many rows are kept.
	Services int
	Tasks    int
}

// PreviewRecovery says what Recover would do, and changes nothing. It needs of cfg what Recover needs.
func PreviewRecovery(cfg Config) (Recovery, error) {
	return Recovery{}, errors.New("not implemented yet")
}

// Recover makes the manager whose state lies in cfg.Dir (or cfg.Disk) the only one of its cluster. It needs NodeID, Address and
// Sealer of cfg, and that no Store has the directory open.
func Recover(cfg Config) (Recovery, error) {
	return Recovery{}, errors.New("not implemented yet")
}
