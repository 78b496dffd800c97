package agent

import (
	"context"
	"errors"
	"sync"
	"time"

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
	index, refusal, err := mg.store.ProposeLocal(ctx, r.Commit)
	if err != nil {
		return nil, err
	}
	return &rpc.ProposeResponse{Index: index, Refusal: refusal}, nil
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

func (p *raftPeers) Propose(ctx context.Context, address string, commit []byte) (uint64, []byte, error) {
	client, err := p.client(address)
	if err != nil {
		return 0, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, raftCallMax)
	defer cancel()
	answer, err := client.Propose(ctx, &rpc.ProposeRequest{Commit: commit})
	if err != nil {
		return 0, nil, err
	}
	return answer.Index, answer.Refusal, nil
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
