package raftstore

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"swarm/rpc"

	"golang.org/x/sync/errgroup"
)

// rpcPeers calls other managers, as agent does.
type rpcPeers struct {
	dialer  *rpc.Dialer
	mu      sync.Mutex // guards:
	clients map[string]rpc.RaftClient
}

func (p *rpcPeers) client(address string) (rpc.RaftClient, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if client := p.clients[address]; client != nil {
		return client, nil
	}
	conn, err := p.dialer.GRPC(address)
	if err != nil {
		return nil, err
	}
	p.clients[address] = rpc.NewRaftClient(conn)
	return p.clients[address], nil
}

func (p *rpcPeers) Propose(ctx context.Context, address string, commits [][]byte) ([]Answer, error) {
	client, err := p.client(address)
	if err != nil {
		return nil, err
	}
	response, err := client.Propose(ctx, &rpc.ProposeRequest{Commits: commits})
	if err != nil {
		return nil, err
	}
	answers := make([]Answer, len(response.Answers))
	for i, a := range response.Answers {
		answers[i] = Answer{Index: a.Index, Refusal: a.Refusal}
	}
	return answers, nil
}

func (p *rpcPeers) ReadIndex(ctx context.Context, address string) (uint64, error) {
	client, err := p.client(address)
	if err != nil {
		return 0, err
	}
	response, err := client.ReadIndex(ctx, new(rpc.ReadIndexRequest))
	return response.GetIndex(), err
}

// BenchmarkCommits compares committed updates of one row each with what the disk can do, measured right before and after.
// Writers are on the leader, on one follower, or everywhere.
func BenchmarkCommits(b *testing.B) {
	everywhere := func(c *benchCluster) []*Store { return c.all }
	leader := func(c *benchCluster) []*Store { return []*Store{c.leader()} }
	follower := func(c *benchCluster) []*Store { return []*Store{c.follower()} }
	for _, bench := range []struct {
		managers, writers int
		name              string
		on                func(*benchCluster) []*Store
	}{
		{1, 1, "", leader}, {1, 16, "", leader}, {1, 256, "", leader},
		{3, 1, "", leader}, {3, 16, "", leader}, {3, 256, "", everywhere},
		{3, 256, "/on=leader", leader}, {3, 256, "/on=follower", follower}, {3, 1, "/on=follower", follower},
	} {
		b.Run(fmt.Sprintf("managers=%d/writers=%d%s", bench.managers, bench.writers, bench.name), func(b *testing.B) {
			c := newBenchCluster(b, bench.managers, realSealer)
			bare := newBareLoop(b, c.dir)
			const turn = 200 * time.Millisecond
			var commits, syncs, seconds float64
			on := bench.on(c)
			for b.Loop() {
				// Turns follow each other closely, because disks change their mind.
				syncs += bare.perSecond(b, turn/4)
				began := time.Now()
				commits += float64(commitsWithin(b, on, turn, bench.writers))
				seconds += time.Since(began).Seconds()
			}
			b.ReportMetric(commits/seconds, "commits/s")
			b.ReportMetric(commits/seconds/(syncs/float64(b.N)), "of-fdatasync")
		})
	}
}

func putTask(tx *Tx) error {
	tx.PutTask(Task{Meta: Meta{ID: NewID()}, ServiceID: "service", NodeID: "node", Slot: 1})
	return nil
}

// BenchmarkSealing compares one manager that seals with one that does not, in short turns, because disks change their mind.
func BenchmarkSealing(b *testing.B) {
	const turn, writers = 100 * time.Millisecond, 256
	sealed := newBenchCluster(b, 1, realSealer).all
	plain := newBenchCluster(b, 1, func(string) (Sealer, error) { return noSealer{}, nil }).all
	var perSecond [2]float64
	for b.Loop() {
		for i, stores := range [][]*Store{sealed, plain} {
			began := time.Now()
			n := commitsWithin(b, stores, turn, writers)
			perSecond[i] += float64(n) / time.Since(began).Seconds()
		}
	}
	b.ReportMetric(perSecond[0]/float64(b.N), "commits/s")
	b.ReportMetric(perSecond[0]/perSecond[1], "of-unsealed")
}

// commitsWithin has writers, spread over stores, commit a task each, again and again, and returns how many.
func commitsWithin(b *testing.B, stores []*Store, limit time.Duration, writers int) int64 {
	var done atomic.Int64
	var work errgroup.Group
	end := time.Now().Add(limit)
	for i := range writers {
		work.Go(func() error {
			for time.Now().Before(end) {
				if err := stores[i%len(stores)].Update(b.Context(), putTask); err != nil {
					return err
				}
				done.Add(1)
			}
			return nil
		})
	}
	if err := work.Wait(); err != nil {
		b.Fatal(err)
	}
	return done.Load()
}

// BenchmarkView is linearizable reads on a follower of three managers, each of which sees a row that was written before it.
func BenchmarkView(b *testing.B) {
	for _, readers := range []int{1, 64} {
		b.Run(fmt.Sprint("readers=", readers), func(b *testing.B) {
			c := newBenchCluster(b, 3, realSealer)
			s := c.follower()
			var left atomic.Int64
			left.Store(int64(b.N))
			var work errgroup.Group
			b.ResetTimer()
			for range readers {
				work.Go(func() error {
					for left.Add(-1) >= 0 {
						if _, err := s.View(b.Context()); err != nil {
							return err
						}
					}
					return nil
				})
			}
			if err := work.Wait(); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "reads/s")
		})
	}
}

// BenchmarkApply is the state machine alone: entries of 100 commits of one task each, on a table of growing size.
func BenchmarkApply(b *testing.B) {
	f := newFSM(func(err error) { b.Error(err) })
	index := uint64(0)
	for b.Loop() {
		b.StopTimer()
		var commits []rawCommit
		for range 100 {
			c := commit{format: FormatVersion, id: newCommitID(), time: time.Unix(1, 0)}
			id := NewID()
			c.changes = append(c.changes, change{table: tableTasks, op: opPut, id: id, row: &Task{Meta: Meta{ID: id}, ServiceID: "s", NodeID: "n"}})
			raw, err := encodeCommit(&c)
			if err != nil {
				b.Fatal(err)
			}
			commits = append(commits, raw)
		}
		entry, err := encodeEntry(FormatVersion, commits...)
		if err != nil {
			b.Fatal(err)
		}
		index++
		b.StartTimer()
		applyEntry(b, f, index, entry)
	}
	b.ReportMetric(float64(index)*100/b.Elapsed().Seconds(), "commits/s")
}
