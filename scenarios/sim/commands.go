package sim

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// flags takes the flags that stories use out of a command line; those of no value are in bare.
func flags(args []string, bare ...string) (values map[string]string, rest []string) {
	values = map[string]string{}
	for len(args) > 0 && strings.HasPrefix(args[0], "--") {
		name, value, given := strings.Cut(strings.TrimPrefix(args[0], "--"), "=")
		args = args[1:]
		switch {
		case slices.Contains(bare, name):
			value = "true"
		case !given && len(args) > 0:
			value, args = args[0], args[1:]
		}
		values[name] = value
	}
	return values, args
}

func service(p *player, ctx context.Context, args []string) error {
	if len(args) == 0 {
		return wrongArguments("service create | update | scale | rm")
	}
	seat, err := p.seat(ctx)
	if err != nil {
		return err
	}
	switch args[0] {
	case "create":
		return p.createService(ctx, seat, args[1:])
	case "update":
		return p.updateService(ctx, seat, args[1:])
	case "scale":
		return p.scaleService(ctx, seat, args[1:])
	case "rm":
		return p.removeService(ctx, seat, args[1:])
	}
	return fmt.Errorf("unknown command service %s", args[0])
}

// doubt is what is known of a service after a command failed: nothing, unless the answer says that it was refused.
func (p *player) doubt(name string, err error) error {
	p.changed[name] = time.Now()
	if err != nil && !refused(err, http.StatusConflict) && !refused(err, http.StatusNotFound) && !refused(err, http.StatusBadRequest) {
		p.doubtful[name] = true
	}
	return err
}

func (p *player) createService(ctx context.Context, seat *Machine, args []string) error {
	values, rest := flags(args, "detach")
	if len(rest) == 0 || values["name"] == "" {
		return wrongArguments("service create --name NAME [--replicas N] [--mode global] IMAGE ARG…")
	}
	spec := swarm.ServiceSpec{Annotations: swarm.Annotations{Name: values["name"]}}
	grace := 2 * time.Second
	spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: helloImage + "@" + digestOf(helloImage).String(), Args: rest[1:], StopGracePeriod: &grace}
	replicas := 1
	if values["replicas"] != "" {
		replicas, _ = strconv.Atoi(values["replicas"])
	}
	if values["mode"] == "global" {
		spec.Mode.Global, replicas = &swarm.GlobalService{}, -1
	} else {
		spec.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(replicas))}
	}
	parallelism, _ := strconv.ParseUint(values["update-parallelism"], 10, 64)
	spec.UpdateConfig = &swarm.UpdateConfig{Parallelism: parallelism, FailureAction: swarm.UpdateFailureActionContinue, Order: swarm.UpdateOrder(values["update-order"])}
	err := seat.call(ctx, http.MethodPost, "/services/create", nil, spec, nil)
	if err == nil {
		p.wanted[spec.Name] = replicas
	}
	return p.doubt(spec.Name, err)
}

// changeService reads a service and writes it back changed.
func (p *player) changeService(ctx context.Context, seat *Machine, name string, change func(*swarm.ServiceSpec)) error {
	got, err := ask[swarm.Service](ctx, seat, "/services/"+name)
	if err != nil {
		return err
	}
	change(&got.Spec)
	query := url.Values{"version": {strconv.FormatUint(got.Version.Index, 10)}}
	return p.doubt(name, seat.call(ctx, http.MethodPost, "/services/"+got.ID+"/update", query, got.Spec, nil))
}

func (p *player) updateService(ctx context.Context, seat *Machine, args []string) error {
	_, rest := flags(args, "detach", "force")
	if len(rest) != 1 {
		return wrongArguments("service update --force NAME")
	}
	return p.changeService(ctx, seat, rest[0], func(s *swarm.ServiceSpec) { s.TaskTemplate.ForceUpdate++ })
}

func (p *player) scaleService(ctx context.Context, seat *Machine, args []string) error {
	_, rest := flags(args, "detach")
	if len(rest) != 1 {
		return wrongArguments("service scale NAME=N")
	}
	name, value, _ := strings.Cut(rest[0], "=")
	replicas, err := strconv.ParseUint(value, 10, 16)
	if err != nil {
		return err
	}
	err = p.changeService(ctx, seat, name, func(s *swarm.ServiceSpec) {
		if s.Mode.Replicated != nil {
			s.Mode.Replicated = &swarm.ReplicatedService{Replicas: &replicas}
		}
	})
	if err == nil {
		p.wanted[name] = int(replicas)
		// The change was made on what was read, so no earlier one can still take effect after it.
		delete(p.doubtful, name)
	}
	return err
}

func (p *player) removeService(ctx context.Context, seat *Machine, args []string) error {
	if len(args) != 1 {
		return wrongArguments("service rm NAME")
	}
	err := p.doubt(args[0], seat.call(ctx, http.MethodDelete, "/services/"+args[0], nil, nil, nil))
	if err == nil {
		delete(p.wanted, args[0])
	}
	return err
}

func node(p *player, ctx context.Context, args []string) error {
	if len(args) < 2 {
		return wrongArguments("node promote | demote | rm | update --availability WORD NODE")
	}
	seat, err := p.seat(ctx)
	if err != nil {
		return err
	}
	values, rest := flags(args[1:], "force")
	if len(rest) != 1 {
		return wrongArguments("node VERB NODE")
	}
	m, err := p.find(ctx, rest[0])
	if err != nil {
		return err
	}
	id, err := p.nodeID(ctx, m)
	if err != nil {
		return err
	}
	switch args[0] {
	case "promote":
		return changeNode(ctx, seat, id, func(s *swarm.NodeSpec) { s.Role = swarm.NodeRoleManager })
	case "demote":
		return changeNode(ctx, seat, id, func(s *swarm.NodeSpec) { s.Role = swarm.NodeRoleWorker })
	case "update":
		return changeNode(ctx, seat, id, func(s *swarm.NodeSpec) { s.Availability = swarm.NodeAvailability(values["availability"]) })
	case "rm":
		return seat.call(ctx, http.MethodDelete, "/nodes/"+id, url.Values{"force": {values["force"]}}, nil, nil)
	}
	return fmt.Errorf("unknown command node %s", args[0])
}

// nodeID is that of the machine's latest membership.
func (p *player) nodeID(ctx context.Context, m *Machine) (string, error) {
	if m.Awake() {
		if info, err := m.info(ctx); err == nil && info.Swarm.NodeID != "" {
			return info.Swarm.NodeID, nil
		}
	}
	nodes, err := p.nodes(ctx)
	if err != nil {
		return "", err
	}
	nodes = slices.DeleteFunc(nodes, func(n swarm.Node) bool { return n.Description.Hostname != m.Name })
	if len(nodes) == 0 {
		return "", errors.New("no node is called " + m.Name)
	}
	return slices.MaxFunc(nodes, func(a, b swarm.Node) int { return a.CreatedAt.Compare(b.CreatedAt) }).ID, nil
}

func changeNode(ctx context.Context, seat *Machine, id string, change func(*swarm.NodeSpec)) error {
	got, err := ask[swarm.Node](ctx, seat, "/nodes/"+id)
	if err != nil {
		return err
	}
	change(&got.Spec)
	query := url.Values{"version": {strconv.FormatUint(got.Version.Index, 10)}}
	return seat.call(ctx, http.MethodPost, "/nodes/"+id+"/update", query, got.Spec, nil)
}
