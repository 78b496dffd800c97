package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test program itself stands in for an agent: it answers on the API socket and on the node port, and starts a child that would
// outlive it, as a shim does.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "agent" {
		standIn(os.Args[2:])
		return
	}
	os.Exit(m.Run())
}

func standIn(args []string) {
	flags := map[string]string{}
	for i := 0; i+1 < len(args); i += 2 {
		flags[args[i]] = args[i+1]
	}
	os.MkdirAll(flags["--run-dir"], 0o755)
	os.MkdirAll(flags["--data-dir"], 0o755)
	socket := filepath.Join(flags["--run-dir"], "swarm.sock")
	os.Remove(socket)
	api, err := net.Listen("unix", socket)
	if err != nil {
		panic(err)
	}
	port, err := net.Listen("tcp", flags["--listen-addr"])
	if err != nil {
		panic(err)
	}
	child := exec.Command("sleep", "1000")
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := child.Start(); err != nil {
		panic(err)
	}
	answer := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, flags["--hostname"]) })
	go http.Serve(port, answer)
	http.Serve(api, answer)
}

func needRoot(t *testing.T) {
	if os.Getenv("SWARM_ROOT_TESTS") != "1" {
		t.Skip("makes network namespaces: run as root with SWARM_ROOT_TESTS=1")
	}
}

func open(t *testing.T, nodes ...string) *Lab {
	needRoot(t)
	l, err := Open(Config{Name: "labt", Program: os.Args[0]})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if left := Leftovers("labt"); left != nil {
			t.Errorf("left behind: %q", left)
		}
	})
	for _, name := range nodes {
		n, err := l.Add(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

const (
	enough = 10 * time.Second       // for an answer that must come, after a cable was plugged in
	little = 400 * time.Millisecond // for an answer that must not come
)

// reach asks one node from another, or from the switch when from is empty.
func reach(l *Lab, from, to string, limit time.Duration) string {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	dial := func(ctx context.Context, protocol, target string) (net.Conn, error) {
		if from == "" {
			return l.Dial(ctx, protocol, target)
		}
		var conn net.Conn
		err := within(l.Node(from).Namespace(), func() (err error) {
			conn, err = new(net.Dialer).DialContext(ctx, protocol, target)
			return err
		})
		return conn, err
	}
	client := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	request, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+l.Node(to).Address+":2377/", nil)
	response, err := client.Do(request)
	if err != nil {
		return "nothing"
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	return string(body)
}

func want(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestPartitionCutsBetweenGroupsAndHealJoinsThem(t *testing.T) {
	l := open(t, "n1", "n2", "n3")
	want(t, reach(l, "n1", "n2", enough), "n2")
	if err := l.Partition([]string{"n1"}, []string{"n2", "n3"}); err != nil {
		t.Fatal(err)
	}
	want(t, reach(l, "n1", "n2", little), "nothing")
	want(t, reach(l, "n3", "n1", little), "nothing")
	want(t, reach(l, "n2", "n3", enough), "n3")
	want(t, reach(l, "", "n1", enough), "n1")
	if err := l.Heal(); err != nil {
		t.Fatal(err)
	}
	want(t, reach(l, "n1", "n2", enough), "n2")
}

func TestUnpluggedNodeIsAloneUntilPluggedIn(t *testing.T) {
	l := open(t, "n1", "n2")
	if err := l.Node("n2").Unplug(); err != nil {
		t.Fatal(err)
	}
	want(t, reach(l, "n1", "n2", little), "nothing")
	want(t, reach(l, "", "n2", little), "nothing")
	if err := l.Node("n2").Plug(); err != nil {
		t.Fatal(err)
	}
	want(t, reach(l, "", "n2", enough), "n2")
}

func TestOneWayBlockStopsOneDirection(t *testing.T) {
	l := open(t, "n1", "n2", "n3")
	if err := l.Block("n1", "n2"); err != nil {
		t.Fatal(err)
	}
	want(t, reach(l, "n1", "n2", little), "nothing")
	want(t, reach(l, "n1", "n3", enough), "n3")
	want(t, reach(l, "n3", "n2", enough), "n2")
	got, sent := make(chan struct{}), make(chan error)
	datagram := func(from, to string) error {
		return within(l.Node(from).Namespace(), func() error {
			conn, err := net.Dial("udp", l.Node(to).Address+":9")
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = conn.Write([]byte("x"))
			return err
		})
	}
	var listener net.PacketConn
	if err := within(l.Node("n1").Namespace(), func() (err error) {
		listener, err = net.ListenPacket("udp", l.Node("n1").Address+":9")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		listener.ReadFrom(make([]byte, 10))
		close(got)
	}()
	go func() { sent <- datagram("n2", "n1") }()
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	select {
	case <-got:
	case <-time.After(enough):
		t.Error("a datagram in the open direction did not arrive")
	}
}

func TestBadLinkIsLateOrLosesAndHealMakesItGood(t *testing.T) {
	l := open(t, "n1", "n2", "n3")
	n := l.Node("n2")
	timed := func(to string) time.Duration {
		began := time.Now()
		want(t, reach(l, "n1", to, enough), to)
		return time.Since(began)
	}
	const late = 150 * time.Millisecond
	if err := n.Delay(late); err != nil {
		t.Fatal(err)
	}
	// Greeting and request take two round trips; the address of a neighbour may take a third.
	if took := timed("n2"); took < 4*late {
		t.Errorf("an answer over a late link took %s, want at least %s", took, 4*late)
	}
	if took := timed("n3"); took > late {
		t.Errorf("an answer over a good link took %s", took)
	}
	if err := n.Lose(1); err != nil {
		t.Fatal(err)
	}
	want(t, reach(l, "n1", "n2", little), "nothing")
	if err := n.Lose(0.2); err != nil {
		t.Fatal(err)
	}
	timed("n2")
	if err := l.Heal(); err != nil {
		t.Fatal(err)
	}
	if took := timed("n2"); took > late {
		t.Errorf("an answer over a link made good took %s", took)
	}
}

func TestBadLinkCarriesBulk(t *testing.T) {
	l := open(t, "n1", "n2")
	if err := l.Node("n2").Delay(time.Millisecond); err != nil {
		t.Fatal(err)
	}
	const size = 32 << 20
	var listener net.Listener
	if err := within(l.Node("n2").Namespace(), func() (err error) {
		listener, err = net.Listen("tcp", l.Node("n2").Address+":9")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			conn.Write(make([]byte, size))
			conn.Close()
		}
	}()
	began := time.Now()
	var got int64
	if err := within(l.Node("n1").Namespace(), func() error {
		conn, err := net.Dial("tcp", l.Node("n2").Address+":9")
		if err != nil {
			return err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(enough))
		got, err = io.Copy(io.Discard, conn)
		return err
	}); err != nil || got != size {
		t.Fatalf("%d of %d bytes came over a late link: %v", got, size, err)
	}
	t.Logf("%d bytes in %s", got, time.Since(began))
}

func TestKillSparesWhatTheAgentStartedAndPowerOffDoesNot(t *testing.T) {
	l := open(t, "n1")
	n := l.Node("n1")
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if n.Running() || len(processes("labt", "n1")) != 1 {
		t.Errorf("after kill: running=%v processes=%v, want only the child", n.Running(), processes("labt", "n1"))
	}
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.PowerOff(); err != nil {
		t.Fatal(err)
	}
	if left := processes("labt", "n1"); left != nil {
		t.Errorf("after power-off: processes %v", left)
	}
	if _, err := os.Stat(n.RunDir()); err == nil {
		t.Error("the run directory survived a loss of power")
	}
	if _, err := os.Stat(n.DataDir()); err != nil {
		t.Error("the data directory did not survive a loss of power")
	}
	if err := n.Plug(); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, reach(l, "", "n1", enough), "n1")
}

func TestAbandonedLabIsFoundAndRemoved(t *testing.T) {
	l := open(t, "n1")
	if err := Remove("labt"); err == nil {
		t.Fatal("a lab in use was removed")
	}
	if err := l.Detach(); err != nil {
		t.Fatal(err)
	}
	left := strings.Join(Leftovers("labt"), "\n")
	for _, part := range []string{"process", "/run/netns/lab-labt-n1", "/tmp/swarmlab/labt", "cgroup"} {
		if !strings.Contains(left, part) {
			t.Errorf("leftovers lack %s:\n%s", part, left)
		}
	}
	if !slices.Contains(names(), "labt") {
		t.Errorf("names %v", names())
	}
	if err := Sweep("lab"); err != nil {
		t.Fatal(err)
	}
	if left := Leftovers("labt"); left != nil {
		t.Errorf("left behind: %q", left)
	}
	if l, err := Open(Config{Name: "labt", Program: os.Args[0]}); err != nil {
		t.Fatal(err)
	} else if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestTwoRunsGetDifferentPrefixes(t *testing.T) {
	first, lock, err := Reserve("labr")
	if err != nil {
		t.Fatal(err)
	}
	second, other, err := Reserve("labr")
	if err != nil || first == second {
		t.Errorf("got %q twice, %v", second, err)
	}
	lock.Close()
	again, lock, err := Reserve("labr")
	if err != nil || again != first {
		t.Errorf("got %q after %q was given back, %v", again, first, err)
	}
	lock.Close()
	other.Close()
}

func TestAgentThatEndsAtOnceIsReportedWithItsWords(t *testing.T) {
	needRoot(t)
	l, err := Open(Config{Name: "labt", Program: "/bin/false"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	n, err := l.Add("n1")
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "it ended: exit status 1") {
		t.Errorf("got %v", err)
	}
}
