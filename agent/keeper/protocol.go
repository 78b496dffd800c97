package keeper

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// A frame is: "SK", version (2 bytes), length (4 bytes), JSON. One connection carries requests one
// after the other. File descriptors travel beside the first byte of a frame.
const (
	protocolVersion   = 1
	frameHeaderBytes  = 8
	frameBytesMax     = 64 << 10
	descriptorsPerMsg = 1
)

// What a client may ask for.
const (
	opHello     = "hello"
	opOpenLog   = "open-log"
	opCloseLog  = "close-log"
	opRemoveLog = "remove-log"
	opListen    = "listen"
	opHold      = "hold" // keep a socket that the client already has; its descriptor comes along
	opRelease   = "release"
	opShutdown  = "shutdown"
)

type request struct {
	Op      string     `json:"op"`
	ID      string     `json:"id,omitempty"`
	Options LogOptions `json:"options,omitzero"`
	Network string     `json:"network,omitempty"`
	Address string     `json:"address,omitempty"`
	Mode    uint32     `json:"mode,omitempty"`
	GID     int        `json:"gid,omitempty"`
}

type response struct {
	Version int    `json:"version"`
	PID     int    `json:"pid"`
	Stdout  string `json:"stdout,omitempty"`
	Stderr  string `json:"stderr,omitempty"`
	// Error is the text of a refusal, Kind says what to make of it.
	Error string `json:"error,omitempty"`
	Kind  string `json:"kind,omitempty"`
}

// errVersion is a frame of another version of the protocol.
type errVersion struct{ got uint16 }

func (e errVersion) Error() string {
	return fmt.Sprintf("the other side speaks version %d of the keeper's protocol, this program version %d; stop the keeper (its pid is in keeper.pid) and start the agent again", e.got, protocolVersion)
}

func (errVersion) Unwrap() error { return errdefs.ErrFailedPrecondition }

// encodeFrame is the whole frame of v.
func encodeFrame(v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	if len(body) > frameBytesMax {
		return nil, fmt.Errorf("a message of %d bytes is over the limit of %d: %w", len(body), frameBytesMax, errdefs.ErrInvalidArgument)
	}
	frame := make([]byte, frameHeaderBytes, frameHeaderBytes+len(body))
	copy(frame, "SK")
	binary.BigEndian.PutUint16(frame[2:], protocolVersion)
	binary.BigEndian.PutUint32(frame[4:], uint32(len(body)))
	return append(frame, body...), nil
}

// decodeHeader returns the length of the body that follows.
func decodeHeader(h []byte) (int, error) {
	if len(h) < frameHeaderBytes || string(h[:2]) != "SK" {
		return 0, fmt.Errorf("not a keeper's message: %w", errdefs.ErrInvalidArgument)
	}
	if v := binary.BigEndian.Uint16(h[2:]); v != protocolVersion {
		return 0, errVersion{v}
	}
	n := binary.BigEndian.Uint32(h[4:])
	if n > frameBytesMax {
		return 0, fmt.Errorf("a message of %d bytes is over the limit of %d: %w", n, frameBytesMax, errdefs.ErrInvalidArgument)
	}
	return int(n), nil
}

// readFrame reads one frame into v and returns the descriptor that came with it, nil for none.
func readFrame(conn *net.UnixConn, v any) (*os.File, error) {
	header := make([]byte, frameHeaderBytes)
	file, err := readFull(conn, header)
	if err != nil {
		return nil, err
	}
	n, err := decodeHeader(header)
	if err == nil {
		body := make([]byte, n)
		if _, err = io.ReadFull(conn, body); err == nil {
			err = json.Unmarshal(body, v)
		}
	}
	if err != nil && file != nil {
		file.Close()
		file = nil
	}
	return file, err
}

// readFull fills p and keeps the descriptor that arrives with it; superfluous ones are closed.
func readFull(conn *net.UnixConn, p []byte) (file *os.File, err error) {
	oob := make([]byte, unix.CmsgSpace(4*descriptorsPerMsg))
	for read := 0; read < len(p); {
		n, oobn, flags, _, err := conn.ReadMsgUnix(p[read:], oob)
		if err == nil && flags&unix.MSG_CTRUNC != 0 {
			err = fmt.Errorf("more than %d descriptors in a message: %w", descriptorsPerMsg, errdefs.ErrInvalidArgument)
		}
		for _, fd := range descriptors(oob[:oobn]) {
			if file != nil {
				file.Close()
			}
			file = os.NewFile(uintptr(fd), "received")
		}
		if err == nil && n == 0 {
			err = io.EOF
			if read > 0 {
				err = io.ErrUnexpectedEOF
			}
		}
		if err != nil {
			if file != nil {
				file.Close()
			}
			return nil, err
		}
		read += n
	}
	return file, nil
}

func descriptors(oob []byte) []int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var all []int
	for _, m := range messages {
		if fds, err := unix.ParseUnixRights(&m); err == nil {
			all = append(all, fds...)
		}
	}
	return all
}

// writeFrame sends v, and with it the descriptor fd unless it is negative.
func writeFrame(conn *net.UnixConn, v any, fd int) error {
	frame, err := encodeFrame(v)
	if err != nil {
		return err
	}
	var oob []byte
	if fd >= 0 {
		oob = unix.UnixRights(fd)
	}
	n, _, err := conn.WriteMsgUnix(frame, oob, nil)
	if err == nil && n < len(frame) {
		_, err = conn.Write(frame[n:])
	}
	return err
}

// kinds are the kinds of errors that keep their meaning on the way to the client.
func kinds() map[string]error {
	return map[string]error{
		"not found":           errdefs.ErrNotFound,
		"invalid argument":    errdefs.ErrInvalidArgument,
		"conflict":            errdefs.ErrConflict,
		"failed precondition": errdefs.ErrFailedPrecondition,
		"permission denied":   errdefs.ErrPermissionDenied,
		"resource exhausted":  errdefs.ErrResourceExhausted,
		"not implemented":     errdefs.ErrNotImplemented,
	}
}

func kindOf(err error) string {
	for name, kind := range kinds() {
		if errors.Is(err, kind) {
			return name
		}
	}
	return ""
}

// refusal is an error that a keeper answered: its text is the keeper's, its kind errdefs'.
type refusal struct {
	text string
	kind error
}

func (r refusal) Error() string { return r.text }
func (r refusal) Unwrap() error { return r.kind }

func (r response) err() error {
	if r.Error == "" {
		return nil
	}
	return refusal{r.Error, kinds()[r.Kind]}
}
