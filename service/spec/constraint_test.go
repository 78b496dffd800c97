package spec

import (
	"strings"
	"testing"

	"github.com/moby/moby/api/types/swarm"
)

func TestConstraintsMatchANodesFacts(t *testing.T) {
	f := &Facts{
		ID: "n1", Hostname: "Alpha", IP: "10.1.2.3", Role: swarm.NodeRoleManager,
		Platform: swarm.Platform{OS: "linux", Architecture: "x86_64"},
		Labels:   map[string]string{"zone": "East", "Disk": "ssd"}, EngineLabels: map[string]string{"gpu": "no"},
	}
	for expr, want := range map[string]bool{
		"node.id==n1":                 true,
		"node.hostname == alpha":      true,
		"node.hostname!=beta":         true,
		"NODE.Role==Manager":          true,
		"node.role != manager":        false,
		"node.labels.zone==east":      true,
		"node.labels.Zone==east":      false,
		"node.labels.disk==ssd":       false,
		"node.labels.none!=x":         true,
		"engine.labels.gpu==no":       true,
		"node.ip==10.1.2.3":           true,
		"node.ip==10.1.0.0/16":        true,
		"node.ip!=10.1.0.0/16":        false,
		"node.ip!=10.2.0.0/16":        true,
		"node.ip==here":               false,
		"node.platform.os==Linux":     true,
		"node.platform.arch==amd64":   true,
		"node.platform.arch==x86_64":  true,
		"node.platform.arch!=amd64":   false,
		"node.colour==red":            false,
		"node.colour!=red":            false,
		"node.labels.zone!=west":      true,
		"node.labels.zone != east":    false,
		"node.labels.disk!=a==b":      false, // '=' is no character of a value
		"node.hostname==al.*":         false,
		"node.platform.arch != arm64": true,
	} {
		cs, err := ParseConstraints([]string{expr})
		if err != nil {
			if strings.Contains(expr, "a==b") {
				continue
			}
			t.Errorf("%s: %v", expr, err)
			continue
		}
		if got := MatchAll(cs, f); got != want {
			t.Errorf("%s: got %v", expr, got)
		}
	}
}

func TestConstraintsThatCannotBeRead(t *testing.T) {
	for expr, want := range map[string]string{
		"node.id":     "constraint expected one operator from ==, !=",
		"node.id>=3":  "constraint expected one operator from ==, !=",
		"n!d==3":      "key 'n!d' is invalid",
		"node.id==":   "value '' is invalid",
		"==x":         "key '' is invalid",
		"node.id==é":  "value 'é' is invalid",
		"1.node==abc": "key '1.node' is invalid",
	} {
		if _, err := ParseConstraints([]string{expr}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", expr, err, want)
		}
	}
}

func FuzzParseConstraints(f *testing.F) {
	for _, s := range []string{"node.id==x", "node.labels.a!=b", "==", "!=", "node.ip==10.0.0.0/8"} {
		f.Add(s)
	}
	facts := &Facts{IP: "10.0.0.1"}
	f.Fuzz(func(t *testing.T, s string) {
		cs, err := ParseConstraints([]string{s})
		if err == nil {
			MatchAll(cs, facts)
		}
	})
}

func TestPlatformsMatchByGoNames(t *testing.T) {
	f := &Facts{Platform: swarm.Platform{OS: "linux", Architecture: "aarch64"}}
	for _, c := range []struct {
		platforms []swarm.Platform
		want      bool
	}{
		{nil, true},
		{[]swarm.Platform{{OS: "linux", Architecture: "arm64"}}, true},
		{[]swarm.Platform{{OS: "linux"}}, true},
		{[]swarm.Platform{{OS: "linux", Architecture: "amd64"}}, false},
		{[]swarm.Platform{{OS: "windows", Architecture: "arm64"}, {OS: "linux", Architecture: "arm64"}}, true},
	} {
		if got := MatchPlatform(c.platforms, f); got != c.want {
			t.Errorf("%v: got %v", c.platforms, got)
		}
	}
}
