package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// A recovered cluster has a lineage of its own: managers of different ones exchange nothing, because raft's terms and
// indexes mean the same only within one. The first two bytes count the recoveries, the rest is random, so that two
// managers that were both recovered do not take each other for members.
const (
	lineageKey             = "Lineage"
	lineageRandomBits      = 48
	greetingVersion   byte = 1
	greetingBytes          = 9
	// greetingWait bounds how long the other end may take to say its lineage.
	greetingWait = 5 * time.Second
)

// lineage is what a replica tells at the beginning of each raft stream.
type lineage struct {
	stable raft.StableStore
	// superseded is told when another manager's lineage is younger.
	superseded func(error)

	mu sync.Mutex // guards:
	id uint64
	// fresh says that the replica has nothing yet, so that it takes the lineage of whoever contacts it first.
	fresh bool
}

// readLineage is 0 for a cluster that was never recovered.
func readLineage(stable raft.StableStore) (uint64, error) {
	id, err := stable.GetUint64([]byte(lineageKey))
	if err != nil && err.Error() == errNoValue.Error() {
		return 0, nil
	}
	return id, err
}

// nextLineage is for the recovery of a manager of an older one.
func nextLineage(old uint64) uint64 {
	var random [8]byte
	fillRandom(random[:])
	return (old>>lineageRandomBits+1)<<lineageRandomBits | binary.BigEndian.Uint64(random[:])>>(64-lineageRandomBits)
}

// supersededError ends a replica whose cluster was recovered without it.
type supersededError struct{}

func (supersededError) Error() string {
	return "the cluster was made anew from another manager with --force-new-cluster, so this manager's copy of its state is outdated. Nothing was changed here. Leave the cluster (swarm leave --force) and join it again"
}

// IsSuperseded says whether a Store ended because its cluster was recovered from another manager: its state is of no use any more.
func IsSuperseded(err error) bool { return errors.As(err, new(supersededError)) }

var errOtherLineage = errors.New("the other manager's state is from before this cluster was recovered, or from another recovery")

// meet decides whether to talk to a manager of a lineage.
func (l *lineage) meet(theirs uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case theirs == l.id:
		l.fresh = false
		return nil
	case l.fresh:
		if err := l.stable.SetUint64([]byte(lineageKey), theirs); err != nil {
			return fmt.Errorf("note the cluster's lineage: %w", err)
		}
		l.id, l.fresh = theirs, false
		return nil
	case theirs>>lineageRandomBits > l.id>>lineageRandomBits:
		l.superseded(supersededError{})
		return supersededError{}
	}
	return errOtherLineage
}

func (l *lineage) current() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.id
}

func (l *lineage) send(conn net.Conn) error {
	_, err := conn.Write(binary.BigEndian.AppendUint64([]byte{greetingVersion}, l.current()))
	return err
}

func (l *lineage) receive(conn net.Conn) (uint64, error) {
	var greeting [greetingBytes]byte
	if _, err := io.ReadFull(conn, greeting[:]); err != nil {
		return 0, err
	}
	if greeting[0] != greetingVersion {
		return 0, fmt.Errorf("raft stream of version %d, this version of swarm speaks %d", greeting[0], greetingVersion)
	}
	return binary.BigEndian.Uint64(greeting[1:]), nil
}

// greet is the dialling side: it speaks first, so that a fresh manager knows what to take up.
func (l *lineage) greet(conn net.Conn, within time.Duration) error {
	if err := conn.SetDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	if err := l.send(conn); err != nil {
		return err
	}
	theirs, err := l.receive(conn)
	if err != nil {
		return err
	}
	if err := l.meet(theirs); err != nil {
		return err
	}
	return conn.SetDeadline(time.Time{})
}

// welcome is the accepting side. It answers a refusal, too: the other one may have to learn that it is outdated.
func (l *lineage) welcome(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(greetingWait)); err != nil {
		return err
	}
	theirs, err := l.receive(conn)
	if err != nil {
		return err
	}
	refused := l.meet(theirs)
	if err := errors.Join(refused, l.send(conn)); err != nil {
		return err
	}
	return conn.SetDeadline(time.Time{})
}
