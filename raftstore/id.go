package raftstore

import (
	"crypto/rand"
	"fmt"
)

const (
	idChars    = "0123456789abcdefghijklmnopqrstuvwxyz"
	idLength   = 25
	commitSize = 16
)

// NewID returns 25 random characters of base 36, the form of every id in the API.
func NewID() string {
	// Bytes above the last multiple of 36 are thrown away, so that every character is equally likely.
	const usable = 256 - 256%len(idChars)
	id := make([]byte, 0, idLength)
	for random := [2 * idLength]byte{}; len(id) < idLength; {
		fillRandom(random[:])
		for _, b := range random {
			if int(b) < usable && len(id) < idLength {
				id = append(id, idChars[int(b)%len(idChars)])
			}
		}
	}
	return string(id)
}

// commitID makes a commit that is proposed twice count once.
type commitID [commitSize]byte

func newCommitID() (id commitID) {
	fillRandom(id[:])
	return id
}

func fillRandom(b []byte) {
	if _, err := rand.Read(b); err != nil {
		panic(fmt.Errorf("read random bytes: %w", err)) // crypto/rand ends the process itself before this
	}
}
