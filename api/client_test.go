package api

import (
	"bytes"
	"context"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"swarm/raftstore"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
)

func (c *cluster) client(options ...client.Opt) *client.Client {
	c.t.Helper()
	cli, err := client.New(append([]client.Opt{client.WithHost("unix://" + c.socket)}, options...)...)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = cli.Close() })
	return cli
}

func webSpec(name string) swarm.ServiceSpec {
	replicas := uint64(2)
	return swarm.ServiceSpec{
		Annotations:  swarm.Annotations{Name: name},
		TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "remote:v1"}},
		Mode:         swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &replicas}},
	}
}

// The Go client of the docker CLI drives the API at every version that it speaks.
func TestClientOfEveryVersion(t *testing.T) {
	c := newCluster(t)
	for _, version := range []string{"1.40", "1.41", "1.47", "1.52", ""} {
		var options []client.Opt
		if version != "" {
			options = append(options, client.WithAPIVersion(version))
		}
		cli := c.client(options...)
		name := "web-" + strings.ReplaceAll(version, ".", "-") + "x"
		if err := lifeOfService(t.Context(), cli, name); err != nil {
			t.Errorf("version %q: %v", version, err)
		}
	}
	cli := c.client()
	if _, err := cli.Ping(t.Context(), client.PingOptions{NegotiateAPIVersion: true}); err != nil || cli.ClientVersion() != apiNewest {
		t.Errorf("negotiated %s, %v", cli.ClientVersion(), err)
	}
}

// lifeOfService does what the CLI does with one service.
func lifeOfService(ctx context.Context, cli *client.Client, name string) error {
	created, err := cli.ServiceCreate(ctx, client.ServiceCreateOptions{Spec: webSpec(name), QueryRegistry: true})
	if err != nil {
		return err
	}
	found, err := cli.ServiceInspect(ctx, name, client.ServiceInspectOptions{InsertDefaults: true})
	if err != nil || found.Service.ID != created.ID {
		return fmt.Errorf("inspect: %s, %w", found.Service.ID, err)
	}
	if image := found.Service.Spec.TaskTemplate.ContainerSpec.Image; !strings.HasPrefix(image, "remote:v1@sha256:") {
		return fmt.Errorf("image is not pinned: %s", image)
	}
	spec := found.Service.Spec
	spec.Labels = map[string]string{"seen": "yes"}
	if _, err := cli.ServiceUpdate(ctx, created.ID, client.ServiceUpdateOptions{Version: found.Service.Version, Spec: spec}); err != nil {
		return fmt.Errorf("update: %w", err)
	}
	if _, err := cli.ServiceUpdate(ctx, created.ID, client.ServiceUpdateOptions{Version: found.Service.Version, Spec: spec}); err == nil || !strings.Contains(err.Error(), "update out of sequence") {
		return fmt.Errorf("old version: %w", err)
	}
	list, err := cli.ServiceList(ctx, client.ServiceListOptions{Status: true, Filters: client.Filters{}.Add("label", "seen=yes").Add("name", name)})
	if err != nil || len(list.Items) != 1 || list.Items[0].ServiceStatus.DesiredTasks != 2 {
		return fmt.Errorf("list: %v, %w", list.Items, err)
	}
	if _, err := cli.TaskList(ctx, client.TaskListOptions{Filters: client.Filters{}.Add("service", created.ID).Add("_up-to-date", "true")}); err != nil {
		return fmt.Errorf("tasks: %w", err)
	}
	if _, err := cli.NodeList(ctx, client.NodeListOptions{Filters: client.Filters{}.Add("role", "manager")}); err != nil {
		return fmt.Errorf("nodes: %w", err)
	}
	if info, err := cli.Info(ctx, client.InfoOptions{}); err != nil || !info.Info.Swarm.ControlAvailable || info.Info.Swarm.Nodes != 3 {
		return fmt.Errorf("info: %+v, %w", info.Info.Swarm, err)
	}
	if n, err := cli.NetworkInspect(ctx, "host", client.NetworkInspectOptions{Scope: "swarm"}); err != nil || n.Network.Scope != "swarm" {
		return fmt.Errorf("network: %w", err)
	}
	if _, err := cli.ServiceRemove(ctx, created.ID, client.ServiceRemoveOptions{}); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	if _, err := cli.ServiceInspect(ctx, created.ID, client.ServiceInspectOptions{}); !errdefs.IsNotFound(err) {
		return fmt.Errorf("removed service: %w", err)
	}
	return nil
}

func TestClientsBeforeTheirTimeGetTheirImagesPinned(t *testing.T) {
	c := newCluster(t)
	answer := ask(t, c.socket, "POST", "/v1.29/services/create", `{"Name":"old","TaskTemplate":{"ContainerSpec":{"Image":"remote:v1"}}}`)
	if !strings.HasPrefix(answer, "201") {
		t.Fatal(answer)
	}
	if got := ask(t, c.socket, "GET", "/v1.24/services/old", ""); !strings.Contains(got, `"Image": "remote:v1@sha256:`) {
		t.Error(got)
	}
	if got := ask(t, c.socket, "POST", "/v1.29/services/create", `{"Name":"lost","TaskTemplate":{"ContainerSpec":{"Image":"nowhere:v1"}}}`); !strings.Contains(got, "could not be accessed on a registry") {
		t.Error(got)
	}
}

func TestAServiceWithoutNameGetsOne(t *testing.T) {
	c := newCluster(t)
	for range 3 {
		if answer := ask(t, c.socket, "POST", "/services/create", `{"TaskTemplate":{"ContainerSpec":{"Image":"hello"}}}`); !strings.HasPrefix(answer, "201") {
			t.Fatal(answer)
		}
	}
	if list, err := c.client().ServiceList(t.Context(), client.ServiceListOptions{}); err != nil || len(list.Items) != 3 {
		t.Errorf("%v %v", list.Items, err)
	}
}

func TestDistributionAsksTheClusterFirst(t *testing.T) {
	c := newCluster(t)
	for _, letter := range []string{"a", "b"} {
		name, digest := "docker.io/library/hello:latest", "sha256:"+strings.Repeat(letter, 64)
		c.update(func(tx *raftstore.Tx) {
			tx.PutImage(raftstore.Image{Meta: raftstore.Meta{ID: raftstore.ImageID(name, digest)},
				Name: name, Digest: digest, MediaType: "application/vnd.oci.image.index.v1+json", Holders: []string{nodeTwo},
				Platforms: []swarm.Platform{{OS: "linux", Architecture: "amd64"}}})
		})
	}
	found, err := c.client().DistributionInspect(t.Context(), "hello", client.DistributionInspectOptions{})
	if err != nil || !strings.HasPrefix(string(found.Descriptor.Digest), "sha256:bbb") || len(found.Platforms) != 1 {
		t.Errorf("%+v %v", found, err)
	}
	if answer := ask(t, c.socket, "POST", "/images/create?fromImage=hello", ""); !strings.Contains(answer, "from [10.0.0.2:2377]") {
		t.Error(answer)
	}
}

func TestContainersOfOtherNodesAreInspected(t *testing.T) {
	c := newCluster(t)
	id := containerOf("x")
	task := c.serviceOn("web", nodeOne, nodeTwo, nodeThree)
	c.two.setLog(containerOf(task[1]), newFakeLog())
	c.one.setLog(id, newFakeLog())
	for ref, want := range map[string]string{
		id: "/on-" + nodeOne, containerOf(task[1]): "/on-" + nodeTwo, containerOf(task[1])[:12]: "/on-" + nodeTwo, "web.2." + task[1]: "/on-" + nodeTwo,
	} {
		found, err := c.client().ContainerInspect(t.Context(), ref, client.ContainerInspectOptions{})
		if err != nil || found.Container.Name != want {
			t.Errorf("%s: %s %v", ref, found.Container.Name, err)
		}
	}
	for ref, want := range map[string]string{
		containerOf(task[2]): "node three (10.0.0.3:2377) cannot be reached",
		containerOf("y"):     "No such container",
		task[1]:              "No such container",
	} {
		if _, err := c.client().ContainerInspect(t.Context(), ref, client.ContainerInspectOptions{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", ref, err)
		}
	}
	// A node does not ask others on behalf of another node.
	local := httptest.NewRecorder()
	c.api.NodeLocal().ServeHTTP(local, httptest.NewRequest("GET", "/containers/"+containerOf(task[1])+"/json", nil))
	if local.Code != 404 {
		t.Errorf("node-local inspect answered %d", local.Code)
	}
}

// serviceOn makes a service with a running task on each of the nodes.
func (c *cluster) serviceOn(name string, nodes ...string) (tasks []string) {
	c.t.Helper()
	if answer := ask(c.t, c.socket, "POST", "/services/create", `{"Name":"`+name+`","TaskTemplate":{"ContainerSpec":{"Image":"hello:v1"}}}`); !strings.HasPrefix(answer, "201") {
		c.t.Fatal(answer)
	}
	return c.addTasks(name, 1, nodes...)
}

func TestEventsTellWhatChanges(t *testing.T) {
	c := newCluster(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	stream := c.client().Events(ctx, client.EventsListOptions{Filters: client.Filters{}.Add("type", "service", "node")})
	c.serviceOn("web", nodeTwo)
	c.update(func(tx *raftstore.Tx) {
		row, _ := tx.Nodes.Get(nodeTwo)
		next := *row
		next.Status.State = swarm.NodeStateDown
		tx.PutObservedNode(next)
	})
	if answer := ask(t, c.socket, "DELETE", "/services/web", ""); !strings.HasPrefix(answer, "200") {
		t.Fatal(answer)
	}
	var got []string
	for len(got) < 3 {
		select {
		case m := <-stream.Messages:
			got = append(got, fmt.Sprint(m.Type, " ", m.Action, " ", m.Actor.Attributes["name"], " ", m.Actor.Attributes["state.new"], m.Scope))
		case err := <-stream.Err:
			t.Fatal(got, err)
		}
	}
	if want := "[service create web swarm node update two downswarm service remove web swarm]"; fmt.Sprint(got) != want {
		t.Errorf("got %s, want %s", got, want)
	}
	// What is past comes to those who ask since then, up to a time.
	past := c.client().Events(ctx, client.EventsListOptions{Since: "10m", Until: fmt.Sprint(time.Now().Unix() + 1), Filters: client.Filters{}.Add("event", "remove")})
	if m := <-past.Messages; m.Action != events.ActionRemove {
		t.Error(m)
	}
}

// The real docker CLI, when it was built.
func TestDockerCommandLine(t *testing.T) {
	docker, err := filepath.Abs("../bin/docker")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(docker); err != nil {
		t.Skip("bin/docker was not built: run make build")
	}
	c := newCluster(t)
	run := func(args ...string) string {
		t.Helper()
		command := exec.CommandContext(t.Context(), docker, append([]string{"-H", "unix://" + c.socket}, args...)...)
		command.Env = append(os.Environ(), "DOCKER_CONFIG="+t.TempDir())
		out, err := command.CombinedOutput()
		if err != nil {
			t.Errorf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	// The command waits until two tasks run.
	var tasks []string
	created := make(chan struct{})
	go func() {
		defer close(created)
		waitUntil(t, "the service", func() bool { _, err := findService(c.store.Local(), "web"); return err == nil })
		tasks = c.addTasks("web", 1, nodeOne, nodeTwo)
	}()
	if out := run("service", "create", "--update-monitor", "100ms", "--name", "web", "--network", "host", "--replicas", "2", "remote:v1"); !strings.Contains(out, "converged") {
		t.Error(out)
	}
	<-created
	c.one.setLog(containerOf(tasks[0]), newFakeLog("hello from one"))
	c.two.setLog(containerOf(tasks[1]), newFakeLog("hello from two"))
	for _, c := range []struct {
		command string
		want    []string
	}{
		{"version", []string{"1.0-test", "API version:      1.56"}},
		{"info", []string{"Swarm: active", "Is Manager: true", "Nodes: 3", "Managers: 1"}},
		{"node ls", []string{nodeOne + " *", "Leader", "three", "Down"}},
		{"service ls", []string{"web", "replicated", "2/2"}},
		{"service ps --no-trunc web", []string{"web.1", "one", "web.2", "two", "Running"}},
		{"service logs web", []string{"web.1.task10000000@one", "hello from one", "web.2.task20000000@two", "hello from two"}},
		{"service inspect --pretty web", []string{"Service Mode:\tReplicated", "remote:v1@sha256:"}},
		{"service update -d --label-add a=b --replicas 3 web", []string{"web"}},
		{"service rollback -d web", []string{"web"}},
		{"service scale -d web=5", []string{"scaled to 5"}},
		{"node update --availability drain two", []string{"two"}},
		{"node inspect --pretty self", []string{"Hostname:              \tone"}},
		{"node ps two", []string{"web.2"}},
		{"network ls", []string{"host", "none"}},
		{"inspect web", []string{`"Name": "web"`}},
		{"images", []string{"IMAGE"}},
		{"ps", []string{"CONTAINER ID"}},
		{"logs web.2." + tasks[1], []string{"hello from two"}},
		{"swarm join-token -q worker", []string{"SWMTKN-1-worker"}},
		{"swarm join-token --rotate -q worker", []string{"SWMTKN-1-new-"}},
		{"swarm update --task-history-limit 2", []string{"Swarm updated."}},
		{"volume ls", []string{"DRIVER"}},
		{"secret ls", []string{"NAME"}},
		{"config ls", []string{"NAME"}},
		{"stack ls", []string{"NAME"}},
		{"service rm web", []string{"web"}},
	} {
		out := run(strings.Fields(c.command)...)
		for _, want := range c.want {
			if !strings.Contains(out, want) {
				t.Errorf("docker %s: %q is missing in\n%s", c.command, want, out)
			}
		}
	}
}

// demux splits a log stream as clients do.
func demux(t testing.TB, content []byte) (stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	if _, e := stdcopy.StdCopy(&out, &err, bytes.NewReader(content)); e != nil {
		t.Fatal(e)
	}
	return out.String(), err.String()
}
