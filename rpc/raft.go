package rpc

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/containerd/errdefs"
)

// A raft stream begins with a greeting from the server, so that a refusal has words: one byte of version, two of
// length, and that much text, which is empty when the stream is accepted.
const (
	greetingVersion  = 1
	greetingBytesMax = 512
)

// beginRaft decides about a raft stream and hands it to the store.
func (s *Server) beginRaft(c *connection) {
	q := s.raftQueue.Load()
	err := s.mayCall(c.peer, managerCalls, protocolRaft)
	if err == nil && (q == nil || q.isClosed()) {
		err = fmt.Errorf("node is not a manager: %w", errdefs.ErrFailedPrecondition)
	}
	if writeGreeting(c, err) != nil || err != nil {
		_ = c.Close()
		return
	}
	if !q.offer(c) {
		s.log.Warn("raft stream refused, too many are waiting", "node", c.peer.NodeID)
		c.cut()
	}
}

func writeGreeting(conn net.Conn, refusal error) error {
	text := ""
	if refusal != nil {
		text = refusal.Error()
		text = text[:min(len(text), greetingBytesMax)]
	}
	greeting := binary.BigEndian.AppendUint16([]byte{greetingVersion}, uint16(len(text)))
	if err := conn.SetWriteDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return err
	}
	if _, err := conn.Write(append(greeting, text...)); err != nil {
		return err
	}
	return conn.SetWriteDeadline(time.Time{})
}

// readGreeting returns why the server refuses the stream.
func readGreeting(r io.Reader) error {
	var head [3]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("read greeting: %w: %w", err, errdefs.ErrUnavailable)
	}
	if head[0] != greetingVersion {
		return fmt.Errorf("node greets in version %d and this one knows %d; bring both to the same release: %w", head[0], greetingVersion, errdefs.ErrFailedPrecondition)
	}
	length := binary.BigEndian.Uint16(head[1:])
	if length > greetingBytesMax {
		return fmt.Errorf("greeting of %d bytes is larger than %d: %w", length, greetingBytesMax, errdefs.ErrInvalidArgument)
	}
	text := make([]byte, length)
	if _, err := io.ReadFull(r, text); err != nil {
		return fmt.Errorf("read greeting: %w: %w", err, errdefs.ErrUnavailable)
	}
	if length > 0 {
		return fmt.Errorf("%s: %w", text, errdefs.ErrPermissionDenied)
	}
	return nil
}
