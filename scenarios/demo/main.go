// Command demo shows what swarm is for, on three nodes that live in network namespaces of this machine, and leaves them running.
// make demo runs it; make demo-down (demo -down) removes everything.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	"swarm/scenarios"
	"swarm/scenarios/lab"
)

const (
	labName  = "demo"
	patience = 60 * time.Second // for anything that must come true
	again    = 100 * time.Millisecond
)

func main() {
	down := flag.Bool("down", false, "remove the demo's cluster")
	bin := flag.String("bin", "bin", "folder of swarm, containerd, docker and hello.tar")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
	defer cancel()
	if err := run(ctx, *down, *bin); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, down bool, bin string) error {
	if down {
		return lab.Remove(labName)
	}
	l, err := lab.Open(lab.Config{Name: labName, Program: bin + "/swarm"})
	if err != nil {
		return err
	}
	defer l.Detach()
	s := &show{World: scenarios.NewWorld(l, bin+"/docker"), began: time.Now(), archive: bin + "/hello.tar"}
	for _, scene := range []func(context.Context) error{
		s.formCluster, s.loadImage, s.answerEverywhere, s.spread, s.scale, s.loseNode, s.regainNode, s.askDocker,
	} {
		if err := scene(ctx); err != nil {
			return fmt.Errorf("\nthe demo stopped here: %w\n%s\nThe nodes are still there to be looked at; make demo-down removes them", err, scenarios.Report(ctx, s.World))
		}
	}
	s.goodbye()
	return nil
}

// show is the demo as it goes on.
type show struct {
	*scenarios.World
	began   time.Time
	archive string
	proved  []string
}

func (s *show) headline(format string, args ...any) {
	fmt.Printf("\n[%5.1fs] %s\n", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
}

func (s *show) prove(format string, args ...any) {
	claim := fmt.Sprintf(format, args...)
	fmt.Printf("         ok: %s\n", claim)
	s.proved = append(s.proved, claim)
}

// enter types a swarm command on a node and shows what it prints.
func (s *show) enter(ctx context.Context, node string, args ...string) error {
	fmt.Printf("    %s# swarm %s\n", node, shorten(strings.Join(args, " ")))
	return shown(s.Swarm(ctx, s.Lab.Node(node), nil, args...))
}

func shown(output string, err error) error {
	for line := range strings.Lines(output) {
		fmt.Printf("        %s\n", shorten(strings.TrimRight(line, "\n")))
	}
	return err
}

// shorten what would fill the screen: tokens.
func shorten(line string) string {
	words := strings.Split(line, " ")
	for i, word := range words {
		if strings.HasPrefix(word, "SWMTKN-1-") && len(word) > 24 {
			words[i] = word[:20] + "…"
		}
	}
	return strings.Join(words, " ")
}

// until tries until it is true, and says how long that took.
func (s *show) until(ctx context.Context, try func(context.Context) error) (time.Duration, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := try(ctx)
		if err == nil {
			return time.Since(began), nil
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("not true within %s: %w", patience, err)
		case <-time.After(again):
		}
	}
}

func (s *show) untilSpread(ctx context.Context, want string) (time.Duration, error) {
	return s.until(ctx, func(ctx context.Context) error {
		counts, err := s.Spread(ctx, "web")
		if got := scenarios.FormatSpread(counts); err == nil && got != want {
			err = fmt.Errorf("tasks run %s, want %s", got, want)
		}
		return err
	})
}

func (s *show) formCluster(ctx context.Context) error {
	s.headline("Three machines are switched on; each runs one agent.")
	for _, name := range []string{"n1", "n2", "n3"} {
		n, err := s.AddMachine(ctx, name)
		if err != nil {
			return err
		}
		fmt.Printf("    %s has address %s\n", name, n.Address)
	}
	s.headline("The first makes a cluster, the others join it: n2 as manager, n3 as worker.")
	if err := s.enter(ctx, "n1", "init"); err != nil {
		return err
	}
	for _, joining := range []struct{ node, role string }{{"n2", "manager"}, {"n3", "worker"}} {
		token, err := s.Token(ctx, joining.role)
		if err != nil {
			return err
		}
		address := s.Lab.Node("n1").Address + ":" + scenarios.NodePort
		if err := s.enter(ctx, joining.node, "join", "--token", token, address); err != nil {
			return err
		}
	}
	if _, err := s.until(ctx, s.allReady); err != nil {
		return err
	}
	if err := s.enter(ctx, "n1", "node", "ls"); err != nil {
		return err
	}
	s.prove("init and join made one cluster of two managers and a worker")
	return nil
}

func (s *show) allReady(ctx context.Context) error {
	nodes, err := s.Nodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if n.Status.State != "ready" {
			return fmt.Errorf("%s is %s", n.Description.Hostname, n.Status.State)
		}
	}
	if len(nodes) != len(s.Lab.Nodes()) {
		return fmt.Errorf("%d nodes", len(nodes))
	}
	return nil
}

func (s *show) loadImage(ctx context.Context) error {
	s.headline("An image made from a program of this project is loaded on n1 alone. There is no registry anywhere.")
	content, err := os.ReadFile(s.archive)
	if err != nil {
		return err
	}
	fmt.Println("    n1# swarm image load < hello.tar")
	return shown(s.Swarm(ctx, s.Lab.Node("n1"), bytes.NewReader(content), "image", "load"))
}

func (s *show) answerEverywhere(ctx context.Context) error {
	s.headline("A global service on the host network: one container on every node.")
	if err := s.enter(ctx, "n1", "service", "create", "--quiet", "--name", "hello", "--mode", "global", "--network", "host", "hello"); err != nil {
		return err
	}
	for _, n := range s.Lab.Nodes() {
		if err := s.ask(ctx, n); err != nil {
			return err
		}
	}
	s.prove("the image reached every node from its peer, and hello answers on every node's address")
	return nil
}

func (s *show) ask(ctx context.Context, n *lab.Node) error {
	var answer string
	_, err := s.until(ctx, func(ctx context.Context) (err error) {
		answer, err = s.Fetch(ctx, n.Name+":8080")
		return err
	})
	if err == nil && !strings.Contains(answer, n.Address) {
		err = errors.New("an answer from somewhere else: " + answer)
	}
	fmt.Printf("    outside# curl http://%s:8080\n        %s", n.Address, answer)
	return err
}

func (s *show) spread(ctx context.Context) error {
	s.headline("Six replicas spread over three nodes.")
	if err := s.enter(ctx, "n1", "service", "create", "--quiet", "--name", "web", "--replicas", "6", "hello", "sleep"); err != nil {
		return err
	}
	if _, err := s.untilSpread(ctx, "2/2/2"); err != nil {
		return err
	}
	s.prove("six replicas run 2/2/2")
	return nil
}

func (s *show) scale(ctx context.Context) error {
	s.headline("Scale to nine, and back to six.")
	for _, to := range []struct{ replicas, spread string }{{"9", "3/3/3"}, {"6", "2/2/2"}} {
		if err := s.enter(ctx, "n2", "service", "scale", "--detach", "web="+to.replicas); err != nil {
			return err
		}
		took, err := s.untilSpread(ctx, to.spread)
		if err != nil {
			return err
		}
		s.prove("web=%s runs %s after %.1f s", to.replicas, to.spread, took.Seconds())
	}
	return nil
}

func (s *show) loseNode(ctx context.Context) error {
	s.headline("n3 loses its network and its power: cable cut, every process killed.")
	began := time.Now()
	if err := s.Lab.Node("n3").PowerOff(); err != nil {
		return err
	}
	if _, err := s.untilSpread(ctx, "3/3/0"); err != nil {
		return err
	}
	took := time.Since(began)
	if err := s.enter(ctx, "n1", "node", "ls"); err != nil {
		return err
	}
	s.prove("the lost tasks run on the other nodes %.1f s after the cut (grace time 5 s)", took.Seconds())
	return nil
}

func (s *show) regainNode(ctx context.Context) error {
	s.headline("n3 gets power and network back.")
	n := s.Lab.Node("n3")
	if err := errors.Join(n.Plug(), n.Start(ctx)); err != nil {
		return err
	}
	took, err := s.until(ctx, s.allReady)
	if err != nil {
		return err
	}
	if err := s.ask(ctx, n); err != nil {
		return err
	}
	s.prove("n3 was back in the cluster %.1f s after its agent had started, and hello answers there again", took.Seconds())
	return nil
}

func (s *show) askDocker(ctx context.Context) error {
	s.headline("The real docker command line sees the same cluster.")
	for _, args := range [][]string{{"node", "ls"}, {"service", "ls"}, {"service", "ps", "web"}, {"service", "logs", "--tail", "3", "hello"}} {
		fmt.Printf("    n1# docker %s\n", strings.Join(args, " "))
		output, err := s.RunDocker(ctx, s.Lab.Node("n1"), nil, args...)
		if err := shown(output, err); err != nil {
			return err
		}
		if strings.TrimSpace(output) == "" {
			return fmt.Errorf("docker %s printed nothing", strings.Join(args, " "))
		}
	}
	s.prove("docker node ls, service ls, service ps and service logs work unchanged")
	return nil
}

func (s *show) goodbye() {
	n := s.Lab.Node("n1")
	s.headline("Proved:")
	for _, claim := range s.proved {
		fmt.Printf("    - %s\n", claim)
	}
	fmt.Printf(`
The cluster stays up. Go on by hand:
    export SWARM_HOST=unix://%s
    bin/swarm node ls
    bin/swarm service scale web=12
    bin/swarm service logs --follow hello
    bin/docker -H $SWARM_HOST service ps web
    ip netns exec %s bash          # a shell on n1; addresses 10.99.0.1, .2, .3
    tail -f %s/agent.log
    make demo-down                          # removes all of it
`, n.Socket(), n.Namespace(), n.Dir)
}
