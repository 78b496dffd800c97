package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"swarm/scenarios/lab"
)

const (
	syncsFor       = time.Second
	syncsSizeBytes = 4096
)

// spent is what the agents of all nodes have counted since their start.
type spent struct {
	cpuSeconds float64
	// commits, their sum of seconds, and entries are the leader's.
	commits, commitSeconds, entries float64
}

func (s spent) since(before spent) spent {
	return spent{s.cpuSeconds - before.cpuSeconds, s.commits - before.commits, s.commitSeconds - before.commitSeconds, s.entries - before.entries}
}

func (b *bench) spent(ctx context.Context, leader *lab.Node) (s spent, err error) {
	for _, n := range b.Lab.Nodes() {
		text, err := ofAgent(ctx, n, "/metrics")
		if err != nil {
			return s, err
		}
		s.cpuSeconds += metric(text, "process_cpu_seconds_total")
		if n == leader {
			s.commits, s.commitSeconds = metric(text, "swarm_raft_commit_duration_seconds_count"), metric(text, "swarm_raft_commit_duration_seconds_sum")
			s.entries = metric(text, "swarm_raft_last_log_index")
		}
	}
	return s, nil
}

// metric is the value of a metric without labels, 0 when there is none.
func metric(text []byte, name string) float64 {
	for line := range bytes.Lines(text) {
		if value, ok := bytes.CutPrefix(line, []byte(name+" ")); ok {
			number, _ := strconv.ParseFloat(string(bytes.TrimSpace(value)), 64)
			return number
		}
	}
	return 0
}

// ofAgent gets a path from the socket on which a node's agent serves metrics.
func ofAgent(ctx context.Context, n *lab.Node, path string) ([]byte, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(n.RunDir(), "metrics.sock"))
	}}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://swarm"+path, nil)
	if err != nil {
		return nil, err
	}
	answer, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s of %s: %s %s %w", path, n.Name, answer.Status, content, err)
	}
	return content, nil
}

// syncsPerSecond is the disk's limit: as often can one writer put 4 KB at the end of a file and have them on the disk.
func syncsPerSecond(path string) (float64, error) {
	file, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer os.Remove(path)
	defer file.Close()
	page := make([]byte, syncsSizeBytes)
	began, n := time.Now(), 0
	for ; time.Since(began) < syncsFor; n++ {
		if _, err := file.Write(page); err != nil {
			return 0, err
		}
		if err := syscall.Fdatasync(int(file.Fd())); err != nil {
			return 0, err
		}
	}
	return float64(n) / time.Since(began).Seconds(), nil
}
