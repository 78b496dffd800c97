package keeper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func TestFollowSeesRotationsAndTheEnd(t *testing.T) {
	cfg := testConfig(t)
	k := startInProcess(t, cfg)
	stdout, _ := k.openForTest(t, LogOptions{MaxSizeBytes: 2000, MaxFiles: 50})
	const lines = 1000
	fmt.Fprintln(stdout, "line 0")
	awaitSpools(t, k)
	next := make(chan int, lines)
	done := make(chan error, 1)
	go func() {
		n := 0
		done <- ReadLog(t.Context(), cfg.LogDir, id, ReadOptions{Stdout: true, Tail: -1, Follow: true}, func(l Line) error {
			if want := fmt.Sprintf("line %d\n", n); string(l.Text) != want {
				return fmt.Errorf("got %q, want %q", l.Text, want)
			}
			next <- n
			n++
			return nil
		})
	}()
	await := func(n int) {
		for {
			select {
			case got := <-next:
				if got == n {
					return
				}
			case err := <-done:
				t.Fatalf("following ended before line %d: %v", n, err)
			}
		}
	}
	await(0) // it follows
	for n := 1; n < lines; n++ {
		fmt.Fprintf(stdout, "line %d\n", n)
		if n%100 == 0 {
			await(n)
		}
	}
	k.closeForTest(t)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	last := 0
	for len(next) > 0 {
		last = <-next
	}
	if last != lines-1 {
		t.Errorf("last line %d", last)
	}
}

func TestFollowEndsWhenTheLogIsRemovedOrTheReaderLeaves(t *testing.T) {
	cfg := testConfig(t)
	k := startInProcess(t, cfg)
	stdout, _ := k.openForTest(t, LogOptions{})
	fmt.Fprintln(stdout, "line 0")
	awaitSpools(t, k)
	follow := func(ctx context.Context) (<-chan error, <-chan struct{}) {
		done, begun := make(chan error, 1), make(chan struct{})
		go func() {
			done <- ReadLog(ctx, cfg.LogDir, id, ReadOptions{Stdout: true, Tail: 1, Follow: true}, func(Line) error {
				close(begun)
				return nil
			})
		}()
		return done, begun
	}
	ctx, cancel := context.WithCancel(t.Context())
	left, begun := follow(ctx)
	<-begun
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	removed, begun := follow(t.Context())
	<-begun
	if err := k.removeLog(id); err != nil {
		t.Fatal(err)
	}
	if err := <-removed; err != nil {
		t.Errorf("got %v", err)
	}
}

func TestFollowWaitsForTheFirstLine(t *testing.T) {
	cfg := testConfig(t)
	if err := os.MkdirAll(filepath.Join(cfg.LogDir, id), 0o700); err != nil {
		t.Fatal(err)
	}
	k := startInProcess(t, cfg)
	first, done := make(chan string, 1), make(chan error, 1)
	go func() {
		done <- ReadLog(t.Context(), cfg.LogDir, id, ReadOptions{Stdout: true, Tail: -1, Follow: true}, func(l Line) error {
			first <- string(l.Text)
			return nil
		})
	}()
	stdout, _ := k.openForTest(t, LogOptions{})
	fmt.Fprintln(stdout, "line 0")
	if got := <-first; got != "line 0\n" {
		t.Errorf("got %q", got)
	}
	k.closeForTest(t)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
