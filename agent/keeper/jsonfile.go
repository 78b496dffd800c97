package keeper

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"
	"unicode/utf8"
)

// appendRecord adds one line of docker's json-file format: {"log":"…","stream":"stdout","time":"…"}.
func appendRecord(b []byte, text []byte, newline bool, stream string, at time.Time) []byte {
	b = append(b, `{"log":"`...)
	b = appendEscaped(b, text)
	if newline {
		b = append(b, `\n`...)
	}
	b = append(b, `","stream":"`...)
	b = append(b, stream...)
	b = append(b, `","time":"`...)
	b = at.UTC().AppendFormat(b, time.RFC3339Nano)
	return append(b, "\"}\n"...)
}

// appendEscaped writes text as the inside of a JSON string; bytes that are no UTF-8 become U+FFFD, as with docker.
func appendEscaped(b, text []byte) []byte {
	const hex = "0123456789abcdef"
	start := 0
	for i := 0; i < len(text); {
		c := text[i]
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRune(text[i:])
			if r == utf8.RuneError && size == 1 {
				b = append(append(b, text[start:i]...), `\ufffd`...)
				start = i + 1
			}
			i += size
			continue
		}
		if c >= 0x20 && c != '"' && c != '\\' {
			i++
			continue
		}
		b = append(b, text[start:i]...)
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, `\n`...)
		case '\r':
			b = append(b, `\r`...)
		case '\t':
			b = append(b, `\t`...)
		default:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&0xf])
		}
		i++
		start = i
	}
	return append(b, text[start:]...)
}

// jsonFile appends to the current file of a log and rotates it.
type jsonFile struct {
	path     string
	filesMax int
	file     *os.File
	size     int64
}

// rotatedMax bounds the files of one log, whatever its options say: rotating touches each of them.
const rotatedMax = 1000

// openJSONFile opens path for appending. What lies beyond committed (negative: nothing is known) was
// written by a keeper that died before it could take note of it, and is going to be written again.
func openJSONFile(path string, filesMax int, committed int64) (*jsonFile, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND|syscallNoFollow, 0o640)
	if err != nil {
		return nil, err
	}
	j := &jsonFile{path: path, filesMax: min(max(filesMax, 1), rotatedMax), file: file}
	if err := j.settle(committed); err != nil {
		file.Close()
		return nil, err
	}
	return j, nil
}

func (j *jsonFile) settle(committed int64) error {
	info, err := j.file.Stat()
	if err != nil {
		return err
	}
	j.size = info.Size()
	if committed >= 0 && committed < j.size {
		if err := j.file.Truncate(committed); err != nil {
			return err
		}
		j.size = committed
	}
	if j.size == 0 {
		return nil
	}
	// A machine that lost power may have left half a line: the next one must not be glued to it.
	last := make([]byte, 1)
	if _, err := j.file.ReadAt(last, j.size-1); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if last[0] != '\n' {
		_, err = j.write([]byte("\n"))
	}
	return err
}

// write appends records; when not all of them fit, none stays.
func (j *jsonFile) write(records []byte) (int, error) {
	n, err := j.file.Write(records)
	if err != nil {
		if n > 0 {
			err = errors.Join(err, j.file.Truncate(j.size))
		}
		return 0, err
	}
	j.size += int64(n)
	return n, nil
}

// rotate makes the current file number 1 and begins a new one; the oldest goes. Interrupted half-way
// it leaves at worst a number unused.
func (j *jsonFile) rotate() error {
	for n := j.filesMax - 1; n > 0; n-- {
		err := os.Rename(numbered(j.path, n-1), numbered(j.path, n))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("rotate %s: %w", j.path, err)
		}
	}
	if j.filesMax == 1 {
		if err := os.Remove(j.path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("rotate %s: %w", j.path, err)
		}
	}
	file, err := os.OpenFile(j.path, os.O_CREATE|os.O_RDWR|os.O_APPEND|syscallNoFollow, 0o640)
	if err != nil {
		return fmt.Errorf("rotate %s: %w", j.path, err)
	}
	j.file.Close()
	j.file, j.size = file, 0
	return nil
}

func (j *jsonFile) close() error { return j.file.Close() }

// numbered is the name of a rotated file; 0 is the current one.
func numbered(path string, n int) string {
	if n == 0 {
		return path
	}
	return path + "." + strconv.Itoa(n)
}
