package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"sync"

	"swarm/raftstore"
)

// renderingsBytesMax bounds the memory of rendered services; beyond it all are forgotten, which costs one slow list.
const renderingsBytesMax = 16 << 20

// renderings keep services as JSON. Rows never change and a service's row is written with each version of its spec, so a
// rendering is good for as long as the row is the same one. Lists are then little more than copies.
type renderings struct {
	mu    sync.RWMutex // guards:
	of    map[string]rendering
	bytes int
}

type rendering struct {
	row  *raftstore.Service
	text []byte
}

// service returns a service as a JSON object, which must not be changed.
func (c *renderings) service(state *raftstore.State, row *raftstore.Service) ([]byte, error) {
	c.mu.RLock()
	known := c.of[row.ID]
	c.mu.RUnlock()
	if known.row == row {
		return known.text, nil
	}
	var text bytes.Buffer
	if err := encodeJSON(&text, renderService(state, row)); err != nil {
		return nil, err
	}
	made := rendering{row, bytes.Clone(bytes.TrimSuffix(text.Bytes(), []byte("\n")))}
	c.keep(row.ID, made)
	return made.text, nil
}

func (c *renderings) keep(id string, made rendering) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil || c.bytes+len(made.text) > renderingsBytesMax {
		c.of, c.bytes = map[string]rendering{}, 0
	}
	c.bytes += len(made.text) - len(c.of[id].text)
	c.of[id] = made
}

// appendService writes a service with, where wanted, the counts of its tasks as its last field.
func (a *API) appendService(body *bytes.Buffer, state *raftstore.State, row *raftstore.Service, status bool) error {
	text, err := a.renderings.service(state, row)
	if err != nil || !status {
		body.Write(text)
		return err
	}
	spec := state.Spec(row.ID, row.SpecVersion)
	if spec == nil {
		return fmt.Errorf("service %s has no spec at version %d", row.ID, row.SpecVersion)
	}
	body.Write(bytes.TrimSuffix(text, []byte("}")))
	body.WriteString(`,"ServiceStatus":`)
	if err := encodeJSON(body, serviceStatus(state, row, spec.Mode)); err != nil {
		return err
	}
	body.Truncate(body.Len() - 1) // the encoder's newline
	body.WriteByte('}')
	return nil
}

// encodeJSON writes v and a newline.
func encodeJSON(out *bytes.Buffer, v any) error {
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	return nil
}

// bodyKeptMax is the largest buffer that is kept for the next answer.
const bodyKeptMax = 1 << 20

// bodies are buffers that answers are built in.
type bodies struct{ pool sync.Pool }

func (b *bodies) take() *bytes.Buffer {
	if body, ok := b.pool.Get().(*bytes.Buffer); ok {
		body.Reset()
		return body
	}
	return new(bytes.Buffer)
}

func (b *bodies) give(body *bytes.Buffer) {
	if body.Cap() <= bodyKeptMax {
		b.pool.Put(body)
	}
}

// writeBody answers with JSON that is ready.
func writeBody(w http.ResponseWriter, status int, body *bytes.Buffer) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(body.Len()))
	w.WriteHeader(status)
	_, _ = w.Write(body.Bytes()) // the client is gone; nobody to tell
}
