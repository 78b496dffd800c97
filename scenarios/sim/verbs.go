package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"
)

type verb func(p *player, ctx context.Context, args []string) error

// allVerbs of the story language that the simulation knows.
func allVerbs() map[string]verb {
	return map[string]verb{
		// Machines and clusters.
		"cluster": cluster,               // MANAGERS+WORKERS: machines n1, n2, … made one cluster, all ready
		"machine": machine,               // NAME: one more whose agent runs, in no cluster
		"join-as": joinAs,                // ROLE NODE…: with the right token
		"init":    initialize,            // on the first machine
		"retire":  onNodesAsked(retire),  // demote if need be, leave, remove: how an operator takes a node away
		"leave":   leave,                 // NODE [--force]: take it out of its cluster
		"image":   onMachines(loadImage), // image load < $HELLO: every machine that the seat is; others copy it

		// What an operator types.
		"service": service, // create, update, scale, rm
		"node":    node,    // promote, demote, rm [--force], update --availability WORD

		// What fate does. NODE may be "leader", "follower" or "worker".
		"kill":        onNodes(func(m *Machine) error { return m.Kill() }),                          // SIGKILL to the agent alone
		"stop":        onNodes(func(m *Machine) error { return m.Stop() }),                          // SIGTERM to the agent alone
		"start":       start,                                                                        // [NODE…]: without names every one that does not run
		"restart":     onNodes(restart),                                                             // kill and start at once
		"power-off":   onNodes(func(m *Machine) error { return m.PowerOff(false) }),                 // everything on it ends without a word
		"tear":        onNodes(func(m *Machine) error { return m.PowerOff(true) }),                  // … in the middle of a write
		"freeze":      onNodes(func(m *Machine) error { m.Freeze(); return nil }),                   // SIGSTOP to the agent alone
		"thaw":        thaw,                                                                         // [NODE…]: SIGCONT
		"restart-all": restartAll,                                                                   // kill every agent at once, start them all
		"transfer":    transfer,                                                                     // the leader hands over
		"partition":   partition,                                                                    // NODE… | NODE…
		"unplug":      onNodes(unplug),                                                              // NODE…: cut off from all others
		"block":       block,                                                                        // FROM TO: packets vanish in that direction alone
		"mute":        onNodes(func(m *Machine) error { m.lab.Network.Mute(m.host); return nil }),   // nobody hears it any more
		"deafen":      onNodes(func(m *Machine) error { m.lab.Network.Deafen(m.host); return nil }), // it hears nobody any more
		"move":        onNodes(func(m *Machine) error { return m.Move() }),                          // comes back at another address
		"force-new":   onNodesAsked(forceNew),                                                       // init --force-new-cluster there
		"slow-link":   slowLink,                                                                     // A B BYTES-A-SECOND DELAY LOSS
		"heal":        func(p *player, _ context.Context, _ []string) error { p.Network.Heal(); return nil },
		"fill-disk":   onNodes(func(m *Machine) error { m.disk.SetFull(true); return nil }),
		"free-disk":   onNodes(func(m *Machine) error { m.disk.SetFull(false); return nil }),
		"break-disk":  onNodes(func(m *Machine) error { m.disk.SetFailing(true); return nil }),
		"mend-disk":   onNodes(func(m *Machine) error { m.disk.SetFailing(false); m.disk.SetDelay(0); return nil }),
		"slow-disk":   slowDisk, // NODE DELAY: every write takes that long
		"wait":        wait,     // DURATION

		// What must be true.
		"ready":     ready,     // N nodes are ready
		"managers":  managers,  // N managers are reachable
		"running":   running,   // SERVICE N
		"remember":  remember,  // all running tasks and where they run
		"unchanged": unchanged, // they are what was remembered, and no container was started since
		"history":   history_,  // start [CLIENTS [OPERATORS]] | stop; it may be started again
		"settle":    settle,    // mend everything, and wait until the cluster is in order
	}
}

func wrongArguments(usage string) error { return fmt.Errorf("usage: %s", usage) }

func cluster(p *player, ctx context.Context, args []string) error {
	var managersWanted, workersWanted int
	if _, err := fmt.Sscanf(strings.Join(args, " "), "%d+%d", &managersWanted, &workersWanted); err != nil || managersWanted < 1 {
		return wrongArguments("cluster MANAGERS+WORKERS")
	}
	first := len(p.machines)
	for i := range managersWanted + workersWanted {
		if _, err := p.Add("n" + strconv.Itoa(first+i+1)); err != nil {
			return err
		}
	}
	made := p.machines[first:]
	for _, m := range made {
		m.Start()
	}
	for _, m := range made {
		if err := m.serves(ctx); err != nil {
			return err
		}
	}
	if err := made[0].Init(ctx); err != nil {
		return fmt.Errorf("init on %s: %w", made[0].Name, err)
	}
	for _, m := range made[1:managersWanted] {
		if err := m.Join(ctx, made[0], string(swarm.NodeRoleManager)); err != nil {
			return err
		}
	}
	var joins errgroup.Group
	for _, m := range made[managersWanted:] {
		joins.Go(func() error { return m.Join(ctx, made[0], string(swarm.NodeRoleWorker)) })
	}
	if err := joins.Wait(); err != nil {
		return err
	}
	return p.again(ctx, retryMax, func() error {
		return errors.Join(ready(p, ctx, []string{strconv.Itoa(len(p.machines))}), managers(p, ctx, []string{strconv.Itoa(managersWanted)}))
	})
}

// again tries until it works or the limit is over.
func (p *player) again(ctx context.Context, limit time.Duration, try func() error) error {
	for began := time.Now(); ; time.Sleep(againAfter) {
		err := try()
		if err == nil || time.Since(began) > limit || ctx.Err() != nil {
			return err
		}
	}
}

func machine(p *player, ctx context.Context, args []string) error {
	if len(args) != 1 {
		return wrongArguments("machine NAME")
	}
	m, err := p.Add(args[0])
	if err != nil {
		return err
	}
	m.Start()
	return m.serves(ctx)
}

func joinAs(p *player, ctx context.Context, args []string) error {
	if len(args) < 2 {
		return wrongArguments("join-as ROLE NODE…")
	}
	seat, err := p.seat(ctx)
	if err != nil {
		return err
	}
	return p.each(ctx, args[1:], func(m *Machine) error { return m.Join(ctx, seat, args[0]) })
}

func initialize(p *player, ctx context.Context, _ []string) error {
	seat, err := p.seat(ctx)
	if err != nil {
		return err
	}
	return seat.Init(ctx)
}

func leave(p *player, ctx context.Context, args []string) error {
	force := slices.Contains(args, "--force")
	args = slices.DeleteFunc(args, func(a string) bool { return a == "--force" })
	return p.each(ctx, args, func(m *Machine) error { return m.Leave(ctx, force) })
}

// each does the same to each machine named.
func (p *player) each(ctx context.Context, names []string, do func(*Machine) error) error {
	for _, name := range names {
		m, err := p.find(ctx, name)
		if err != nil {
			return err
		}
		if err := do(m); err != nil {
			return err
		}
	}
	return nil
}

func onNodes(do func(*Machine) error) verb {
	return func(p *player, ctx context.Context, args []string) error {
		if len(args) == 0 {
			return wrongArguments("VERB NODE…")
		}
		return p.each(ctx, args, do)
	}
}

// onNodesAsked is onNodes for what has a limit.
func onNodesAsked(do func(*player, context.Context, *Machine) error) verb {
	return func(p *player, ctx context.Context, args []string) error {
		return p.each(ctx, args, func(m *Machine) error { return do(p, ctx, m) })
	}
}

func onMachines(do func(*Machine)) verb {
	return func(p *player, ctx context.Context, _ []string) error {
		seat, err := p.seat(ctx)
		if err == nil {
			do(seat)
		}
		return err
	}
}

func loadImage(m *Machine) { m.images.Hold(helloImage) }

func start(p *player, ctx context.Context, args []string) error {
	if len(args) == 0 {
		for _, m := range p.machines {
			m.Start()
		}
		return nil
	}
	return p.each(ctx, args, func(m *Machine) error { m.Start(); return nil })
}

func restart(m *Machine) error {
	err := m.Kill()
	m.Start()
	return err
}

func thaw(p *player, ctx context.Context, args []string) error {
	if len(args) == 0 {
		for _, m := range p.machines {
			m.Thaw()
		}
	}
	return p.each(ctx, args, func(m *Machine) error { m.Thaw(); return nil })
}

func restartAll(p *player, _ context.Context, _ []string) error {
	var running []*Machine
	for _, m := range p.machines {
		if m.Runs() {
			running = append(running, m)
		}
	}
	for _, m := range running {
		if err := m.Kill(); err != nil {
			return err
		}
	}
	for _, m := range running {
		m.Start()
	}
	return nil
}

func transfer(p *player, _ context.Context, _ []string) error {
	m, err := p.leader()
	if err != nil {
		return err
	}
	return p.checks.open(m.Name).TransferLeadership()
}

func partition(p *player, ctx context.Context, args []string) error {
	groups := [][]*Host{nil}
	for _, name := range args {
		if name == "|" {
			groups = append(groups, nil)
			continue
		}
		m, err := p.find(ctx, name)
		if err != nil {
			return err
		}
		groups[len(groups)-1] = append(groups[len(groups)-1], m.host)
	}
	p.Network.Partition(groups...)
	return nil
}

func unplug(m *Machine) error {
	m.lab.Network.Partition([]*Host{m.host})
	return nil
}

func block(p *player, ctx context.Context, args []string) error {
	if len(args) != 2 {
		return wrongArguments("block FROM TO")
	}
	from, err := p.find(ctx, args[0])
	if err != nil {
		return err
	}
	to, err := p.find(ctx, args[1])
	if err == nil {
		p.Network.Block(from.host, to.host)
	}
	return err
}

func slowLink(p *player, ctx context.Context, args []string) error {
	const usage = "slow-link A B BYTES-A-SECOND DELAY LOSS"
	if len(args) != 5 {
		return wrongArguments(usage)
	}
	a, errA := p.find(ctx, args[0])
	b, errB := p.find(ctx, args[1])
	bandwidth, errC := strconv.Atoi(args[2])
	delay, errD := time.ParseDuration(args[3])
	loss, errE := strconv.ParseFloat(args[4], 64)
	if err := errors.Join(errA, errB, errC, errD, errE); err != nil {
		return err
	}
	p.Network.Slow(a.host, b.host, bandwidth, delay, loss)
	return nil
}

func slowDisk(p *player, ctx context.Context, args []string) error {
	if len(args) != 2 {
		return wrongArguments("slow-disk NODE DELAY")
	}
	delay, err := time.ParseDuration(args[1])
	if err != nil {
		return err
	}
	return p.each(ctx, args[:1], func(m *Machine) error { m.disk.SetDelay(delay); return nil })
}

func wait(_ *player, _ context.Context, args []string) error {
	if len(args) != 1 {
		return wrongArguments("wait DURATION")
	}
	d, err := time.ParseDuration(args[0])
	time.Sleep(d)
	return err
}

func number(args []string, words int, usage string) (int, error) {
	if len(args) != words {
		return 0, wrongArguments(usage)
	}
	return strconv.Atoi(args[words-1])
}

func expect(got, want int, what string) error {
	if got != want {
		return fmt.Errorf("%d %s, want %d", got, what, want)
	}
	return nil
}

func ready(p *player, ctx context.Context, args []string) error {
	want, err := number(args, 1, "ready N")
	if err != nil {
		return err
	}
	nodes, err := p.nodes(ctx)
	if err != nil {
		return err
	}
	nodes = slices.DeleteFunc(nodes, func(n swarm.Node) bool { return n.Status.State != swarm.NodeStateReady })
	return expect(len(nodes), want, "ready nodes")
}

func managers(p *player, ctx context.Context, args []string) error {
	want, err := number(args, 1, "managers N")
	if err != nil {
		return err
	}
	nodes, err := p.nodes(ctx)
	if err != nil {
		return err
	}
	nodes = slices.DeleteFunc(nodes, func(n swarm.Node) bool {
		return n.ManagerStatus == nil || n.ManagerStatus.Reachability != swarm.ReachabilityReachable
	})
	return expect(len(nodes), want, "reachable managers")
}

func running(p *player, ctx context.Context, args []string) error {
	want, err := number(args, 2, "running SERVICE N")
	if err != nil {
		return err
	}
	_, tasks, err := p.serviceNamed(ctx, args[0])
	if err != nil {
		return err
	}
	return expect(len(tasks), want, "tasks of "+args[0]+" run")
}

// places is where containers run and how often they were started there: task → machine.
func (p *player) places() map[string]string {
	places := map[string]string{}
	for _, m := range p.machines {
		starts := m.runtime.Starts()
		for task := range m.runtime.Running() {
			places[task] = fmt.Sprintf("%s, started %d times", m.Name, starts[task])
		}
	}
	return places
}

func remember(p *player, _ context.Context, _ []string) error {
	if p.memory = p.places(); len(p.memory) == 0 {
		return errors.New("nothing runs")
	}
	return nil
}

func unchanged(p *player, _ context.Context, _ []string) error {
	return compare(p.memory, p.places())
}

func compare(before, now map[string]string) error {
	for _, task := range slices.Sorted(maps.Keys(before)) {
		if now[task] != before[task] {
			return fmt.Errorf("task %s ran on %s and now runs on %q", task, before[task], now[task])
		}
	}
	for task, place := range now {
		if before[task] == "" {
			return fmt.Errorf("task %s is new on %s", task, place)
		}
	}
	return nil
}
