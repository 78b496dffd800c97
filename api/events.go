package api

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types"
	"github.com/moby/moby/api/types/events"
)

const (
	// eventHistory is how many past events are kept for clients that ask since a time.
	eventHistory = 256
	// eventQueue is how many events wait for one client; one that falls further behind is cut off.
	eventQueue = 256
)

// eventHub hands each event to everyone who listens.
type eventHub struct {
	mu      sync.Mutex
	history []events.Message
	clients map[chan events.Message]struct{}
}

func newEventHub() *eventHub { return &eventHub{clients: map[chan events.Message]struct{}{}} }

// publish never waits: a client whose queue is full is cut off by closing its queue.
func (h *eventHub) publish(m events.Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.history) == eventHistory {
		h.history = slices.Delete(h.history, 0, 1)
	}
	h.history = append(h.history, m)
	for client := range h.clients {
		select {
		case client <- m:
		default:
			delete(h.clients, client)
			close(client)
		}
	}
}

// subscribe returns what is kept and a queue of what comes; leave gives the queue back.
func (h *eventHub) subscribe() (past []events.Message, queue chan events.Message, leave func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	queue = make(chan events.Message, eventQueue)
	h.clients[queue] = struct{}{}
	return slices.Clone(h.history), queue, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.clients, queue)
	}
}

func (h *eventHub) listeners() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.clients)
}

func (a *API) streamEvents(w http.ResponseWriter, r *request) error {
	f, err := r.filters("config", "container", "daemon", "event", "image", "label", "network", "node", "plugin", "scope", "secret", "service", "type", "volume")
	if err != nil {
		return err
	}
	since, err := r.unixTime("since")
	if err != nil {
		return err
	}
	until, err := r.unixTime("until")
	if err != nil {
		return err
	}
	ctx := r.Context()
	if !until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, until)
		defer cancel()
	}
	past, queue, leave := a.events.subscribe()
	defer leave()
	out := newEventWriter(w, r, f)
	if !since.IsZero() {
		for _, m := range past {
			if at := time.Unix(0, m.TimeNano); !at.Before(since) && (until.IsZero() || !at.After(until)) {
				if err := out.write(m); err != nil {
					return nil
				}
			}
		}
	}
	return out.copy(ctx, queue)
}

// eventWriter writes the events that match a client's filters.
type eventWriter struct {
	w       http.ResponseWriter
	encoder *json.Encoder
	filters filters
	// sequence puts an RS byte in front of each event, as RFC 7464 asks.
	sequence bool
}

func newEventWriter(w http.ResponseWriter, r *request, f filters) *eventWriter {
	kind := eventMediaType(r.Header.Values("Accept"))
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush()
	return &eventWriter{w: w, encoder: json.NewEncoder(w), filters: f, sequence: kind == types.MediaTypeJSONSequence}
}

// eventMediaType is the first form that the client names and we have; clients that name none get plain JSON, one event a line.
func eventMediaType(accept []string) string {
	for _, part := range strings.Split(strings.Join(accept, ","), ",") {
		kind, _, _ := strings.Cut(strings.TrimSpace(part), ";")
		switch kind {
		case types.MediaTypeJSONLines, types.MediaTypeNDJSON, types.MediaTypeJSONSequence:
			return kind
		}
	}
	return types.MediaTypeJSON
}

func (e *eventWriter) write(m events.Message) error {
	if !matchEvent(e.filters, m) {
		return nil
	}
	if e.sequence {
		if _, err := e.w.Write([]byte{0x1e}); err != nil {
			return err
		}
	}
	if err := e.encoder.Encode(m); err != nil {
		return err
	}
	return http.NewResponseController(e.w).Flush()
}

// copy writes events until the client goes, the asked time comes or the client was too slow.
func (e *eventWriter) copy(ctx context.Context, queue <-chan events.Message) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case m, ok := <-queue:
			if !ok {
				return unavailable("this client reads events too slowly")
			}
			if e.write(m) != nil {
				return nil
			}
		}
	}
}

func matchEvent(f filters, m events.Message) bool {
	if !f.exact("type", string(m.Type)) || !f.exact("scope", m.Scope) || !f.labels("label", m.Actor.Attributes) ||
		!f.prefix("event", string(m.Action)) {
		return false
	}
	for _, kind := range []events.Type{events.ConfigEventType, events.ContainerEventType, events.DaemonEventType, events.ImageEventType,
		events.NetworkEventType, events.NodeEventType, events.PluginEventType, events.SecretEventType, events.ServiceEventType, events.VolumeEventType} {
		wanted := f[string(kind)]
		if len(wanted) == 0 {
			continue
		}
		if m.Type != kind || !slices.Contains(wanted, m.Actor.ID) && !slices.Contains(wanted, m.Actor.Attributes["name"]) {
			return false
		}
	}
	return true
}
