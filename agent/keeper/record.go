package keeper

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"time"
)

// recordBytesMax bounds one line of a log file: 16 KiB of text, each byte escaped, and room for fields that docker adds.
const recordBytesMax = 256 << 10

// decodeRecord reads one line of a json-file. ok is false for what is none: a line that was cut by a crash.
func decodeRecord(b []byte) (line Line, ok bool) {
	var r struct {
		Log    *string   `json:"log"`
		Stream string    `json:"stream"`
		Time   time.Time `json:"time"`
	}
	if json.Unmarshal(b, &r) != nil || r.Log == nil || (r.Stream != "stdout" && r.Stream != "stderr") {
		return Line{}, false
	}
	return Line{Stream: r.Stream, Time: r.Time, Text: []byte(*r.Log)}, true
}

// recordReader reads the whole records of a file that may still grow.
type recordReader struct {
	in *bufio.Reader
	// part is the beginning of a record whose end is not written yet.
	part []byte
	// skipping is set within a line that is longer than any record.
	skipping bool
}

func newRecordReader(r io.Reader) *recordReader {
	return &recordReader{in: bufio.NewReaderSize(r, 32<<10)}
}

// next returns the next record. At the end of what is written it returns io.EOF, and may be called again later.
func (r *recordReader) next() (Line, error) {
	for {
		piece, err := r.in.ReadSlice('\n')
		if len(r.part)+len(piece) > recordBytesMax {
			r.part, r.skipping = nil, true
		}
		if !r.skipping {
			r.part = append(r.part, piece...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil:
			return Line{}, err
		case r.skipping:
			r.skipping = false
			continue
		}
		line, ok := decodeRecord(r.part)
		r.part = r.part[:0]
		if ok {
			return line, nil
		}
	}
}

// tailOffset returns where in a file of size bytes the last want lines begin, and how many of them it
// holds (fewer than wanted: it begins at 0). match chooses which records count. It reads backwards, and no more than needed.
func tailOffset(file io.ReaderAt, size int64, want int, match func(Line) (counts, stop bool)) (offset int64, found int, stopped bool, err error) {
	block := make([]byte, chunkBytesMax)
	var tail []byte // the part of a record whose beginning lies before the block
	end := size
	for at := size; at > 0; {
		n := min(int64(len(block)), at)
		at -= n
		if _, err := file.ReadAt(block[:n], at); err != nil && !errors.Is(err, io.EOF) {
			return 0, 0, false, err
		}
		text := append(bytes.Clone(block[:n]), tail...)
		for {
			// The record before end begins after the newline before its own.
			i := bytes.LastIndexByte(text[:max(len(text)-1, 0)], '\n')
			if i < 0 {
				break
			}
			begin := end - int64(len(text)-i-1)
			if line, ok := decodeRecord(text[i+1:]); ok {
				counts, stop := match(line)
				if stop || counts && found == want {
					return end, found, true, nil
				}
				if counts {
					found++
				}
			}
			text, end = text[:i+1], begin
		}
		if tail = text; len(tail) > recordBytesMax {
			// No record is that long. What comes before such garbage is not looked for.
			return end, found, true, nil
		}
	}
	if line, ok := decodeRecord(tail); ok {
		counts, stop := match(line)
		if stop || counts && found == want {
			return end, found, true, nil
		}
		if counts {
			found++
		}
	}
	return 0, found, false, nil
}
