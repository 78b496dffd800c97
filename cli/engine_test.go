package cli

import (
	"bytes"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestSilenceOfTheAgentIsSpokenOf(t *testing.T) {
	for _, c := range []struct {
		answersAfter time.Duration
		spoken       bool
	}{{silenceNotice / 2, false}, {2 * silenceNotice, true}} {
		synctest.Test(t, func(t *testing.T) {
			var stderr bytes.Buffer
			e, err := newEngine(nil, &stderr, &stderr)
			if err != nil {
				t.Fatal(err)
			}
			ours, agents := net.Pipe()
			conn := e.speakOfSilence(ours, "/s")
			go func() {
				time.Sleep(c.answersAfter)
				agents.Write([]byte("x"))
			}()
			if _, err := conn.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * silenceNotice)
			synctest.Wait()
			if got := strings.Contains(stderr.String(), "waiting for the agent at unix:///s"); got != c.spoken {
				t.Errorf("answer after %v: spoken of: %v, want %v", c.answersAfter, got, c.spoken)
			}
		})
	}
}

func TestWarningsOfAnswersArePassedOnOnce(t *testing.T) {
	var stderr bytes.Buffer
	e, err := newEngine(nil, &stderr, &stderr)
	if err != nil {
		t.Fatal(err)
	}
	for _, header := range []string{"", "nonsense", `110 - "no leader is known: this is old"`, `110 - "no leader is known: this is older"`} {
		e.passOnWarning(&http.Response{Header: http.Header{"Warning": {header}}})
	}
	if got, want := stderr.String(), "WARNING: no leader is known: this is old\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
