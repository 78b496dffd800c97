package gossip

import (
	"crypto/sha256"
	"errors"
	"fmt"
)

const (
	metadataFormat = 1
	// metadataBytes is the whole of it: format, flags, cluster tag. Newer formats may append.
	metadataBytes    = 2 + clusterTagBytes
	metadataBytesMax = 64
	clusterTagBytes  = 8

	leavingFlag = 1 << 0
)

// metadata is what each member says of itself beside its name and address.
type metadata struct {
	cluster [clusterTagBytes]byte
	leaving bool
}

// clusterTag is a few bytes that differ between clusters.
func clusterTag(clusterID string) (tag [clusterTagBytes]byte) {
	sum := sha256.Sum256([]byte(clusterID))
	copy(tag[:], sum[:])
	return tag
}

func (m metadata) encode() []byte {
	var flags byte
	if m.leaving {
		flags |= leavingFlag
	}
	return append([]byte{metadataFormat, flags}, m.cluster[:]...)
}

// decodeMetadata takes longer metadata of newer formats, whose beginning stays the same.
func decodeMetadata(b []byte) (metadata, error) {
	if len(b) < metadataBytes || len(b) > metadataBytesMax {
		return metadata{}, fmt.Errorf("metadata of %d bytes", len(b))
	}
	if b[0] < metadataFormat {
		return metadata{}, errors.New("metadata of no known format")
	}
	m := metadata{leaving: b[1]&leavingFlag != 0}
	copy(m.cluster[:], b[2:])
	return m, nil
}
