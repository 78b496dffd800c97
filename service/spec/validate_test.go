package spec

import (
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"
)

func web(change func(*swarm.ServiceSpec)) swarm.ServiceSpec {
	s := swarm.ServiceSpec{Annotations: swarm.Annotations{Name: "web"}}
	s.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "nginx:1"}
	if change != nil {
		change(&s)
	}
	return s
}

func ptr[T any](v T) *T { return &v }

func withMounts(m ...mount.Mount) func(*swarm.ServiceSpec) {
	return func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Mounts = m }
}

func TestValidateRefusesWithTheTextThatClientsKnow(t *testing.T) {
	for _, c := range []struct {
		change func(*swarm.ServiceSpec)
		want   string
	}{
		{func(s *swarm.ServiceSpec) { s.Name = "" }, "name must be provided"},
		{func(s *swarm.ServiceSpec) { s.Name = "a b" }, "name must be valid as a DNS name component"},
		{func(s *swarm.ServiceSpec) { s.Name = "web-" }, "name must be valid as a DNS name component"},
		{func(s *swarm.ServiceSpec) { s.Name = strings.Repeat("a", 64) }, "name must be 63 characters or fewer"},
		{func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec = nil }, "ContainerSpec: missing in service spec"},
		{func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "" }, "ContainerSpec: image reference must be provided"},
		{func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "A:B:C" }, `ContainerSpec: "A:B:C" is not a valid repository/tag`},
		{func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Resources = &swarm.ResourceRequirements{Limits: &swarm.Limit{NanoCPUs: 1}}
		}, "invalid cpu value 1e-09: Must be at least 0.001"},
		{func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{MemoryBytes: 1 << 20}}
		}, "invalid memory value 1048576: Must be at least 4MiB"},
		{func(s *swarm.ServiceSpec) {
			s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Delay: ptr(-time.Second)}
		}, "TaskSpec: restart-delay cannot be negative"},
		{func(s *swarm.ServiceSpec) {
			s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Condition: "always"}
		}, `invalid RestartCondition: "always"`},
		{func(s *swarm.ServiceSpec) { s.UpdateConfig = &swarm.UpdateConfig{Delay: -1} }, "TaskSpec: update-delay cannot be negative"},
		{func(s *swarm.ServiceSpec) { s.RollbackConfig = &swarm.UpdateConfig{Monitor: -1} }, "TaskSpec: rollback-monitor cannot be negative"},
		{func(s *swarm.ServiceSpec) { s.UpdateConfig = &swarm.UpdateConfig{MaxFailureRatio: 2} }, "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1"},
		{func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.role=manager"}}
		}, "constraint expected one operator from ==, !="},
		{func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Placement = &swarm.Placement{Preferences: []swarm.PlacementPreference{{Spread: &swarm.SpreadOver{SpreadDescriptor: "zone"}}}}
		}, `invalid spread descriptor "zone"`},
		{func(s *swarm.ServiceSpec) {
			s.RollbackConfig = &swarm.UpdateConfig{FailureAction: swarm.UpdateFailureActionRollback}
		}, "a rollback is never rolled back"},
		{withMounts(mount.Mount{Type: mount.TypeBind, Target: "/x"}), "invalid bind mount source, must be an absolute path: "},
		{withMounts(mount.Mount{Type: mount.TypeBind, Source: "/x", Target: "x"}), "invalid mount target, must be an absolute path: x"},
		{withMounts(mount.Mount{Type: mount.TypeTmpfs, Source: "x", Target: "/x"}), "invalid tmpfs source, source must be empty"},
		{withMounts(mount.Mount{Type: mount.TypeVolume, Source: "/x", Target: "/x"}), "invalid volume mount source, must not be an absolute path: /x"},
		{withMounts(mount.Mount{Type: mount.TypeTmpfs, Target: "/x"}, mount.Mount{Type: mount.TypeTmpfs, Target: "/x/"}), "ContainerSpec: duplicate mount point: /x/"},
		{withMounts(mount.Mount{Type: mount.TypeTmpfs, Target: "/x", BindOptions: &mount.BindOptions{}}), "BindOptions do not fit a mount of type tmpfs"},
		{func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.StopSignal = "SIGNOPE" }, `invalid stop signal "SIGNOPE"`},
		{func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Env = []string{"=x"} }, "invalid environment variable"},
		{func(s *swarm.ServiceSpec) {
			s.Mode.Replicated = &swarm.ReplicatedService{Replicas: ptr(uint64(1 << 40))}
		}, "replicas must be at most 1000000"},
		{func(s *swarm.ServiceSpec) {
			s.Mode.Replicated, s.Mode.Global = &swarm.ReplicatedService{}, &swarm.GlobalService{}
		}, "more than one mode"},
	} {
		err := Validate(web(c.change))
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want invalid argument %q", err, c.want)
		}
	}
}

func TestValidateNamesWhatIsNotThereYetAndTheRemedy(t *testing.T) {
	for _, c := range []struct {
		change func(*swarm.ServiceSpec)
		want   string
	}{
		{func(s *swarm.ServiceSpec) { s.Mode.ReplicatedJob = &swarm.ReplicatedJob{} }, "jobs are not there yet"},
		{func(s *swarm.ServiceSpec) {
			s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80}}}
		}, "published ports are not there yet"},
		{func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "front"}}
		}, "overlay networks are not there yet"},
		{func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Secrets = []*swarm.SecretReference{{}}
		}, "secrets are not there yet"},
		{func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Healthcheck = &container.HealthConfig{Test: []string{"CMD", "true"}}
		}, "health checks are not there yet"},
		{func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Env = []string{"A={{.Task.Slot}}"}
		}, "templates are not there yet"},
		{func(s *swarm.ServiceSpec) { s.TaskTemplate.LogDriver = &swarm.Driver{Name: "syslog"} }, `log driver "syslog" is not there`},
	} {
		err := Validate(web(c.change))
		if !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want not implemented %q", err, c.want)
		}
	}
}

func TestValidateAcceptsWhatTheCommandLineSends(t *testing.T) {
	for name, change := range map[string]func(*swarm.ServiceSpec){
		"bare":   nil,
		"global": func(s *swarm.ServiceSpec) { s.Mode.Global = &swarm.GlobalService{} },
		"host network": func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: HostNetworkID}}
		},
		"vip":    func(s *swarm.ServiceSpec) { s.EndpointSpec = &swarm.EndpointSpec{Mode: swarm.ResolutionModeVIP} },
		"pinned": func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image += "@sha256:" + strings.Repeat("a", 64) },
		"mounts": withMounts(mount.Mount{Type: mount.TypeBind, Source: "/a", Target: "/a"}, mount.Mount{Type: mount.TypeVolume, Source: "data.1", Target: "/b"}),
		"signal": func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.StopSignal = "int" },
		"no healthcheck": func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Healthcheck = &container.HealthConfig{Test: []string{"NONE"}}
		},
		"defaults": func(s *swarm.ServiceSpec) { *s = WithDefaults(*s) },
	} {
		if err := Validate(web(change)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNetworkModeIsHostOnlyWhenAttached(t *testing.T) {
	for target, want := range map[string]string{"": "none", "none": "none", "host": "host", HostNetworkID: "host", NoneNetworkID: "none"} {
		var s swarm.TaskSpec
		if target != "" {
			s.Networks = []swarm.NetworkAttachmentConfig{{Target: target}}
		}
		if got := NetworkMode(s); got != want {
			t.Errorf("%q: got %s, want %s", target, got, want)
		}
	}
	if len(HostNetworkID) != 25 || len(NoneNetworkID) != 25 {
		t.Error("ids have 25 characters everywhere")
	}
}

func TestDefaultsAreFilledInACopy(t *testing.T) {
	s := web(nil)
	d := WithDefaults(s)
	switch {
	case *d.Mode.Replicated.Replicas != 1,
		*d.TaskTemplate.ContainerSpec.StopGracePeriod != 10*time.Second,
		d.TaskTemplate.RestartPolicy.Condition != "any", *d.TaskTemplate.RestartPolicy.Delay != 5*time.Second,
		d.UpdateConfig.Parallelism != 1, d.UpdateConfig.Monitor != 5*time.Second, d.UpdateConfig.Order != "stop-first",
		d.RollbackConfig.FailureAction != "pause", d.EndpointSpec.Mode != "vip":
		t.Errorf("got %+v", d)
	case s.TaskTemplate.ContainerSpec.StopGracePeriod != nil || s.Mode.Replicated != nil:
		t.Error("the spec itself changed")
	}
}

func TestClusterAndNodeSettings(t *testing.T) {
	cluster := func(change func(*swarm.Spec)) error { var s swarm.Spec; change(&s); return ValidateCluster(s) }
	for _, c := range []struct {
		err  error
		want string
	}{
		{cluster(func(s *swarm.Spec) { s.Name = "default" }), ""},
		{cluster(func(s *swarm.Spec) { s.Name = "x" }), `must be "default"`},
		{cluster(func(s *swarm.Spec) { s.Dispatcher.HeartbeatPeriod = time.Millisecond }), "out of range"},
		{cluster(func(s *swarm.Spec) { s.CAConfig.NodeCertExpiry = time.Minute }), "minimum certificate expiry time is: 1h0m0s"},
		{cluster(func(s *swarm.Spec) { s.EncryptionConfig.AutoLockManagers = true }), "autolock is not there yet"},
		{ValidateNode(swarm.NodeSpec{Role: "worker", Availability: "drain"}), ""},
		{ValidateNode(swarm.NodeSpec{Role: "boss", Availability: "drain"}), `invalid Role: "boss"`},
		{ValidateNode(swarm.NodeSpec{Role: "worker"}), `invalid Availability: ""`},
	} {
		if c.want == "" && c.err != nil || c.want != "" && (c.err == nil || !strings.Contains(c.err.Error(), c.want)) {
			t.Errorf("got %v, want %q", c.err, c.want)
		}
	}
}
