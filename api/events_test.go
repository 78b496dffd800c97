package api

import (
	"testing"

	"github.com/moby/moby/api/types/events"
)

func TestASlowListenerIsCutOffAndTheOthersAreNot(t *testing.T) {
	h := newEventHub()
	_, slow, leaveSlow := h.subscribe()
	_, quick, leaveQuick := h.subscribe()
	defer leaveSlow()
	defer leaveQuick()
	for range eventQueue + 1 {
		h.publish(events.Message{})
		<-quick
	}
	n := 0
	for range slow {
		n++
	}
	if n != eventQueue || h.listeners() != 1 {
		t.Errorf("slow client got %d events, %d listeners are left", n, h.listeners())
	}
	if past, _, leave := h.subscribe(); len(past) != eventHistory {
		t.Errorf("%d events are kept", len(past))
	} else {
		leave()
	}
}

func TestEventFilters(t *testing.T) {
	m := events.Message{Type: events.ServiceEventType, Action: events.ActionUpdate, Scope: "swarm",
		Actor: events.Actor{ID: "s1", Attributes: map[string]string{"name": "web"}}}
	for raw, want := range map[string]bool{
		``:                                  true,
		`{"type":["service"]}`:              true,
		`{"type":["node"]}`:                 false,
		`{"service":["web"]}`:               true,
		`{"service":["s1"]}`:                true,
		`{"service":["other"]}`:             false,
		`{"node":["s1"]}`:                   false,
		`{"event":["update"]}`:              true,
		`{"event":["create"]}`:              false,
		`{"scope":["local"]}`:               false,
		`{"label":["name=web"]}`:            true,
		`{"scope":["swarm"],"event":["u"]}`: true,
	} {
		f, err := parseFilters(raw, "type", "service", "node", "event", "scope", "label")
		if err != nil {
			t.Fatal(err)
		}
		if got := matchEvent(f, m); got != want {
			t.Errorf("%s: %v", raw, got)
		}
	}
}
