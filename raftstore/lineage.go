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
	lineageKey        = "Lineage"
	lineageRandomBits = 48
	// greetingMark begins a greeting: a mark, the lineage, what is read and what is needed. It is above raft's kinds of
	// requests, with which the streams of versions that do not greet begin.
	greetingMark  byte = 0x81
	greetingBytes      = 1 + 8 + 4 + 4
	requestKinds  byte = 0x80
	// greetingWait bounds how long the other end may take to say its lineage.
	greetingWait = 5 * time.Second
)

// greeting is what two managers tell each other at the beginning of each raft stream.
type greeting struct {
	lineage uint64
	// reads is the newest format that the manager reads, needs the one that its cluster writes.
	reads, needs uint32
}

// lineage is what a replica greets others with, and judges them by.
type lineage struct {
	stable raft.StableStore
	// reads is the newest format that this replica reads, needs the one that its cluster writes; 1 while it knows no cluster.
	reads uint32
	needs func() uint32
	// outdated is told when another manager's lineage is younger, or its cluster's format is too new.
	outdated func(error)

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

// meet decides whether to talk to a manager.
func (l *lineage) meet(them greeting) error {
	if err := l.meetLineage(them.lineage); err != nil {
		return err
	}
	needs := l.needs()
	switch {
	case them.needs > l.reads:
		err := newerFormat{"the cluster's log", them.needs, l.reads}
		l.outdated(err)
		return err
	case them.reads < needs:
		return fmt.Errorf("the other manager reads formats up to %d and the cluster's log has format %d: upgrade swarm there", them.reads, needs)
	}
	return nil
}

func (l *lineage) meetLineage(theirs uint64) error {
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
		l.outdated(supersededError{})
		return supersededError{}
	}
	return errOtherLineage
}

// Lineage is another number after each recovery of the cluster from one manager: replicas of different ones share no log, and the
// greater one counts.
func (s *Store) Lineage() uint64 { return s.lineage.current() }

func (l *lineage) current() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.id
}

func (l *lineage) send(conn net.Conn) error {
	message := binary.BigEndian.AppendUint64([]byte{greetingMark}, l.current())
	message = binary.BigEndian.AppendUint32(message, l.reads)
	_, err := conn.Write(binary.BigEndian.AppendUint32(message, l.needs()))
	return err
}

// noGreeting says that the other end does not greet, perhaps because its version is from before greetings.
type noGreeting struct {
	error
	// begun is what was read of the stream instead.
	begun []byte
}

func (e noGreeting) Unwrap() error { return e.error }

func receiveGreeting(conn net.Conn) (them greeting, err error) {
	var message [greetingBytes]byte
	if _, err := io.ReadFull(conn, message[:1]); err != nil {
		return them, noGreeting{err, nil}
	}
	switch {
	case message[0] < requestKinds:
		return them, noGreeting{errors.New("the other manager's version of swarm is too old for this cluster: upgrade swarm there"), message[:1]}
	case message[0] != greetingMark:
		return them, fmt.Errorf("raft stream with greeting %#x, this version of swarm knows %#x", message[0], greetingMark)
	}
	if _, err := io.ReadFull(conn, message[1:]); err != nil {
		return them, err
	}
	them.lineage = binary.BigEndian.Uint64(message[1:])
	them.reads, them.needs = binary.BigEndian.Uint32(message[9:]), binary.BigEndian.Uint32(message[13:])
	return them, nil
}

// knowsOld says whether there may be managers that do not greet: they read the first format only, and know of no recovery.
func (l *lineage) knowsOld() bool { return l.current() == 0 && l.needs() <= 1 }

// greet is the dialling side: it speaks first, so that a fresh manager knows what to take up. It returns what the other reads.
func (l *lineage) greet(conn net.Conn, within time.Duration) (reads uint32, err error) {
	if err := conn.SetDeadline(time.Now().Add(within)); err != nil {
		return 0, err
	}
	if err := l.send(conn); err != nil {
		return 0, noGreeting{err, nil} // the other hung up over what it has read of it
	}
	them, err := receiveGreeting(conn)
	if err != nil {
		return 0, err
	}
	if err := l.meet(them); err != nil {
		return 0, err
	}
	return them.reads, conn.SetDeadline(time.Time{})
}

// welcome is the accepting side. It answers a refusal, too: the other one may have to learn that it is outdated. Of a stream
// that begins without a greeting it returns what it has read of it.
func (l *lineage) welcome(conn net.Conn) (begun []byte, err error) {
	if err := conn.SetDeadline(time.Now().Add(greetingWait)); err != nil {
		return nil, err
	}
	them, err := receiveGreeting(conn)
	var old noGreeting
	if errors.As(err, &old) && old.begun != nil && l.knowsOld() {
		return old.begun, conn.SetDeadline(time.Time{})
	}
	if err != nil {
		return nil, err
	}
	refused := l.meet(them)
	if err := errors.Join(refused, l.send(conn)); err != nil {
		return nil, err
	}
	return nil, conn.SetDeadline(time.Time{})
}
