package scenarios

import (
	"context"
	"fmt"
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
