// Package secrets protects what a node keeps: sealing at rest with a data key of its own.
// agent opens it; raftstore is given its Sealer.
package secrets

// Sealer seals with XChaCha20-Poly1305 under a data key kept in a file of its own.
type Sealer struct{}

// OpenSealer reads the data key from dir or makes one. A key file that is damaged or of a newer format is an error that names it.
func OpenSealer(dir string) (*Sealer, error) { panic("contract") }

func (s *Sealer) Seal(plain, context []byte) ([]byte, error)  { panic("contract") }
func (s *Sealer) Open(sealed, context []byte) ([]byte, error) { panic("contract") }
