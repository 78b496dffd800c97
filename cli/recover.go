package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"swarm/api"

	"github.com/docker/go-units"
	"github.com/moby/moby/client"
)

// runForceNewCluster shows what would be kept and lost, asks, and makes this manager the only one of its cluster.
func runForceNewCluster(ctx context.Context, e *engine, advertiseAddr string, yes bool) error {
	var preview api.Recovery
	if err := e.get(ctx, "/swarm/recovery", &preview); err != nil {
		return err
	}
	printRecovery(e.Out(), preview, time.Now())
	if !yes {
		if !e.In().IsTerminal() {
			return errors.New("nothing was changed: there is no terminal to ask on; add --yes if this is what you want")
		}
		fmt.Fprint(e.Out(), "Go on? [y/N] ")
		answer, err := bufio.NewReader(e.In()).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read the answer: %w", err)
		}
		if answer = strings.ToLower(strings.TrimSpace(answer)); answer != "y" && answer != "yes" {
			return errors.New("nothing was changed")
		}
	}
	made, err := e.Client().SwarmInit(ctx, client.SwarmInitOptions{ForceNewCluster: true, AdvertiseAddr: advertiseAddr})
	if err != nil {
		return err
	}
	fmt.Fprintf(e.Out(), "This node (%s) is the only manager of its cluster now.\nTo have more, 'swarm node promote' workers, or run 'swarm join-token manager' and follow what it prints.\n", made.NodeID)
	return nil
}

// printRecovery says in words what a forced new cluster means.
func printRecovery(out io.Writer, r api.Recovery, now time.Time) {
	fmt.Fprintf(out, "This node (%s) would be the only manager of its cluster, at %s.\n\n", r.NodeID, r.Address)
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	kept := fmt.Sprintf("%d services, %d tasks, and all else that this manager knows", r.Services, r.Tasks)
	if !r.LastChange.IsZero() {
		kept += fmt.Sprintf("; its newest change is %s old", units.HumanDuration(now.Sub(r.LastChange)))
	}
	fmt.Fprintf(table, "Kept:\t%s\n", kept)
	if r.Unconfirmed > 0 {
		fmt.Fprintf(table, "\t%d changes among them that may never have been confirmed to anybody\n", r.Unconfirmed)
	}
	if !r.LeaderlessSince.IsZero() {
		fmt.Fprintf(table, "Lost:\twhat other managers changed in the last %s, since this one heard of no leader\n", units.HumanDuration(now.Sub(r.LeaderlessSince)))
	}
	for i, m := range r.Removed {
		label := ""
		if i == 0 {
			label = "Demoted:"
		}
		returns := "if it returns, it"
		if slices.Contains(r.Reachable, m.NodeID) {
			returns = "IT CAN BE REACHED NOW; it"
		}
		fmt.Fprintf(table, "%s\tnode %s at %s; %s becomes a worker and drops its copy of the state\n", label, m.NodeID, m.Addr, returns)
	}
	_ = table.Flush()
	if len(r.Reachable) > 0 {
		fmt.Fprintf(out, "\nWarning: %d of these managers can be reached, so it may be enough to start the missing ones, or to mend the network between them.\n", len(r.Reachable))
	}
	fmt.Fprintln(out, "\nDo this only when so many managers are gone for good that the others cannot go on.")
}
