package scenarios

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	reportMax   = 30 * time.Second // for asking a cluster that may be broken
	reportLines = 60               // of each agent's log
)

// Report is what one wants to see of a cluster in which something went wrong.
func Report(ctx context.Context, w *World) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reportMax)
	defer cancel()
	var b strings.Builder
	b.WriteString("\n======== the cluster\n")
	seat, err := w.Seat(ctx)
	if err != nil {
		fmt.Fprintln(&b, err)
	} else {
		fmt.Fprintf(&b, "(asked on %s)\n", seat.Name)
		show := func(args ...string) {
			ctx, cancel := context.WithTimeout(ctx, askMax)
			defer cancel()
			out, err := w.Swarm(ctx, seat, nil, args...)
			fmt.Fprintf(&b, "-------- %s\n%s", strings.Join(args, " "), out)
			if err != nil {
				fmt.Fprintln(&b, err)
			}
		}
		show("info")
		show("node", "ls")
		show("service", "ls")
		services, _ := w.Services(ctx)
		for _, s := range services {
			show("service", "ps", "--no-trunc", s.Spec.Name)
		}
	}
	for _, n := range w.Lab.Nodes() {
		fmt.Fprintf(&b, "======== agent of %s (runs: %v), the end of its log\n%s\n", n.Name, n.Running(), n.LogTail(reportLines))
	}
	return b.String()
}

// keepLogs copies every *.log of every node to dir, in place of an earlier telling's.
func keepLogs(w *World, dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, n := range w.Lab.Nodes() {
		err := filepath.WalkDir(n.Dir, func(path string, entry fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // the node is alive, its files come and go
			}
			if err != nil || entry.IsDir() || filepath.Ext(path) != ".log" || strings.Contains(path, "/io.containerd.") {
				return err
			}
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, n.Name+"-"+filepath.Base(path)), content, 0o644)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
