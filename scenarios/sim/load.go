package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"swarm/scenarios/history"

	"github.com/moby/moby/api/types/swarm"
)

const (
	// loadPause is the mean pause between two calls of a client, lostPause the one after a call in vain.
	loadPause = 120 * time.Millisecond
	lostPause = 500 * time.Millisecond
	// patience is how long a client waits for one answer.
	patience = 5 * time.Second

	registerLabel  = "register"
	registerPrefix = "register-"
	racePrefix     = "race-"
	registersMax   = 2
	racesMax       = 5
	clientsMax     = 100
)

func isLoad(service string) bool {
	return strings.HasPrefix(service, registerPrefix) || strings.HasPrefix(service, racePrefix)
}

// load is clients of the API at any machine, all of whose calls are recorded. They write registers (labels of services), and
// contend for names.
type load struct {
	lab      *Lab
	first    *Machine // is asked while there is no manager
	recorder history.Recorder
	end      context.CancelFunc
	running  sync.WaitGroup
	stopped  bool
	rounds   int // how often it was started
	// operators says that every change of a manager's role is recorded, as nobody else makes any.
	operators bool
}

func history_(p *player, ctx context.Context, args []string) error {
	switch {
	case len(args) >= 1 && args[0] == "start" && (p.load == nil || p.load.stopped):
		clients, operators := 4, 0
		if len(args) > 1 {
			clients, _ = strconv.Atoi(args[1])
		}
		if len(args) > 2 {
			operators, _ = strconv.Atoi(args[2])
		}
		return p.startLoad(ctx, clients, operators)
	case len(args) == 1 && args[0] == "stop" && p.load != nil:
		p.load.stop()
		return nil
	}
	return wrongArguments("history start [CLIENTS [OPERATORS]] | history stop")
}

// startLoad makes what the clients contend for, the first time, before anything goes wrong.
func (p *player) startLoad(ctx context.Context, clients, operators int) error {
	if p.load == nil {
		p.load = &load{lab: p.Lab, first: p.machines[0], stopped: true}
		if err := p.load.makeRegisters(ctx, p); err != nil {
			return err
		}
	}
	if operators > 0 && !p.load.operators {
		p.load.operators = true
		if err := p.load.countManagers(ctx, p); err != nil {
			return err
		}
	}
	p.load.start(clients, operators)
	return nil
}

func (l *load) start(clients, operators int) {
	ctx, end := context.WithCancel(context.Background())
	l.end, l.stopped = end, false
	l.rounds++
	run := func(i int, act func(*client, context.Context) bool) {
		// No two clients may have one name, also not after a pause: it is part of what they write.
		c := &client{load: l, name: fmt.Sprintf("c%d", l.rounds*clientsMax+i), random: rand.New(rand.NewPCG(l.lab.seed, uint64(l.rounds*clientsMax+i)))}
		l.running.Go(func() { c.run(ctx, act) })
	}
	for i := range clients {
		run(i, (*client).act)
	}
	for i := range operators {
		run(clients+i, (*client).changeRole)
	}
}

func (l *load) stop() {
	if !l.stopped {
		l.stopped = true
		l.end()
		l.running.Wait()
	}
}

// makeRegisters through the seat, before anything goes wrong.
func (l *load) makeRegisters(ctx context.Context, p *player) error {
	seat, err := p.seat(ctx)
	if err != nil {
		return err
	}
	for i := range registersMax {
		name := registerPrefix + strconv.Itoa(i)
		call := l.recorder.Begin("make", history.Write{Key: name, Value: "made"})
		spec := emptyService(name)
		spec.Labels = map[string]string{registerLabel: "made"}
		if err := seat.call(ctx, http.MethodPost, "/services/create", nil, spec, nil); err != nil {
			call.Unknown()
			return err
		}
		call.Done(history.Written{})
	}
	return nil
}

// emptyService has no task.
func emptyService(name string) swarm.ServiceSpec {
	return swarm.ServiceSpec{
		Annotations:  swarm.Annotations{Name: name},
		TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: helloImage + "@" + digestOf(helloImage).String()}},
		Mode:         swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: new(uint64(0))}},
	}
}

// client does one thing after the other.
type client struct {
	load   *load
	name   string
	random *rand.Rand
	turn   int
}

func (c *client) run(ctx context.Context, act func(*client, context.Context) bool) {
	for ctx.Err() == nil {
		pause := lostPause
		if act(c, ctx) {
			pause = loadPause
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause/2 + time.Duration(c.random.Int64N(int64(pause)))):
		}
	}
}

// anyone is some machine whose agent runs: managers answer, others refuse.
func (c *client) anyone() *Machine {
	managers := c.load.lab.checks.holders()
	if len(managers) == 0 {
		return c.load.first
	}
	return c.load.lab.named(managers[c.random.IntN(len(managers))])
}

func (c *client) act(ctx context.Context) bool {
	c.turn++
	register := registerPrefix + strconv.Itoa(c.random.IntN(registersMax))
	switch c.random.IntN(6) {
	case 0, 1:
		_, ok := c.read(ctx, c.anyone(), register)
		return ok
	case 2, 3:
		return c.write(ctx, register)
	case 4:
		return c.race(ctx)
	}
	return c.tidy(ctx)
}

func (c *client) begin(m *Machine, input any) *history.Call {
	return c.load.recorder.Begin(c.name+"@"+m.Name, input)
}

func (c *client) read(ctx context.Context, m *Machine, register string) (swarm.Service, bool) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	call := c.begin(m, history.Read{Key: register})
	got, err := ask[swarm.Service](ctx, m, "/services/"+register)
	switch {
	case err == nil:
		call.Done(history.Value{Value: got.Spec.Labels[registerLabel], Version: got.Version.Index})
	case refused(err, http.StatusNotFound):
		call.Done(history.Value{})
	default:
		call.Refused()
	}
	return got, err == nil
}

func (c *client) write(ctx context.Context, register string) bool {
	before, ok := c.read(ctx, c.anyone(), register)
	if !ok {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	m, value := c.anyone(), fmt.Sprintf("%s-%d", c.name, c.turn)
	call := c.begin(m, history.Write{Key: register, Value: value, IfVersion: before.Version.Index})
	before.Spec.Labels = map[string]string{registerLabel: value}
	query := url.Values{"version": {strconv.FormatUint(before.Version.Index, 10)}}
	err := m.call(ctx, http.MethodPost, "/services/"+before.ID+"/update", query, before.Spec, nil)
	switch {
	case err == nil:
		call.Done(history.Written{})
		return true
	case err != nil && strings.Contains(err.Error(), "update out of sequence"):
		call.Done(history.Conflict{})
		return true
	}
	call.Lost(err)
	return false
}

// race for one of a few names.
func (c *client) race(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	m, name := c.anyone(), racePrefix+strconv.Itoa(c.random.IntN(racesMax))
	call := c.begin(m, history.Add{Set: "names", Name: name})
	var created swarm.ServiceCreateResponse
	err := m.call(ctx, http.MethodPost, "/services/create", nil, emptyService(name), &created)
	switch {
	case err == nil:
		call.Done(history.Added{ID: created.ID})
		return true
	case refused(err, http.StatusConflict):
		call.Done(history.Conflict{})
		return true
	}
	call.Lost(err)
	return false
}

// tidy lists the names and removes one.
func (c *client) tidy(ctx context.Context) bool {
	members, ok := c.list(ctx, c.anyone())
	if !ok || len(members) == 0 {
		return ok
	}
	var names []string
	for name := range members {
		names = append(names, name)
	}
	slices.Sort(names)
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	m, name := c.anyone(), names[c.random.IntN(len(names))]
	call := c.begin(m, history.Remove{Set: "names", Name: name, ID: members[name]})
	err := m.call(ctx, http.MethodDelete, "/services/"+members[name], nil, nil, nil)
	switch {
	case err == nil:
		call.Done(history.Removed{})
		return true
	case refused(err, http.StatusNotFound):
		call.Done(history.Absent{})
		return true
	}
	call.Lost(err)
	return false
}

func (c *client) list(ctx context.Context, m *Machine) (history.Members, bool) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	call := c.begin(m, history.List{Set: "names"})
	services, err := ask[[]swarm.Service](ctx, m, "/services")
	if err != nil {
		call.Refused()
		return nil, false
	}
	members := history.Members{}
	for _, s := range services {
		if strings.HasPrefix(s.Spec.Name, racePrefix) {
			members[s.Spec.Name] = s.ID
		}
	}
	call.Done(members)
	return members, true
}

// finalReads has every manager say once more what is left, so that what was acknowledged and lost contradicts it.
func (p *player) finalReads() error {
	if p.load == nil {
		return nil
	}
	c := &client{load: p.load, name: "end"}
	for _, name := range p.checks.holders() {
		m := p.named(name)
		for i := range registersMax {
			if _, ok := c.read(context.Background(), m, registerPrefix+strconv.Itoa(i)); !ok {
				return fmt.Errorf("%s does not tell a register", name)
			}
		}
		if _, ok := c.list(context.Background(), m); !ok {
			return fmt.Errorf("%s does not list services", name)
		}
		if p.load.operators {
			if _, ok := c.listManagers(context.Background(), m); !ok {
				return fmt.Errorf("%s does not list managers", name)
			}
		}
	}
	return nil
}

// holders are the machines with an open replica, by name.
func (c *checks) holders() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var names []string
	for name := range c.replicas {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
