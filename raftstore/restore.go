package raftstore

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
)

const (
	// batchRecords is how many records of a snapshot are decoded at once, batchSizeBytes how many bytes if that is less.
	batchRecords   = 2048
	batchSizeBytes = 1 << 20
	// decodersMax bounds how many batches are decoded at the same time.
	decodersMax = 8
)

// batch is a run of records: first raw, then decoded.
type batch struct {
	raw     []byte
	ends    []int
	records []record
	// rows has a row for each record of that kind, nil for the others.
	rows []row
	// err is of the record that follows the decoded ones.
	err  error
	done chan struct{}
}

// readImage decodes a snapshot on several cores: one goroutine reads, others decode, and this one puts the rows together.
func readImage(from io.Reader) (*State, recentCommits, error) {
	decoders := min(runtime.GOMAXPROCS(0), decodersMax)
	batches, work := make(chan *batch, 2*decoders), make(chan *batch, 2*decoders)
	stop, stopped := make(chan struct{}), make(chan struct{})
	for range decoders {
		go func() {
			for b := range work {
				b.decode()
			}
		}()
	}
	go func() {
		defer close(stopped)
		defer close(work)
		defer close(batches)
		readBatches(bufio.NewReaderSize(from, snapshotChunkBytes), batches, work, stop)
	}()
	in := &imageReader{state: newState()}
	err := in.take(batches)
	close(stop)
	<-stopped // the caller closes what is read from
	return in.state, in.recent, err
}

// readBatches reads until the end record, the first error, or stop.
func readBatches(in *bufio.Reader, batches, work chan<- *batch, stop <-chan struct{}) {
	for ended := false; !ended; {
		b := &batch{done: make(chan struct{})}
		for len(b.ends) < batchRecords && len(b.raw) < batchSizeBytes && !ended {
			if b.err = b.read(in); b.err != nil {
				ended = true
			} else {
				ended = b.isEnd()
			}
		}
		for _, to := range []chan<- *batch{work, batches} {
			select {
			case to <- b:
			case <-stop:
				return
			}
		}
	}
}

// read appends one record.
func (b *batch) read(in *bufio.Reader) error {
	size, err := binary.ReadUvarint(in)
	if err != nil {
		return fmt.Errorf("snapshot is cut short: %w", err)
	}
	if size > recordSizeBytesMax {
		return fmt.Errorf("snapshot record of %d bytes is too large", size)
	}
	start := len(b.raw)
	b.raw = slices.Grow(b.raw, int(size))[:start+int(size)]
	if _, err := io.ReadFull(in, b.raw[start:]); err != nil {
		b.raw = b.raw[:start]
		return fmt.Errorf("snapshot is cut short: %w", err)
	}
	b.ends = append(b.ends, len(b.raw))
	return nil
}

// isEnd says whether the record read last is of the kind that comes last; of what does not decode, decode says so.
func (b *batch) isEnd() bool {
	start := 0
	if n := len(b.ends); n > 1 {
		start = b.ends[n-2]
	}
	w := wire{buf: b.raw[start:]}
	var kind uint32
	w.uint32(1, &kind)
	return kind == recordEnd
}

func (b *batch) decode() {
	defer close(b.done)
	start := 0
	for _, end := range b.ends {
		var r record
		err := unmarshal(b.raw[start:end], r.wire)
		var decoded row
		if err == nil && r.kind == recordRow {
			decoded, err = decodeRow(r)
		}
		if err != nil {
			b.err = err
			return
		}
		b.records, b.rows = append(b.records, r), append(b.rows, decoded)
		start = end
	}
}

func decodeRow(r record) (row, error) {
	blank := newRow(r.table)
	if blank == nil {
		return nil, fmt.Errorf("unknown table %d", r.table)
	}
	if err := unmarshal(r.body, blank.wire); err != nil {
		return nil, fmt.Errorf("row of table %d: %w", r.table, err)
	}
	if blank.meta().ID == "" {
		return nil, fmt.Errorf("row of table %d without id", r.table)
	}
	return blank, nil
}

// imageReader puts a snapshot's records together, in order.
type imageReader struct {
	state  *State
	recent recentCommits
	count  uint64
	// loading are rows of one table, which follow each other in order of ids.
	loading []row
	table   tableID
}

// take is done after the end record.
func (in *imageReader) take(batches <-chan *batch) error {
	for b := range batches {
		<-b.done
		for i, r := range b.records {
			if done, err := in.record(r, b.rows[i]); done || err != nil {
				return err
			}
		}
		if b.err != nil {
			return b.err
		}
	}
	return errors.New("snapshot without an end")
}

func (in *imageReader) record(r record, decoded row) (done bool, err error) {
	if (in.count == 0) != (r.kind == recordHeader) {
		return false, fmt.Errorf("record %d of kind %d is out of place", in.count, r.kind)
	}
	switch r.kind {
	case recordHeader:
		if !readable(r.format) {
			return false, newerFormat{"snapshot", r.format, FormatVersion}
		}
		in.state.index = r.index
	case recordRow:
		err = in.row(r.table, decoded)
	case recordCommit:
		if len(r.body) != commitSize {
			return false, errors.New("commit id of wrong length")
		}
		in.recent.add(doneCommit{id: commitID(r.body), index: r.index, refused: r.refused})
	case recordEnd:
		if r.count != in.count {
			return false, fmt.Errorf("snapshot has %d records instead of %d", in.count, r.count)
		}
		in.load()
		return true, nil
	default:
		err = newerFormat{"snapshot record", r.kind, FormatVersion}
	}
	in.count++
	return false, err
}

// row collects the rows of a table until another one begins.
func (in *imageReader) row(t tableID, r row) error {
	if t != in.table {
		if t < in.table {
			return fmt.Errorf("rows of table %d come after those of table %d", t, in.table)
		}
		in.load()
		in.table = t
	}
	if n := len(in.loading); n > 0 && in.loading[n-1].meta().ID >= r.meta().ID {
		return fmt.Errorf("row %s of table %d comes twice, or not in order", r.meta().ID, t)
	}
	in.state.share(r)
	in.loading = append(in.loading, r)
	return nil
}

func (in *imageReader) load() {
	if len(in.loading) > 0 {
		in.state.table(in.table).load(in.loading)
	}
	in.loading = nil
}
