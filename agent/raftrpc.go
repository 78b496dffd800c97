package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"swarm/raftstore"
	"swarm/rpc"

	"google.golang.org/grpc"
)

const (
	// raftCallMax bounds one forwarded proposal or read index.
	raftCallMax = 10 * time.Second
	// peerConnsMax is how many managers' connections are kept; a cluster has 7 managers at most.
	peerConnsMax = 16
)

// Propose commits on behalf of a manager that does not lead.
func (s *services) Propose(ctx context.Context, r *rpc.ProposeRequest) (*rpc.ProposeResponse, error) {
	mg, err := s.manager()
	if err != nil {
		return nil, err
	}
	answers, err := mg.store.ProposeLocal(ctx, r.Commits)
	if err != nil {
		return nil, err
	}
	response := &rpc.ProposeResponse{Answers: make([]*rpc.CommitAnswer, len(answers))}
	for i, a := range answers {
		response.Answers[i] = &rpc.CommitAnswer{Index: a.Index, Refusal: a.Refusal}
	}
	if len(answers) == 1 {
		response.Index, response.Refusal = answers[0].Index, answers[0].Refusal
	}
	return response, nil
}

// ReadIndex tells a manager that does not lead what a linearizable read has to wait for.
func (s *services) ReadIndex(ctx context.Context, _ *rpc.ReadIndexRequest) (*rpc.ReadIndexResponse, error) {
	mg, err := s.manager()
	if err != nil {
		return nil, err
	}
	index, err := mg.store.ReadIndexLocal(ctx)
	if err != nil {
		return nil, err
	}
	return &rpc.ReadIndexResponse{Index: index}, nil
}

// raftPeers calls other managers for raftstore, over one kept connection each.
type raftPeers struct {
	dialer *rpc.Dialer

	mu    sync.Mutex // guards the field below
	conns map[string]*grpc.ClientConn
}

func newRaftPeers(d *rpc.Dialer) *raftPeers {
	return &raftPeers{dialer: d, conns: map[string]*grpc.ClientConn{}}
}

func (p *raftPeers) client(address string) (rpc.RaftClient, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if conn := p.conns[address]; conn != nil {
		return rpc.NewRaftClient(conn), nil
	}
	conn, err := p.dialer.GRPC(address)
	if err != nil {
		return nil, err
	}
	if len(p.conns) >= peerConnsMax {
		p.closeLocked()
	}
	p.conns[address] = conn
	return rpc.NewRaftClient(conn), nil
}

func (p *raftPeers) closeLocked() error {
	var err error
	for address, conn := range p.conns {
		err = errors.Join(err, conn.Close())
		delete(p.conns, address)
	}
	return err
}

// Close ends the kept connections.
func (p *raftPeers) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closeLocked()
}

func (p *raftPeers) Propose(ctx context.Context, address string, commits [][]byte) ([]raftstore.Answer, error) {
	client, err := p.client(address)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, raftCallMax)
	defer cancel()
	response, err := client.Propose(ctx, &rpc.ProposeRequest{Commits: commits})
	if err != nil {
		return nil, err
	}
	if len(response.Answers) == 0 && len(commits) == 1 {
		return []raftstore.Answer{{Index: response.GetIndex(), Refusal: response.GetRefusal()}}, nil
	}
	answers := make([]raftstore.Answer, len(response.Answers))
	for i, a := range response.Answers {
		answers[i] = raftstore.Answer{Index: a.GetIndex(), Refusal: a.GetRefusal()}
	}
	return answers, nil
}

func (p *raftPeers) ReadIndex(ctx context.Context, address string) (uint64, error) {
	client, err := p.client(address)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, raftCallMax)
	defer cancel()
	answer, err := client.ReadIndex(ctx, &rpc.ReadIndexRequest{})
	if err != nil {
		return 0, err
	}
	return answer.Index, nil
}
