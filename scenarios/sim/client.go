package sim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
)

const (
	apiSocket = "/run/swarm/swarm.sock"
	// askMax bounds one request of an operator.
	askMax = 20 * time.Second
	// lookMax bounds one look at a node, which may hang.
	lookMax = 5 * time.Second
	// answerBytesMax bounds an answer.
	answerBytesMax = 16 << 20
)

// statusError is an answer that is no success.
type statusError struct {
	Status  int
	Message string
}

func (e *statusError) Error() string { return fmt.Sprintf("%d %s", e.Status, e.Message) }

// refused says whether err is an answer with that status.
func refused(err error, status int) bool {
	var e *statusError
	return errors.As(err, &e) && e.Status == status
}

// errStale is an answer from a replica that may be behind.
var errStale = errors.New("the answer may be stale")

func (m *Machine) dialAPI(ctx context.Context, _, _ string) (net.Conn, error) {
	return m.operator.Load().Dial(ctx, "unix", apiSocket)
}

// call asks a machine's API. into gets the decoded answer unless it is nil. The error is a *statusError if there was an
// answer, and wraps errStale if the answer is good but may be old.
func (m *Machine) call(ctx context.Context, method, path string, query url.Values, body, into any) error {
	var content io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = bytes.NewReader(encoded)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://swarm"+path+"?"+query.Encode(), content)
	if err != nil {
		return err
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	answer, err := m.client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, answerBytesMax))
	if err != nil {
		return err
	}
	if answer.StatusCode/100 != 2 {
		var e struct{ Message string }
		_ = json.Unmarshal(text, &e) // without a message the status says enough
		return &statusError{answer.StatusCode, e.Message}
	}
	if into != nil {
		if err := json.Unmarshal(text, into); err != nil {
			return fmt.Errorf("%s %s: %w", method, path, err)
		}
	}
	if answer.Header.Get("Swarm-Stale") != "" {
		return errStale
	}
	return nil
}

func ask[T any](ctx context.Context, m *Machine, path string) (T, error) {
	var got T
	err := m.call(ctx, http.MethodGet, path, nil, nil, &got)
	if err != nil {
		err = fmt.Errorf("%s: GET %s: %w", m.Name, path, err)
	}
	return got, err
}

func (m *Machine) info(ctx context.Context) (system.Info, error) {
	ctx, cancel := context.WithTimeout(ctx, lookMax)
	defer cancel()
	return ask[system.Info](ctx, m, "/info")
}

// Init makes a cluster of this machine.
func (m *Machine) Init(ctx context.Context) error {
	request := swarm.InitRequest{ListenAddr: "0.0.0.0:" + nodePort, AdvertiseAddr: m.Address()}
	return m.call(ctx, http.MethodPost, "/swarm/init", nil, request, nil)
}

// Join makes the machine a member of the cluster that seat is a manager of.
func (m *Machine) Join(ctx context.Context, seat *Machine, role string) error {
	cluster, err := ask[swarm.Swarm](ctx, seat, "/swarm")
	if err != nil {
		return err
	}
	request := swarm.JoinRequest{
		ListenAddr: "0.0.0.0:" + nodePort, AdvertiseAddr: m.Address(), RemoteAddrs: []string{seat.Address()}, JoinToken: cluster.JoinTokens.Worker,
	}
	if role == string(swarm.NodeRoleManager) {
		request.JoinToken = cluster.JoinTokens.Manager
	}
	if err := m.call(ctx, http.MethodPost, "/swarm/join", nil, request, nil); err != nil {
		return fmt.Errorf("join %s as %s: %w", m.Name, role, err)
	}
	return nil
}

// Leave takes the machine out of its cluster.
func (m *Machine) Leave(ctx context.Context, force bool) error {
	return m.call(ctx, http.MethodPost, "/swarm/leave", url.Values{"force": {strconv.FormatBool(force)}}, nil, nil)
}
