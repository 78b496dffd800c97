package api

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
)

// A list that is put together from kept texts says what a fresh one would.
func TestListsFollowChangesOfServices(t *testing.T) {
	c := newCluster(t)
	cli := c.client()
	list := func() string {
		t.Helper()
		var said []string
		for _, status := range []bool{false, true} {
			got, err := cli.ServiceList(t.Context(), client.ServiceListOptions{Status: status})
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range got.Items {
				text := fmt.Sprintf("%s seen=%s", s.Spec.Name, s.Spec.Labels["seen"])
				if s.PreviousSpec != nil {
					text += " before=" + s.PreviousSpec.Labels["seen"]
				}
				if s.ServiceStatus != nil {
					text += fmt.Sprintf(" %d/%d", s.ServiceStatus.RunningTasks, s.ServiceStatus.DesiredTasks)
				}
				said = append(said, text)
			}
		}
		return strings.Join(said, ", ")
	}
	expect := func(want string) {
		t.Helper()
		for range 2 {
			if got := list(); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
	}
	expect("")
	c.serviceOn("web", nodeOne)
	expect("web seen=, web seen= 1/1")
	for _, seen := range []string{"once", "twice"} {
		found, err := cli.ServiceInspect(t.Context(), "web", client.ServiceInspectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		spec := found.Service.Spec
		spec.Labels = map[string]string{"seen": seen}
		if _, err := cli.ServiceUpdate(t.Context(), "web", client.ServiceUpdateOptions{Version: found.Service.Version, Spec: spec}); err != nil {
			t.Fatal(err)
		}
	}
	expect("web seen=twice before=once, web seen=twice before=once 1/1")
	if _, err := cli.ServiceRemove(t.Context(), "web", client.ServiceRemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	expect("")
}

func TestRenderedServicesAreBounded(t *testing.T) {
	var kept renderings
	text, err := json.Marshal(swarm.Service{ID: strings.Repeat("x", renderingsBytesMax/4)})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		kept.keep(fmt.Sprint(i), rendering{text: text})
		kept.keep(fmt.Sprint(i), rendering{text: text})
		if kept.bytes > renderingsBytesMax || kept.bytes != len(kept.of)*len(text) {
			t.Fatalf("%d bytes for %d texts of %d", kept.bytes, len(kept.of), len(text))
		}
	}
}
