package scenarios

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"

	"swarm/scenarios/lab"
)

func smallDiskMachine(t *teller, ctx context.Context, args []string) (string, error) {
	if len(args) != 2 {
		return "", wrongArguments("small-disk-machine NAME MEGABYTES")
	}
	megabytes, err := strconv.ParseInt(args[1], 10, 32)
	if err != nil {
		return "", err
	}
	n, err := t.Lab.Add(args[0])
	if err == nil {
		err = n.LimitDisk(megabytes << 20)
	}
	if err == nil {
		err = n.Start(ctx)
	}
	return "", err
}

// api is no client's request but the story's own, so it can be wrong in ways in which no client is.
// Any answer is a success: the story says which status it wants.
func api(t *teller, ctx context.Context, args []string) (string, error) {
	if len(args) < 3 || len(args) > 4 {
		return "", wrongArguments("api NODE METHOD PATH [BODY]")
	}
	n, err := t.Find(ctx, args[0])
	if err != nil {
		return "", err
	}
	got, err := t.ask(ctx, n, args[1], args[2], strings.Join(args[3:], ""))
	return got.text(), err
}

func occupy(t *teller, ctx context.Context, args []string) (string, error) {
	if len(args) != 2 {
		return "", wrongArguments("occupy NODE PORT")
	}
	return "", t.atNode(ctx, args[0], func(n *lab.Node) error { return n.Occupy(args[1]) })
}

func damage(t *teller, ctx context.Context, args []string) (string, error) {
	if len(args) != 2 {
		return "", wrongArguments("damage NODE FILE")
	}
	return "", t.atNode(ctx, args[0], func(n *lab.Node) error { return n.Damage(args[1]) })
}

func overwrite(t *teller, ctx context.Context, args []string) (string, error) {
	if len(args) != 3 {
		return "", wrongArguments("write NODE FILE CONTENT")
	}
	return "", t.atNode(ctx, args[0], func(n *lab.Node) error { return n.Overwrite(args[1], args[2]) })
}

func (t *teller) atNode(ctx context.Context, name string, do func(*lab.Node) error) error {
	n, err := t.Find(ctx, name)
	if err != nil {
		return err
	}
	return do(n)
}

func file(t *teller, ctx context.Context, args []string) (string, error) {
	if len(args) != 2 {
		return "", wrongArguments("file NODE FILE")
	}
	return "", t.atNode(ctx, args[0], func(n *lab.Node) error {
		if found, err := filepath.Glob(filepath.Join(n.DataDir(), args[1])); err != nil || found == nil {
			return fmt.Errorf("%s has no file %s", n.Name, args[1])
		}
		return nil
	})
}

func alone(t *teller, ctx context.Context, args []string) (string, error) {
	if len(args) != 1 {
		return "", wrongArguments("alone NODE")
	}
	return "", t.atNode(ctx, args[0], func(n *lab.Node) error {
		connected, err := n.Connections()
		if err == nil && connected != nil {
			err = fmt.Errorf("%s is connected to %s", n.Name, strings.Join(connected, ", "))
		}
		return err
	})
}

// burst makes and removes a service that has no task: each is one change.
func burst(t *teller, ctx context.Context, args []string) (string, error) {
	changes, err := count(args, 1, "burst N")
	if err != nil {
		return "", err
	}
	seat, err := t.Seat(ctx)
	if err != nil {
		return "", err
	}
	for range (changes + 1) / 2 {
		for _, call := range []struct{ method, path string }{{http.MethodPost, "/services/create"}, {http.MethodDelete, "/services/burst"}} {
			got, err := t.ask(ctx, seat, call.method, call.path, emptyService("burst"))
			if err != nil || got.status >= http.StatusBadRequest {
				return "", errors.Join(err, errors.New(got.text()))
			}
		}
	}
	return "", nil
}
