package raftstore

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestShutdownWaitsForWhatIsUnderWay(t *testing.T) {
	for _, c := range []struct{ answeredAfter, wantWait time.Duration }{
		{0, 0},
		{300 * time.Millisecond, 300 * time.Millisecond},
		{time.Hour, shutdownWait},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFutures()
			if !f.begin() {
				t.Fatal("refused before the shutdown")
			}
			time.AfterFunc(c.answeredAfter, f.end)
			begun := time.Now()
			f.close(shutdownWait)
			if got := time.Since(begun); got != c.wantWait {
				t.Errorf("answered after %s: waited %s, want %s", c.answeredAfter, got, c.wantWait)
			}
			if f.begin() {
				t.Error("taken after the shutdown began")
			}
		})
	}
}
