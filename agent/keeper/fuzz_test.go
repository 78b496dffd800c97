package keeper

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func FuzzRecordsGoThereAndBack(f *testing.F) {
	f.Add([]byte("hello"), true)
	f.Add([]byte("\xff\"\\\x00\u2028"), false)
	f.Fuzz(func(t *testing.T, text []byte, newline bool) {
		record := appendRecord(nil, text, newline, "stderr", second(1))
		if !json.Valid(record) || bytes.Count(record, []byte{'\n'}) != 1 {
			t.Fatalf("%q", record)
		}
		line, ok := decodeRecord(record)
		want := strings.ToValidUTF8(string(text), "\ufffd")
		if newline {
			want += "\n"
		}
		// Runs of broken bytes become one replacement in the one, one each in the other.
		squeeze := func(s string) string {
			for strings.Contains(s, "\ufffd\ufffd") {
				s = strings.ReplaceAll(s, "\ufffd\ufffd", "\ufffd")
			}
			return s
		}
		if !ok || squeeze(string(line.Text)) != squeeze(want) || line.Stream != "stderr" || !line.Time.Equal(second(1)) {
			t.Fatalf("%q became %+v", text, line)
		}
	})
}

// FuzzReadLog reads arbitrary files: tail must find what reading everything finds.
func FuzzReadLog(f *testing.F) {
	f.Add([]byte(`{"log":"a\n","stream":"stdout","time":"2026-01-01T00:00:00Z"}`+"\n"), 1)
	f.Add([]byte("garbage\n{}\n{\"log\":\"b\\n\",\"stream\":\"stderr\",\"time\":\"2026-01-01T00:00:00Z\"}\nhalf"), 2)
	f.Fuzz(func(t *testing.T, text []byte, tail int) {
		cfg := Config{LogDir: t.TempDir()}
		if err := os.MkdirAll(filepath.Join(cfg.LogDir, id), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(logPath(cfg.LogDir, id), text, 0o600); err != nil {
			t.Fatal(err)
		}
		read := func(tail int) (pieces []string) {
			o := ReadOptions{Stdout: true, Stderr: true, Tail: tail}
			if err := ReadLog(t.Context(), cfg.LogDir, id, o, func(l Line) error {
				pieces = append(pieces, l.Stream+string(l.Text))
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			return pieces
		}
		everything := read(-1)
		last := read(max(tail, 0))
		if len(last) > len(everything) || strings.Join(everything[len(everything)-len(last):], "") != strings.Join(last, "") {
			t.Fatalf("tail %d gives %q of %q", tail, last, everything)
		}
	})
}

func FuzzProtocol(f *testing.F) {
	frame, _ := encodeFrame(request{Op: opOpenLog, ID: id, Options: LogOptions{MaxFiles: 3}})
	f.Add(frame)
	f.Add([]byte("SK\x00\x02\x00\x00\x00\x00"))
	f.Add([]byte("SK\x00\x01\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 128<<10 {
			return
		}
		here, there := socketPair(t)
		defer here.Close()
		go func() {
			_, _ = there.Write(raw)
			there.Close()
		}()
		var r request
		file, err := readFrame(here, &r)
		if file != nil {
			t.Fatal("a descriptor from nowhere")
		}
		if err == nil {
			again, err := encodeFrame(r)
			if err != nil || len(again) > frameHeaderBytes+frameBytesMax {
				t.Fatalf("%+v: %v", r, err)
			}
		}
	})
}
