package dispatcher

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"swarm/raftstore"
	"swarm/rpc"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"
)

// authority signs certificates for a benchmark's nodes.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newAuthority() *authority {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der := must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))
	return readAuthority(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), must(x509.MarshalECPrivateKey(key)))
}

func readAuthority(certPEM, keyDER []byte) *authority {
	block, _ := pem.Decode(certPEM)
	a := &authority{cert: must(x509.ParseCertificate(block.Bytes)), key: must(x509.ParseECPrivateKey(keyDER)), pool: x509.NewCertPool()}
	a.pool.AddCert(a.cert)
	return a
}

// identity is a node's certificate.
type identity struct {
	a    *authority
	cert *tls.Certificate
}

func (a *authority) node(id string, role rpc.Role) identity {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: rpc.Peer{NodeID: id, ClusterID: "cluster", Role: role}.Subject(),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		NotBefore:   time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der := must(x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key))
	return identity{a, &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: must(x509.ParseCertificate(der))}}
}

func (i identity) Certificate() *tls.Certificate { return i.cert }
func (i identity) Roots() *x509.CertPool         { return i.a.pool }
func (i identity) ClusterID() string             { return "cluster" }

// listen serves the lab's dispatcher on a real port with mutual TLS.
func (l *lab) listen(a *authority) (address string) {
	listener := must(net.Listen("tcp", "127.0.0.1:0"))
	server := rpc.NewServer(rpc.ServerConfig{Listener: listener, Identity: a.node("n0", rpc.Manager)})
	server.RegisterService(&rpc.Dispatcher_ServiceDesc, l.d)
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- server.Run(ctx) }()
	l.Cleanup(func() {
		cancel()
		if err := <-over; err != nil {
			l.Error(err)
		}
	})
	return listener.Addr().String()
}

// dialSession is an agent's end of a real session. It returns once welcomed; take gets what comes until ctx ends. It beats as it is
// told by the welcome, then as pace says.
func dialSession(ctx context.Context, id identity, address string, pace <-chan time.Duration, take func(*rpc.ManagerMessage)) error {
	nodeID := id.cert.Leaf.Subject.CommonName
	conn, err := (&rpc.Dialer{Network: rpc.Kernel{}, Identity: id}).GRPC(address)
	if err != nil {
		return err
	}
	stream, err := rpc.NewDispatcherClient(conn).Session(ctx)
	if err != nil {
		return err
	}
	description, _ := json.Marshal(swarm.NodeDescription{Hostname: nodeID, Resources: swarm.Resources{NanoCPUs: 1e15, MemoryBytes: 1 << 50}})
	if err := stream.Send(&rpc.AgentMessage{Kind: &rpc.AgentMessage_Hello{Hello: &rpc.Hello{FormatVersion: FormatVersion, DescriptionJson: description, Address: nodeID + ":2377"}}}); err != nil {
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	beat := time.NewTicker(time.Duration(first.GetWelcome().GetBeatNs()))
	go func() {
		defer conn.Close()
		defer beat.Stop()
		for {
			select {
			case d := <-pace:
				beat.Reset(d)
			case <-beat.C:
				_ = stream.Send(&rpc.AgentMessage{Kind: &rpc.AgentMessage_Beat{Beat: &rpc.Beat{}}})
			case <-ctx.Done():
				return
			}
		}
	}()
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				return
			}
			take(m)
		}
	}()
	return nil
}

// assign writes tasks that are assigned already, as many per commit, one after the other over the nodes. done is told when each
// commit was made.
func (l *lab) assign(ids []string, from, count, perCommit int) {
	for begin := from; begin < from+count; begin += perCommit {
		l.write(func(tx *raftstore.Tx) {
			for i := begin; i < min(begin+perCommit, from+count); i++ {
				t := raftstore.Task{
					ServiceID: "web", SpecVersion: 1, Slot: uint64(i + 1), NodeID: ids[i%len(ids)], DesiredState: swarm.TaskStateRunning,
					Status: raftstore.TaskStatus{State: swarm.TaskStateAssigned},
				}
				t.ID = fmt.Sprintf("t%08d", i)
				tx.PutTask(t)
			}
		})
	}
}

// BenchmarkDispatch measures from the moment at which a changed task is committed until its assignment is at its agent, over
// real TLS and streams, with 100 agents: idle, one change at a time, and with 2,000 changes a second.
func BenchmarkDispatch(b *testing.B) {
	l := newLab(b, false)
	a := newAuthority()
	address := l.listen(a)
	ids := l.nodes("n", 100)
	l.write(func(tx *raftstore.Tx) { l.service(tx, "web", 1) })
	var arrived sync.Map
	var joins errgroup.Group
	joins.SetLimit(32)
	for _, id := range ids {
		joins.Go(func() error {
			return dialSession(l.ctx, a.node(id, rpc.Worker), address, nil, func(m *rpc.ManagerMessage) {
				now := time.Now()
				for _, t := range m.GetAssignments().GetTasks() {
					if c, ok := arrived.Load(t.TaskId); ok {
						c.(chan time.Time) <- now
					}
				}
			})
		})
	}
	if err := joins.Wait(); err != nil {
		b.Fatal(err)
	}
	next := 0
	one := func(i int) time.Duration {
		id := fmt.Sprintf("t%08d", i)
		at := make(chan time.Time, 1)
		arrived.Store(id, at)
		defer arrived.Delete(id)
		l.assign(ids, i, 1, 1)
		committed := time.Now()
		return max(0, (<-at).Sub(committed))
	}
	b.Run("idle", func(b *testing.B) {
		var took []time.Duration
		for range max(b.N, 200) {
			took = append(took, one(next))
			next++
		}
		reportQuantiles(b, took)
	})
	b.Run("busy", func(b *testing.B) {
		const rate, seconds = 2000, 3
		var mu sync.Mutex
		var took []time.Duration
		var wg sync.WaitGroup
		began := time.Now()
		for i := range rate * seconds {
			time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / rate)))
			n := next
			next++
			wg.Go(func() {
				d := one(n)
				mu.Lock()
				defer mu.Unlock()
				took = append(took, d)
			})
		}
		wg.Wait()
		b.ReportMetric(float64(len(took))/time.Since(began).Seconds(), "changes/s")
		reportQuantiles(b, took)
	})
}

func reportQuantiles(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	at := func(q float64) float64 { return float64(took[int(q*float64(len(took)-1))].Microseconds()) / 1000 }
	b.ReportMetric(at(0.5), "p50-ms")
	b.ReportMetric(at(0.99), "p99-ms")
	b.ReportMetric(0, "ns/op")
}

// agentsEnv makes the test binary the process of many agents: address, count, root certificate's file, tasks expected.
const agentsEnv = "DISPATCHER_BENCH_AGENTS"

// TestAgentsProcess is no test: it is the other process of BenchmarkThousandAgents.
func TestAgentsProcess(t *testing.T) {
	setting := strings.Split(os.Getenv(agentsEnv), ",")
	if len(setting) != 5 {
		t.Skip("the process of agents of a benchmark")
	}
	address, count, total := setting[0], must(strconv.Atoi(setting[1])), int64(must(strconv.Atoi(setting[2])))
	a := readAuthority(must(os.ReadFile(setting[3])), must(os.ReadFile(setting[4])))
	agents := make([]identity, count)
	for i := range agents {
		agents[i] = a.node(fmt.Sprintf("n%05d", i), rpc.Worker)
	}
	fmt.Println("ready")
	in := bufio.NewReader(os.Stdin)
	_, _ = in.ReadString('\n')
	var delivered, beats atomic.Int64
	var joins errgroup.Group
	joins.SetLimit(48) // the port takes 64 strangers from one address at a time
	paces := make([]chan time.Duration, count)
	for i, id := range agents {
		paces[i] = make(chan time.Duration, 1)
		joins.Go(func() error {
			return dialSession(context.Background(), id, address, paces[i], func(m *rpc.ManagerMessage) {
				if m.GetBeat() != nil {
					beats.Add(1)
				}
				if n := int64(len(m.GetAssignments().GetTasks())); n > 0 && delivered.Add(n) == total {
					fmt.Println("delivered")
				}
			})
		})
	}
	if err := joins.Wait(); err != nil {
		t.Fatal(err)
	}
	fmt.Println("joined")
	_, _ = in.ReadString('\n')
	for _, pace := range paces {
		pace <- fastBeat
	}
	for range 2 {
		_, _ = in.ReadString('\n')
		fmt.Println(beats.Load())
	}
	_, _ = io.Copy(io.Discard, in) // until the benchmark is over
}

// fastBeat is how often agents beat in the end.
const fastBeat = 50 * time.Millisecond

// BenchmarkThousandAgents measures one manager with 1,000 agents in another process, over real TLS and streams: how long all take to join,
// what a session costs in memory, how many assignments a second go through the store to the agents, and what it costs to take and answer
// beats.
func BenchmarkThousandAgents(b *testing.B) {
	const count, tasks, perCommit = 1000, 100_000, 200
	for range b.N {
		l := newLab(b, false)
		a := newAuthority()
		address := l.listen(a)
		ids := l.nodes("n", count)
		l.write(func(tx *raftstore.Tx) { l.service(tx, "web", 1) })
		said, in := startAgents(b, a, address, count, tasks)
		before, worked := resident(b), cpuTime()
		began := time.Now()
		fmt.Fprintln(in, "go")
		if line := <-said; line != "joined" {
			b.Fatal(line)
		}
		b.ReportMetric(time.Since(began).Seconds(), "join-s")
		time.Sleep(2 * time.Second) // the rosters of the last joins
		b.ReportMetric(float64((cpuTime()-worked).Microseconds())/count, "cpu-us/join")
		b.ReportMetric(float64(resident(b)-before)/1024/count, "KB/session")
		began, worked = time.Now(), cpuTime()
		l.assign(ids, 0, tasks, perCommit)
		if line := <-said; line != "delivered" {
			b.Fatal(line)
		}
		b.ReportMetric(tasks/time.Since(began).Seconds(), "assignments/s")
		b.ReportMetric(float64((cpuTime()-worked).Microseconds())/tasks, "cpu-us/assignment")
		fmt.Fprintln(in, "beat")
		answered := func() int {
			time.Sleep(2 * time.Second)
			fmt.Fprintln(in, "count")
			return must(strconv.Atoi(<-said))
		}
		beats := answered()
		worked = cpuTime()
		beats = answered() - beats
		b.ReportMetric(float64((cpuTime()-worked).Microseconds())/float64(beats), "cpu-us/beat")
		b.ReportMetric(0, "ns/op")
		_ = in.Close()
	}
}

func startAgents(b *testing.B, a *authority, address string, count, total int) (said <-chan string, in io.WriteCloser) {
	dir := b.TempDir()
	cert, key := dir+"/root.pem", dir+"/key.der"
	if err := os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}), 0o600); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(key, must(x509.MarshalECPrivateKey(a.key)), 0o600); err != nil {
		b.Fatal(err)
	}
	agents := exec.Command(os.Args[0], "-test.run", "^TestAgentsProcess$", "-test.v")
	agents.Env = append(os.Environ(), fmt.Sprintf("%s=%s,%d,%d,%s,%s", agentsEnv, address, count, total, cert, key))
	agents.Stderr = os.Stderr
	in = must(agents.StdinPipe())
	out := bufio.NewScanner(must(agents.StdoutPipe()))
	if err := agents.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = in.Close()
		_ = agents.Wait()
	})
	lines := make(chan string, 16)
	go func() {
		defer close(lines)
		for out.Scan() {
			if word := out.Text(); !strings.HasPrefix(word, "=== ") {
				lines <- word
			}
		}
	}()
	if line := <-lines; line != "ready" {
		b.Fatal(line)
	}
	return lines, in
}

// cpuTime is what this process worked: other than the clock, it does not tell of what else the machine does.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// resident is this process' memory in bytes, without what it does not use at the moment.
func resident(b *testing.B) int {
	runtime.GC()
	debug.FreeOSMemory()
	for line := range strings.Lines(string(must(os.ReadFile("/proc/self/status")))) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return must(strconv.Atoi(strings.Fields(rest)[0])) * 1024
		}
	}
	b.Fatal("no VmRSS")
	return 0
}
