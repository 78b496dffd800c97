package raftstore

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/protobuf/encoding/protowire"
)

// wire writes or reads one protobuf message, so that a message lists its fields once for both directions.
// Fields come in ascending order and nothing is skipped: a field that this version does not know is an error,
// because a replica that ignores part of a commit would silently differ from the others.
type wire struct {
	// encode says which direction it is; buf is what was written so far, or what is left to read.
	encode bool
	buf    []byte
	err    error
	// format is what may be written: fields that came with a newer one are left out.
	format uint32
	// patch says that what is read replaces only the fields that it names.
	patch bool
	// emptied says that the list that was read last is there and empty, which only a patch can say.
	emptied bool
	meta    metaFields
}

// metaFields says which fields of Meta a row's message has.
type metaFields uint8

const (
	metaAll metaFields = iota
	metaIDOnly
	metaNone
)

// marshal returns the message that fields lists, in the newest format.
func marshal(fields func(*wire)) ([]byte, error) { return marshalAs(FormatVersion, fields) }

// marshalAs leaves out fields that came after a format.
func marshalAs(format uint32, fields func(*wire)) ([]byte, error) {
	w := &wire{encode: true, format: format}
	fields(w)
	return w.buf, w.err
}

// unmarshal sets what fields lists from a message.
func unmarshal(message []byte, fields func(*wire)) error {
	w := &wire{buf: message}
	fields(w)
	return w.finish()
}

// since says whether fields that came with a format take part. Reading takes whatever is there.
func (w *wire) since(format uint32) bool { return !w.encode || w.format >= format }

// finish is the error of what was read, one that names the field if there is more.
func (w *wire) finish() error {
	if w.err == nil && len(w.buf) > 0 {
		number, _, n := protowire.ConsumeTag(w.buf)
		if n < 0 {
			return errMalformed
		}
		return fmt.Errorf("unknown or misplaced field %d", number)
	}
	return w.err
}

var errMalformed = errors.New("malformed message")

func (w *wire) fail(err error) {
	if w.err == nil {
		w.err = err
	}
}

// next reads the tag of field number if that is what comes next.
func (w *wire) next(number protowire.Number, kind protowire.Type) bool {
	if w.err != nil || len(w.buf) == 0 {
		return false
	}
	have, haveKind, n := protowire.ConsumeTag(w.buf)
	if n < 0 {
		w.fail(errMalformed)
		return false
	}
	if have != number {
		return false
	}
	if haveKind != kind {
		w.fail(fmt.Errorf("field %d has wire type %d", number, haveKind))
		return false
	}
	w.buf = w.buf[n:]
	return true
}

func (w *wire) varint(number protowire.Number, v uint64, present bool) (uint64, bool) {
	if w.encode {
		if present {
			w.buf = protowire.AppendTag(w.buf, number, protowire.VarintType)
			w.buf = protowire.AppendVarint(w.buf, v)
		}
		return v, present
	}
	if !w.next(number, protowire.VarintType) {
		return 0, false
	}
	v, n := protowire.ConsumeVarint(w.buf)
	if n < 0 {
		w.fail(errMalformed)
		return 0, false
	}
	w.buf = w.buf[n:]
	return v, true
}

// raw is a length-delimited field. What it reads aliases the message.
func (w *wire) raw(number protowire.Number, v []byte, present bool) ([]byte, bool) {
	if w.encode {
		if present {
			w.buf = protowire.AppendTag(w.buf, number, protowire.BytesType)
			w.buf = protowire.AppendBytes(w.buf, v)
		}
		return v, present
	}
	if !w.next(number, protowire.BytesType) {
		return nil, false
	}
	v, n := protowire.ConsumeBytes(w.buf)
	if n < 0 {
		w.fail(errMalformed)
		return nil, false
	}
	w.buf = w.buf[n:]
	return v, true
}

func (w *wire) uint(number protowire.Number, v *uint64) {
	read, present := w.varint(number, *v, *v != 0)
	set(w, v, read, present)
}

// set writes a field that was read. Encoding must not write at all: others read the row at the same time.
func set[T any](w *wire, v *T, read T, present bool) {
	if !w.encode && !w.absent(present) {
		*v = read
	}
}

func (w *wire) uint32(number protowire.Number, v *uint32) {
	read, present := w.varint(number, uint64(*v), *v != 0)
	if read > 1<<32-1 {
		w.fail(fmt.Errorf("field %d is out of range", number))
	}
	set(w, v, uint32(read), present)
}

// int64 is zigzag encoded.
func (w *wire) int64(number protowire.Number, v *int64) {
	read, present := w.varint(number, protowire.EncodeZigZag(*v), *v != 0)
	set(w, v, protowire.DecodeZigZag(read), present)
}

func (w *wire) int(number protowire.Number, v *int) {
	read, present := w.varint(number, protowire.EncodeZigZag(int64(*v)), *v != 0)
	set(w, v, int(protowire.DecodeZigZag(read)), present)
}

func (w *wire) bool(number protowire.Number, v *bool) {
	var wide uint64
	if *v {
		wide = 1
	}
	read, present := w.varint(number, wide, *v)
	set(w, v, read != 0, present)
}

func (w *wire) string(number protowire.Number, v *string) {
	if w.encode {
		if *v != "" {
			w.buf = protowire.AppendTag(w.buf, number, protowire.BytesType)
			w.buf = protowire.AppendString(w.buf, *v)
		}
		return
	}
	if raw, present := w.raw(number, nil, false); !w.absent(present) {
		*v = string(raw)
	}
}

func (w *wire) bytes(number protowire.Number, v *[]byte) {
	raw, present := w.raw(number, *v, len(*v) > 0)
	if w.encode || w.absent(present) {
		return
	}
	*v = nil
	if present && len(raw) > 0 {
		*v = bytes.Clone(raw)
	}
}

func (w *wire) strings(number protowire.Number, v *[]string) {
	if w.encode {
		for _, s := range *v {
			w.raw(number, []byte(s), true)
		}
		return
	}
	var read []string
	for _, raw := range w.list(number) {
		read = append(read, string(raw))
	}
	set(w, v, read, len(read) > 0 || w.emptied)
}

// list reads all fields of a number. In a patch, a single empty one stands for an emptied list.
func (w *wire) list(number protowire.Number) (all [][]byte) {
	w.emptied = false
	for {
		raw, present := w.raw(number, nil, false)
		if !present {
			break
		}
		all = append(all, raw)
	}
	if w.patch && len(all) == 1 && len(all[0]) == 0 {
		w.emptied = true
		return nil
	}
	return all
}

// time has nanoseconds and no zone; the zero time is absent. Years outside 1678 to 2262 do not fit.
func (w *wire) time(number protowire.Number, v *time.Time) {
	var ns uint64
	if w.encode && !v.IsZero() {
		ns = protowire.EncodeZigZag(v.UnixNano())
	}
	ns, present := w.varint(number, ns, !v.IsZero())
	if w.encode || w.absent(present) {
		return
	}
	*v = time.Time{}
	if present && !(w.patch && ns == 0) {
		*v = time.Unix(0, protowire.DecodeZigZag(ns)).UTC()
	}
}

func (w *wire) duration(number protowire.Number, v *time.Duration) {
	w.int64(number, (*int64)(v))
}

// json keeps an API type as it came, as API JSON in a bytes field. A JSON field that this version does not know is an error.
func (w *wire) json(number protowire.Number, v any) {
	if w.encode {
		raw, err := json.Marshal(v)
		if err != nil {
			w.fail(fmt.Errorf("field %d: %w", number, err))
			return
		}
		w.raw(number, raw, true)
		return
	}
	raw, present := w.raw(number, nil, false)
	if !present {
		return
	}
	w.clearForPatch(v)
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(v); err != nil {
		w.fail(fmt.Errorf("field %d: %w", number, err))
		return
	}
	if _, err := decoder.Token(); err != io.EOF {
		w.fail(fmt.Errorf("field %d: more than one JSON value", number))
	}
}

// jsonPtr is json for a pointer that may be nil.
func jsonPtr[T any](w *wire, number protowire.Number, v **T) {
	if w.encode {
		if *v != nil {
			w.json(number, *v)
		}
		return
	}
	have, _, n := protowire.ConsumeTag(w.buf)
	present := n > 0 && have == number
	if w.absent(present) {
		return
	}
	*v = nil
	switch {
	case !present:
	case w.patch && bytes.HasPrefix(w.buf[n:], []byte{0}):
		w.raw(number, nil, false)
	default:
		*v = new(T)
		w.json(number, *v)
	}
}

// messages is a repeated message field.
func messages[T any](w *wire, number protowire.Number, list *[]T, fields func(*wire, *T)) {
	if w.encode {
		for i := range *list {
			w.message(number, func(w *wire) { fields(w, &(*list)[i]) })
		}
		return
	}
	var read []T
	for _, raw := range w.list(number) {
		var v T
		if err := unmarshal(raw, func(w *wire) { fields(w, &v) }); err != nil {
			w.fail(err)
			return
		}
		read = append(read, v)
	}
	set(w, list, read, len(read) > 0 || w.emptied)
}

// message writes a message within the message, in place.
func (w *wire) message(number protowire.Number, fields func(*wire)) {
	w.buf = protowire.AppendTag(w.buf, number, protowire.BytesType)
	start := len(w.buf)
	w.buf = append(w.buf, 0) // the length, if it fits into a byte
	fields(w)
	size := len(w.buf) - start - 1
	if wide := protowire.SizeVarint(uint64(size)); wide > 1 {
		w.buf = append(w.buf, make([]byte, wide-1)...)
		copy(w.buf[start+wide:], w.buf[start+1:start+1+size])
	}
	protowire.AppendVarint(w.buf[:start], uint64(size))
}

// taskStateNumber and taskStateOf translate the API's words; 0 is no state.
func taskStateNumber(state swarm.TaskState) (uint64, bool) {
	for i, s := range taskStates() {
		if s == state {
			return uint64(i), true
		}
	}
	return 0, false
}

// taskStates lists every state at the place that is its number on the wire. New ones are appended.
func taskStates() [16]swarm.TaskState {
	return [16]swarm.TaskState{
		"", swarm.TaskStateNew, swarm.TaskStateAllocated, swarm.TaskStatePending, swarm.TaskStateAssigned,
		swarm.TaskStateAccepted, swarm.TaskStatePreparing, swarm.TaskStateReady, swarm.TaskStateStarting,
		swarm.TaskStateRunning, swarm.TaskStateComplete, swarm.TaskStateShutdown, swarm.TaskStateFailed,
		swarm.TaskStateRejected, swarm.TaskStateRemove, swarm.TaskStateOrphaned,
	}
}

func (w *wire) taskState(number protowire.Number, v *swarm.TaskState) {
	var n uint64
	if w.encode {
		known := false
		if n, known = taskStateNumber(*v); !known {
			w.fail(fmt.Errorf("unknown task state %q", *v))
			return
		}
	}
	n, present := w.varint(number, n, n != 0)
	if w.encode || w.absent(present) {
		return
	}
	states := taskStates()
	if n >= uint64(len(states)) {
		w.fail(fmt.Errorf("unknown task state %d", n))
		return
	}
	*v = states[n]
}
