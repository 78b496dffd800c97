package api

import (
	"bytes"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func at(second int) time.Time { return time.Date(2026, 1, 2, 3, 4, second, 5, time.UTC) }

func TestFramesCarryTimesAndOrigins(t *testing.T) {
	for _, c := range []struct {
		name string
		o    logRequest
		raw  bool
		want string
	}{
		{"plain", logRequest{}, false, "\x01\x00\x00\x00\x00\x00\x00\x03hi\n" + "\x02\x00\x00\x00\x00\x00\x00\x05oops\n"},
		{"terminal", logRequest{}, true, "hi\noops\n"},
		{"terminal with times", logRequest{timestamps: true}, true, "2026-01-02T03:04:01.000000005Z hi\n2026-01-02T03:04:02.000000005Z oops\n"},
		{"details", logRequest{timestamps: true, details: true}, true,
			"2026-01-02T03:04:01.000000005Z com.docker.swarm.node.id=n1,com.docker.swarm.service.id=s1,com.docker.swarm.task.id=t%2C1 hi\n2026-01-02T03:04:02.000000005Z  oops\n"},
	} {
		w := httptest.NewRecorder()
		out := newLineWriter(w, c.o, c.raw)
		if err := errors.Join(
			out.write(LogLine{Stream: "stdout", Time: at(1), Text: []byte("hi\n")}, logOrigin{"n1", "s1", "t,1"}),
			out.write(LogLine{Stream: "stderr", Time: at(2), Text: []byte("oops\n")}, logOrigin{}),
			out.flush(),
		); err != nil {
			t.Fatal(err)
		}
		if got := w.Body.String(); got != c.want {
			t.Errorf("%s:\n got %q\nwant %q", c.name, got, c.want)
		}
	}
}

func TestFramesAreReadBack(t *testing.T) {
	w := httptest.NewRecorder()
	out := newLineWriter(w, logRequest{timestamps: true}, false)
	lines := []LogLine{
		{Stream: "stdout", Time: at(1), Text: []byte("a b  c\n")},
		{Stream: "stderr", Time: at(2), Text: []byte("\n")},
		{Stream: "stdout", Time: at(3), Text: []byte(strings.Repeat("x", 16<<10))},
	}
	for _, line := range lines {
		if err := out.write(line, logOrigin{}); err != nil {
			t.Fatal(err)
		}
	}
	_ = out.flush()
	var got []string
	err := decodeFrames(w.Body, func(l LogLine) error {
		got = append(got, fmt.Sprint(l.Stream, l.Time.Second(), len(l.Text)))
		return nil
	})
	if want := "[stdout1 7 stderr2 1 stdout3 16384]"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("got %v %v, want %s", got, err, want)
	}
}

func TestCutAndMalformedFramesAreErrors(t *testing.T) {
	good := "\x01\x00\x00\x00\x00\x00\x00\x17" + "2026-01-02T03:04:01Z hi\n"
	for name, content := range map[string]string{
		"half a head":  good + "\x01\x00",
		"half a frame": good[:20],
		"bad stream":   "\x07\x00\x00\x00\x00\x00\x00\x01x",
		"too large":    "\x01\x00\x00\x00\x7f\x00\x00\x00",
		"no time":      "\x01\x00\x00\x00\x00\x00\x00\x05hello",
	} {
		if err := decodeFrames(strings.NewReader(content), func(LogLine) error { return nil }); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func FuzzDecodeFrames(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x00\x00\x00\x17" + "2026-01-02T03:04:01Z hi\n"))
	f.Add([]byte("\x02\x00\x00\x00\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, content []byte) {
		total := 0
		_ = decodeFrames(bytes.NewReader(content), func(l LogLine) error {
			total += len(l.Text)
			return nil
		})
		if total > len(content) {
			t.Fatalf("%d bytes of text from %d", total, len(content))
		}
	})
}

func TestALineIsReadOnceOverResumedReads(t *testing.T) {
	s := &logSource{}
	line := func(second int) LogLine { return LogLine{Time: at(second)} }
	read := func(seconds ...int) (got []int) {
		skip := 0
		if !s.last.IsZero() {
			skip = s.same
		}
		for _, second := range seconds {
			if s.fresh(line(second), &skip) {
				got = append(got, second)
			}
		}
		return got
	}
	// Two lines share a moment; the second read begins at that moment and finds a third line of it.
	if got := fmt.Sprint(read(1, 2, 2), read(2, 2, 2, 3), read(3), read(3, 4)); got != "[1 2 2] [2 3] [] [4]" {
		t.Error(got)
	}
}
