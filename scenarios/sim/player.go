package sim

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// againAfter is the pause between two tries of a step marked *.
const againAfter = 200 * time.Millisecond

// player plays one story in one lab. It is one goroutine.
type player struct {
	*Lab
	story *Story
	verbs map[string]verb
	// wanted is what commands that succeeded made true: replicas by service, -1 for a global one. Services
	// of which nothing certain is known are not in it.
	wanted map[string]int
	// doubtful services were the object of a command that may or may not have taken effect.
	doubtful map[string]bool
	// changed is when a service was last the object of a command.
	changed map[string]time.Time
	memory  map[string]string // task → machine, of "remember"
	load    *load
	done    []string // steps with their times
}

// Outcome is what became of a story.
type Outcome struct {
	// Err is everything that was wrong, nil if nothing was.
	Err error
	// Steps with the virtual times at which they began.
	Steps []string
	// Diaries are the agents' last words, only if something was wrong.
	Diaries string
	Elapsed time.Duration
	Looks   looks
	load    *load
}

// play tells a story in the bubble that it is called in. dir gets the machines' files. Tests that plant a fault tamper with the player.
func play(story *Story, dir string, tamper func(*player)) *Outcome {
	p := &player{
		Lab: NewLab(LabConfig{
			Seed: story.Config.Seed, Dir: dir, Latency: story.Config.Latency, Jitter: story.Config.Jitter, SnapshotEntries: story.Config.Snapshots,
		}),
		story: story, verbs: allVerbs(), wanted: map[string]int{}, doubtful: map[string]bool{}, changed: map[string]time.Time{},
	}
	if tamper != nil {
		tamper(p)
	}
	var failure error
	for _, step := range story.Steps {
		p.done = append(p.done, fmt.Sprintf("%9.3f %s", p.Elapsed().Seconds(), step.Text))
		if failure = p.do(step); failure != nil {
			failure = fmt.Errorf("step %q at %.3f s: %w", step.Text, p.Elapsed().Seconds(), failure)
			break
		}
		synctest.Wait()
		if failure = p.checks.Err(); failure != nil {
			failure = fmt.Errorf("after step %q at %.3f s: %w", step.Text, p.Elapsed().Seconds(), failure)
			break
		}
	}
	if p.load != nil {
		p.load.stop()
	}
	o := &Outcome{Steps: p.done, Elapsed: p.Elapsed(), load: p.load}
	if failure != nil {
		o.Diaries = p.diaries()
	}
	closing := p.Close()
	o.Err = errors.Join(failure, closing)
	if failure == nil {
		o.Err = errors.Join(p.checks.Err(), closing)
	}
	o.Looks = p.checks.looks
	return o
}

func (p *player) diaries() string {
	const lines = 60
	var b strings.Builder
	for _, m := range p.machines {
		fmt.Fprintf(&b, "--- %s (%s)\n%s", m.Name, m.Address(), m.diary.tell(p.began, lines))
	}
	return b.String()
}

func (p *player) do(s Step) error {
	began := time.Now()
	for {
		err := p.once(s)
		if err == nil || s.May {
			return nil
		}
		if s.Retry == 0 || time.Since(began) > s.Retry {
			return err
		}
		time.Sleep(againAfter)
	}
}

func (p *player) once(s Step) error {
	ctx, cancel := context.WithTimeout(context.Background(), max(askMax, s.Retry))
	defer cancel()
	run := p.verbs[s.Words[0]]
	if run == nil {
		return fmt.Errorf("unknown verb %q", s.Words[0])
	}
	err := run(p, ctx, s.Words[1:])
	if !s.Fails {
		return err
	}
	if err == nil {
		return errors.New("it worked, but must fail")
	}
	if matched, bad := regexp.MatchString(s.Pattern, err.Error()); bad != nil || !matched {
		return errors.Join(bad, fmt.Errorf("it failed otherwise: %w", err))
	}
	return nil
}

// seat is where an operator's commands go: the first manager that answers, or the first machine while there is no cluster.
func (p *player) seat(ctx context.Context) (*Machine, error) {
	var awake *Machine
	for _, m := range p.machines {
		if !m.Awake() {
			continue
		}
		if awake == nil {
			awake = m
		}
		if info, err := m.info(ctx); err == nil && info.Swarm.ControlAvailable {
			return m, nil
		}
	}
	if awake == nil {
		return nil, errors.New("no agent runs")
	}
	return awake, nil
}

// find the machine of that name; "leader" is whoever leads by its own account, "follower" and "worker" some other one.
func (p *player) find(ctx context.Context, name string) (*Machine, error) {
	if m := p.named(name); m != nil {
		return m, nil
	}
	switch name {
	case "leader":
		return p.leader()
	case "follower":
		leader, err := p.leader()
		if err != nil {
			return nil, err
		}
		for _, m := range p.machines {
			if s := p.checks.open(m.Name); m != leader && m.Awake() && s != nil {
				return m, nil
			}
		}
	case "worker":
		for _, m := range p.machines {
			if m.Awake() && p.checks.open(m.Name) == nil {
				return m, nil
			}
		}
	}
	return nil, fmt.Errorf("no machine is called %q now", name)
}

// leader asks the replicas themselves; of two that think so the one of the later term leads.
func (p *player) leader() (*Machine, error) {
	var found *Machine
	var term uint64
	for _, m := range p.machines {
		s := p.checks.open(m.Name)
		if s == nil || !m.Runs() {
			continue
		}
		if stats := s.Stats(); stats.Leads && stats.Term > term {
			found, term = m, stats.Term
		}
	}
	if found == nil {
		return nil, errors.New("no node leads")
	}
	return found, nil
}

func (p *player) nodes(ctx context.Context) ([]swarm.Node, error) {
	seat, err := p.seat(ctx)
	if err != nil {
		return nil, err
	}
	return ask[[]swarm.Node](ctx, seat, "/nodes")
}

func (p *player) tasks(ctx context.Context) ([]swarm.Task, error) {
	seat, err := p.seat(ctx)
	if err != nil {
		return nil, err
	}
	return ask[[]swarm.Task](ctx, seat, "/tasks")
}

func (p *player) services(ctx context.Context) ([]swarm.Service, error) {
	seat, err := p.seat(ctx)
	if err != nil {
		return nil, err
	}
	return ask[[]swarm.Service](ctx, seat, "/services")
}

func runs(t swarm.Task) bool {
	return t.Status.State == swarm.TaskStateRunning && t.DesiredState == swarm.TaskStateRunning
}

// serviceNamed is the service of that name, and its running tasks.
func (p *player) serviceNamed(ctx context.Context, name string) (swarm.Service, []swarm.Task, error) {
	services, err := p.services(ctx)
	if err != nil {
		return swarm.Service{}, nil, err
	}
	at := slices.IndexFunc(services, func(s swarm.Service) bool { return s.Spec.Name == name })
	if at < 0 {
		return swarm.Service{}, nil, fmt.Errorf("no service is called %s", name)
	}
	tasks, err := p.tasks(ctx)
	tasks = slices.DeleteFunc(tasks, func(t swarm.Task) bool { return t.ServiceID != services[at].ID || !runs(t) })
	return services[at], tasks, err
}
