package raftstore

import (
	"crypto/sha256"
	"fmt"
)

// Digest stands for every row of s: replicas that have reached the same Index must have the same one.
func (s *State) Digest() ([sha256.Size]byte, error) {
	sum := sha256.New()
	for _, t := range tableIDs() {
		var failure error
		s.table(t).scan(func(r row) bool {
			encoded, err := marshal(r.wire)
			if err != nil {
				failure = fmt.Errorf("digest of %s %s: %w", s.table(t).kind(), r.meta().ID, err)
				return false
			}
			fmt.Fprintf(sum, "%d %d ", t, len(encoded))
			sum.Write(encoded)
			return true
		})
		if failure != nil {
			return [sha256.Size]byte{}, failure
		}
	}
	return [sha256.Size]byte(sum.Sum(nil)), nil
}
