package containerd_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/moby/profiles/seccomp"
)

// TestBareLoop is the physical limit that the benchmark compares the cluster with: plain create and start on running containerds, by
// a client that does nothing else. The benchmark runs it as a program and reads the lines "bare-seconds".
//
// Its containers are confined as the cluster's are, by docker's default seccomp profile, and their output has a reader: both
// cost time that is no choice of the cluster's. It makes no log files, no /etc of the container's own, and records nothing.
//
//	SWARM_BENCH_SOCKETS  containerds, separated by commas
//	SWARM_BENCH_CGROUPS  parent control group for each
//	SWARM_BENCH_ARCHIVE  image to run
//	SWARM_BENCH_TASKS    containers per round, shared out evenly and started all at once
//	SWARM_BENCH_ROUNDS   rounds
func TestBareLoop(t *testing.T) {
	sockets := strings.Split(os.Getenv("SWARM_BENCH_SOCKETS"), ",")
	if sockets[0] == "" {
		t.Skip("needs the containerds of a running benchmark: make bench")
	}
	cgroups := strings.Split(os.Getenv("SWARM_BENCH_CGROUPS"), ",")
	hosts := make([]*bareHost, len(sockets))
	for i := range sockets {
		hosts[i] = openBareHost(t, sockets[i], cgroups[i])
	}
	tasks, rounds := number(t, "SWARM_BENCH_TASKS"), number(t, "SWARM_BENCH_ROUNDS")
	for range rounds {
		fmt.Printf("bare-seconds: %f\n", bareRound(t, hosts, tasks).Seconds())
	}
}

func number(t *testing.T, variable string) int {
	n, err := strconv.Atoi(os.Getenv(variable))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// bareHost is one containerd with the image unpacked.
type bareHost struct {
	client *client.Client
	image  client.Image
	cgroup string
	fifos  string // directory of the containers' outputs
}

func openBareHost(t *testing.T, socket, cgroup string) *bareHost {
	c, err := client.New(socket, client.WithDefaultNamespace("bench"))
	if err != nil {
		t.Fatal(err)
	}
	archive, err := os.Open(os.Getenv("SWARM_BENCH_ARCHIVE"))
	if err != nil {
		t.Fatal(err)
	}
	defer archive.Close()
	loaded, err := c.Import(t.Context(), archive)
	if err != nil {
		t.Fatal(err)
	}
	image := client.NewImage(c, loaded[0])
	if err := image.Unpack(t.Context(), "overlayfs"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.ImageService().Delete(context.Background(), loaded[0].Name)
		c.Close()
	})
	return &bareHost{client: c, image: image, cgroup: cgroup, fifos: filepath.Dir(socket)}
}

// bareRound starts tasks containers on all hosts together, removes them again, and says how long the start took.
func bareRound(t *testing.T, hosts []*bareHost, tasks int) time.Duration {
	var wait sync.WaitGroup
	var mu sync.Mutex
	running := map[client.Task]*bareHost{}
	began := time.Now()
	for i := range tasks {
		wait.Go(func() {
			host := hosts[i%len(hosts)]
			task, err := host.start(t.Context(), fmt.Sprintf("bare-%d", i))
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			running[task] = host
		})
	}
	wait.Wait()
	took := time.Since(began)
	for task, host := range running {
		wait.Go(func() {
			if err := host.remove(t.Context(), task); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	return took
}

func (h *bareHost) start(ctx context.Context, id string) (client.Task, error) {
	container, err := h.client.NewContainer(ctx, id,
		client.WithImage(h.image),
		client.WithSnapshotter("overlayfs"),
		client.WithNewSnapshot(id, h.image),
		client.WithNewSpec(oci.WithImageConfigArgs(h.image, []string{"sleep"}), oci.WithCgroup(h.cgroup+"/"+id), confined))
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", id, err)
	}
	task, err := container.NewTask(ctx, cio.NewCreator(cio.WithStreams(nil, io.Discard, io.Discard), cio.WithFIFODir(h.fifos)))
	if err != nil {
		return nil, fmt.Errorf("make task of %s: %w", id, err)
	}
	return task, task.Start(ctx)
}

// confined gives a container the seccomp profile that the cluster's containers have by default.
func confined(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) (err error) {
	s.Linux.Seccomp, err = seccomp.GetDefaultProfile(s)
	return err
}

func (h *bareHost) remove(ctx context.Context, task client.Task) error {
	ended, err := task.Wait(ctx)
	if err != nil {
		return err
	}
	if err := task.Kill(ctx, syscall.SIGKILL); err != nil {
		return err
	}
	<-ended
	if _, err := task.Delete(ctx); err != nil {
		return err
	}
	id := task.ID()
	if err := h.client.ContainerService().Delete(ctx, id); err != nil {
		return err
	}
	err = h.client.SnapshotService("overlayfs").Remove(ctx, id)
	if errdefs.IsNotFound(err) { // the garbage collector was there first
		return nil
	}
	return err
}
