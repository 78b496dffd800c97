package containerd

import (
	"fmt"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
)

// TestCreateAndStartAreLean compares with what containerd's own client does for the same image.
func TestCreateAndStartAreLean(t *testing.T) {
	b := newBench(t)
	ctx := t.Context()
	var ours, bare time.Duration
	const rounds = 6
	for i := range rounds {
		c := b.container(args("sleep"))
		began := time.Now()
		b.start(c)
		took := time.Since(began)
		image, err := b.runtime.client.GetImage(ctx, "docker.io/library/tester:latest")
		check(t, err)
		began = time.Now()
		id := fmt.Sprint("bare", i)
		made, err := b.runtime.client.NewContainer(ctx, id, client.WithSnapshotter(snapshotter), client.WithNewSnapshot(id, image),
			client.WithNewSpec(oci.WithImageConfig(image), oci.WithProcessArgs("/bin/tester", "sleep"), oci.WithCgroup(b.cfg.CgroupParent+"/"+id)))
		check(t, err)
		task, err := made.NewTask(ctx, cio.NullIO)
		check(t, err)
		exit, err := task.Wait(ctx)
		check(t, err)
		check(t, task.Start(ctx))
		if i > 0 { // the first container of an image reads its users
			ours, bare = ours+took, bare+time.Since(began)
		}
		check(t, task.Kill(ctx, 9))
		<-exit
		_, err = task.Delete(ctx)
		check(t, err)
		check(t, made.Delete(ctx, client.WithSnapshotCleanup))
	}
	ours, bare = ours/(rounds-1), bare/(rounds-1)
	t.Logf("create and start: %s, bare containerd %s", ours, bare)
	if ours > bare*3/2+50*time.Millisecond {
		t.Errorf("create and start take %s, bare containerd %s", ours, bare)
	}
}
