package raftstore

import (
	"bytes"
	"reflect"

	"google.golang.org/protobuf/encoding/protowire"
)

// A patch is a message with only those fields of a row in which it differs from the row before: what a busy cluster writes,
// such as a task's state, is some bytes of a row of hundreds. A field that became absent is there with an explicit zero.

// fieldGroup is all that a message has under one number.
type fieldGroup struct {
	number protowire.Number
	kind   protowire.Type
	raw    []byte
	// zero says that an element of it has the form of an explicit zero.
	zero bool
}

// makePatch compares two encodings of a row. It is not ok when a field's value cannot be told from an explicit zero: then
// the whole row has to be written.
func makePatch(old, now []byte) (patch []byte, ok bool) {
	patch = []byte{} // no difference is a patch too
	for len(old) > 0 || len(now) > 0 {
		a, b := nextGroup(old), nextGroup(now)
		switch {
		case len(now) == 0 || len(old) > 0 && a.number < b.number:
			patch = append(protowire.AppendTag(patch, a.number, a.kind), 0)
			old = old[len(a.raw):]
			continue
		case len(old) > 0 && a.number == b.number:
			old = old[len(a.raw):]
		default:
			a.raw = nil
		}
		now = now[len(b.raw):]
		if bytes.Equal(a.raw, b.raw) {
			continue
		}
		if b.zero {
			return nil, false
		}
		patch = append(patch, b.raw...)
	}
	return patch, true
}

// nextGroup reads the first fields of a message that this package wrote, all of one number.
func nextGroup(message []byte) (g fieldGroup) {
	for end := 0; end < len(message); {
		number, kind, n := protowire.ConsumeTag(message[end:])
		size := protowire.ConsumeFieldValue(number, kind, message[end+n:])
		if end > 0 && number != g.number {
			break
		}
		g.number, g.kind = number, kind
		g.zero = g.zero || message[end+n] == 0
		end += n + size
		g.raw = message[:end]
	}
	return g
}

// patched returns a copy of a row in which the fields of a patch are replaced.
func patched(old row, patch []byte) (row, error) {
	r := old.copied()
	w := &wire{buf: patch, patch: true, meta: metaNone}
	r.wire(w)
	return r, w.finish()
}

// patchBetween is the patch that makes one row into another.
func patchBetween(old, now row, format uint32) (patch []byte, ok bool, err error) {
	before, after := &wire{encode: true, format: format, meta: metaNone}, &wire{encode: true, format: format, meta: metaNone}
	old.wire(before)
	now.wire(after)
	if after.err != nil {
		return nil, false, after.err
	}
	patch, ok = makePatch(before.buf, after.buf)
	return patch, ok && before.err == nil, nil
}

// absent says that a field keeps its value because a patch does not name it.
func (w *wire) absent(present bool) bool { return w.patch && !w.encode && !present }

// clearForPatch empties what JSON is about to be read into: JSON would be merged into maps and slices that the old row shares.
func (w *wire) clearForPatch(v any) {
	if w.patch {
		reflect.ValueOf(v).Elem().SetZero()
	}
}
