package scenarios

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"swarm/scenarios/history"
	"swarm/scenarios/lab"

	"github.com/moby/moby/api/types/swarm"
)

const (
	clientPause    = 10 * time.Millisecond  // between two calls of a recorded client
	clientPatience = 5 * time.Second        // for one answer
	refusedPause   = 100 * time.Millisecond // after an answer that promises nothing
	lookEvery      = 500 * time.Millisecond // for who is a manager now
	firstChangeMax = 20 * time.Second       // until a recorded client has changed something
	judgeMax       = 60 * time.Second       // for one object's history
	registerLabel  = "register"             // of a service: what is read and written
	racePrefix     = "race-"                // of services whose names clients contend for
	raceEvery      = 30 * time.Millisecond  // a new name
	racesMax       = 6                      // such services at a time, before the oldest go
)

// registers are services whose label is written by several clients.
var registers = [...]string{"register-1", "register-2"}

// clients use the API of all managers at once, and everything that they are told is recorded.
type clients struct {
	world    *World
	began    time.Time
	recorder history.Recorder
	end      context.CancelFunc
	running  sync.WaitGroup

	mu       sync.Mutex
	managers []*lab.Node
}

// startClients makes the registers and sets the clients to work: two writers and a reader of each register, two that contend
// for names and one that lists and removes them.
func startClients(ctx context.Context, w *World) (*clients, error) {
	c := &clients{world: w, began: time.Now(), managers: w.Managers(ctx)}
	if len(c.managers) == 0 {
		return nil, errors.New("no manager answers")
	}
	for _, name := range registers {
		if err := c.makeRegister(ctx, name); err != nil {
			return nil, err
		}
	}
	ctx, c.end = context.WithCancel(context.WithoutCancel(ctx))
	c.running.Go(func() { c.look(ctx) })
	for _, register := range registers {
		for i := range 2 {
			c.work(ctx, func() bool { return c.write(ctx, register, fmt.Sprintf("w%d", i)) })
		}
		c.work(ctx, func() bool { _, ok := c.read(ctx, register, "r"); return ok })
	}
	for i := range 2 {
		c.work(ctx, func() bool { return c.race(ctx, fmt.Sprintf("a%d", i)) })
	}
	c.work(ctx, func() bool { return c.tidy(ctx) })
	return c, nil
}

// work calls again and again; false says that the last call was in vain.
func (c *clients) work(ctx context.Context, call func() bool) {
	c.running.Go(func() {
		for ctx.Err() == nil {
			pause := clientPause
			if !call() {
				pause = refusedPause
			}
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	})
}

// look keeps the list of managers up to date. One that cannot be asked stays: clients shall see what it says.
func (c *clients) look(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(lookEvery):
		}
		if found := c.world.Managers(ctx); len(found) > 0 {
			c.mu.Lock()
			c.managers = found
			c.mu.Unlock()
		}
	}
}

func (c *clients) anyManager() *lab.Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.managers[rand.IntN(len(c.managers))]
}

// check ends the clients, reads once more what is left, and judges all that was recorded. Fewer changes than that prove nothing.
func (c *clients) check(ctx context.Context, changesMin int) (string, error) {
	c.stop()
	for _, n := range c.world.Managers(ctx) {
		for _, register := range registers {
			if _, ok := c.readAt(ctx, n, register, "end"); !ok {
				return "", fmt.Errorf("%s does not tell %s", n.Name, register)
			}
		}
		if _, ok := c.listAt(ctx, n, "end"); !ok {
			return "", fmt.Errorf("%s does not list services", n.Name)
		}
	}
	summary := c.recorder.Summary()
	if _, changes := c.recorder.Counts(); changes < changesMin {
		return summary, fmt.Errorf("clients got only %d changes done, want %d: %s", changes, changesMin, summary)
	}
	return summary, c.recorder.Check(judgeMax)
}

func (c *clients) stop() {
	c.end()
	c.running.Wait()
}

func (c *clients) makeRegister(ctx context.Context, name string) error {
	call := c.recorder.Begin("make", history.Write{Key: name, Value: "made"})
	spec := emptyService(name)
	spec.Labels = map[string]string{registerLabel: "made"}
	got, err := c.world.ask(ctx, c.anyManager(), http.MethodPost, "/services/create", spec)
	if err != nil || got.status != http.StatusCreated {
		return fmt.Errorf("make %s: %w", name, errors.Join(err, errors.New(got.text())))
	}
	call.Done(history.Written{})
	return nil
}

// emptyService has no task, so that a change of it costs a commit and nothing else.
func emptyService(name string) swarm.ServiceSpec {
	none := uint64(0)
	return swarm.ServiceSpec{
		Annotations:  swarm.Annotations{Name: name},
		TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "hello"}},
		Mode:         swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &none}},
	}
}

// read a register from any manager.
func (c *clients) read(ctx context.Context, register, who string) (swarm.Service, bool) {
	return c.readAt(ctx, c.anyManager(), register, who)
}

func (c *clients) readAt(ctx context.Context, n *lab.Node, register, who string) (swarm.Service, bool) {
	call := c.recorder.Begin(who+"@"+n.Name, history.Read{Key: register})
	got, err := c.patiently(ctx, n, http.MethodGet, "/services/"+register, nil)
	var service swarm.Service
	if !got.fresh(err) || json.Unmarshal(got.body, &service) != nil {
		call.Refused()
		return service, false
	}
	call.Done(history.Value{Value: service.Spec.Labels[registerLabel], Version: service.Version.Index})
	return service, true
}

// write a register, if it is still what another manager may just have said.
func (c *clients) write(ctx context.Context, register, who string) bool {
	service, ok := c.read(ctx, register, who)
	if !ok {
		return false
	}
	n := c.anyManager()
	value := fmt.Sprintf("%s-%x", who, rand.Uint64())
	call := c.recorder.Begin(who+"@"+n.Name, history.Write{Key: register, Value: value, IfVersion: service.Version.Index})
	service.Spec.Labels = map[string]string{registerLabel: value}
	path := fmt.Sprintf("/services/%s/update?version=%d", service.ID, service.Version.Index)
	got, err := c.patiently(ctx, n, http.MethodPost, path, service.Spec)
	switch {
	case err == nil && got.status == http.StatusOK:
		call.Done(history.Written{})
		return true
	case err == nil && strings.Contains(got.text(), "update out of sequence"):
		call.Done(history.Conflict{})
		return true
	}
	call.Lost(err)
	return false
}

// race for a name that another client wants at the same time.
func (c *clients) race(ctx context.Context, who string) bool {
	n, name := c.anyManager(), fmt.Sprintf("%s%d", racePrefix, time.Since(c.began)/raceEvery)
	call := c.recorder.Begin(who+"@"+n.Name, history.Add{Set: "services", Name: name})
	got, err := c.patiently(ctx, n, http.MethodPost, "/services/create", emptyService(name))
	var created swarm.ServiceCreateResponse
	switch {
	case err == nil && got.status == http.StatusCreated && json.Unmarshal(got.body, &created) == nil:
		call.Done(history.Added{ID: created.ID})
		return true
	case err == nil && got.status == http.StatusConflict:
		call.Done(history.Conflict{})
		return true
	}
	call.Lost(err)
	return false
}

// tidy lists the names and removes one when there are many.
func (c *clients) tidy(ctx context.Context) bool {
	found, ok := c.listAt(ctx, c.anyManager(), "l")
	if !ok || len(found) <= racesMax {
		return ok
	}
	var names []string
	for name := range found {
		names = append(names, name)
	}
	slices.Sort(names)
	n, name := c.anyManager(), names[rand.IntN(len(names))]
	call := c.recorder.Begin("l@"+n.Name, history.Remove{Set: "services", Name: name, ID: found[name]})
	got, err := c.patiently(ctx, n, http.MethodDelete, "/services/"+found[name], nil)
	switch {
	case err == nil && got.status == http.StatusOK:
		call.Done(history.Removed{})
		return true
	case err == nil && got.status == http.StatusNotFound:
		call.Done(history.Absent{})
		return true
	}
	call.Lost(err)
	return false
}

func (c *clients) listAt(ctx context.Context, n *lab.Node, who string) (history.Members, bool) {
	call := c.recorder.Begin(who+"@"+n.Name, history.List{Set: "services"})
	got, err := c.patiently(ctx, n, http.MethodGet, "/services", nil)
	var services []swarm.Service
	if !got.fresh(err) || json.Unmarshal(got.body, &services) != nil {
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

func (c *clients) patiently(ctx context.Context, n *lab.Node, method, path string, body any) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, clientPatience)
	defer cancel()
	return c.world.ask(ctx, n, method, path, body)
}

// history of recorded clients: start, check and pause.
func recordedHistory(t *teller, ctx context.Context, args []string) (string, error) {
	const usage = "history start | history check CHANGES | history mark | history pause LIMIT"
	switch {
	case len(args) == 1 && args[0] == "start" && t.clients == nil:
		clients, err := startClients(ctx, t.World)
		if err != nil {
			return "", err
		}
		t.clients = clients
		return "", t.again(ctx, t.limit(firstChangeMax), func(context.Context) error {
			if _, changes := clients.recorder.Counts(); changes <= len(registers) {
				return errors.New("no client has changed anything yet")
			}
			return nil
		})
	case len(args) == 2 && args[0] == "check" && t.clients != nil:
		least, err := count(args, 2, usage)
		if err != nil {
			return "", err
		}
		clients := t.clients
		t.clients = nil
		defer clients.stop()
		summary, err := clients.check(ctx, least)
		fmt.Fprintf(t.settings.Log, "         %s\n", summary)
		return summary, err
	case len(args) == 1 && args[0] == "mark" && t.clients != nil:
		t.clients.recorder.Mark()
		return "", nil
	case len(args) == 2 && args[0] == "pause" && t.clients != nil:
		limit, err := time.ParseDuration(args[1])
		if err != nil {
			return "", err
		}
		longest := t.clients.recorder.LongestPause().Round(time.Millisecond)
		if longest > t.limit(limit) {
			return "", fmt.Errorf("for %s no change was done, want at most %s", longest, t.limit(limit))
		}
		return "longest pause " + longest.String(), nil
	}
	return "", wrongArguments(usage)
}
