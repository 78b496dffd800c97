package api

import (
	"bufio"
	"encoding/binary"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"swarm/raftstore"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types"
)

// logTimeLayout is RFC 3339 with all nine digits, so that stamps have one width.
const logTimeLayout = "2006-01-02T15:04:05.000000000Z07:00"

// logRequest is what a client asks of a log.
type logRequest struct {
	LogOptions
	timestamps, details bool
}

func parseLogRequest(r *request) (logRequest, error) {
	o := logRequest{
		LogOptions: LogOptions{Stdout: r.flag("stdout"), Stderr: r.flag("stderr"), Follow: r.flag("follow"), Tail: -1},
		timestamps: r.flag("timestamps"), details: r.flag("details"),
	}
	if !o.Stdout && !o.Stderr {
		return o, invalid("Bad parameters: you must choose at least one stream")
	}
	if raw := r.URL.Query().Get("tail"); raw != "" && raw != "all" {
		tail, err := strconv.Atoi(raw)
		if err != nil {
			return o, invalid(`invalid tail %q: send a number or "all"`, raw)
		}
		o.Tail = max(tail, -1)
	}
	var err error
	if o.Since, err = r.unixTime("since"); err != nil {
		return o, err
	}
	o.Until, err = r.unixTime("until")
	return o, err
}

// logOrigin is where a line comes from; clients show it when they ask for details.
type logOrigin struct{ node, service, task string }

// attributes encodes an origin as clients parse it.
func (o logOrigin) attributes() string {
	if o == (logOrigin{}) {
		return ""
	}
	return "com.docker.swarm.node.id=" + url.QueryEscape(o.node) +
		",com.docker.swarm.service.id=" + url.QueryEscape(o.service) +
		",com.docker.swarm.task.id=" + url.QueryEscape(o.task)
}

// lineWriter writes lines to a client, one frame each, or bare for a terminal's output. It is safe for concurrent use.
type lineWriter struct {
	mu      sync.Mutex
	w       http.ResponseWriter
	out     *bufio.Writer
	raw     bool
	request logRequest
	begun   bool
	scratch []byte
}

func newLineWriter(w http.ResponseWriter, o logRequest, raw bool) *lineWriter {
	return &lineWriter{w: w, out: bufio.NewWriterSize(w, 32<<10), raw: raw, request: o}
}

// begin sends the headers, so that a client knows its request stands before the first line comes.
func (l *lineWriter) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.beginLocked()
	_ = http.NewResponseController(l.w).Flush()
}

func (l *lineWriter) beginLocked() {
	if l.begun {
		return
	}
	l.begun = true
	kind := types.MediaTypeMultiplexedStream
	if l.raw {
		kind = types.MediaTypeRawStream
	}
	l.w.Header().Set("Content-Type", kind)
	l.w.WriteHeader(http.StatusOK)
}

func (l *lineWriter) write(line LogLine, origin logOrigin) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.beginLocked()
	b := l.scratch[:0]
	if !l.raw {
		b = append(b, streamNumber(line.Stream), 0, 0, 0, 0, 0, 0, 0)
	}
	if l.request.timestamps {
		b = line.Time.UTC().AppendFormat(b, logTimeLayout)
		b = append(b, ' ')
	}
	if l.request.details {
		b = append(b, origin.attributes()...)
		b = append(b, ' ')
	}
	b = append(b, line.Text...)
	if !l.raw {
		binary.BigEndian.PutUint32(b[4:8], uint32(len(b)-frameHeaderBytes))
	}
	l.scratch = b
	if _, err := l.out.Write(b); err != nil {
		return err
	}
	if l.request.Follow {
		return l.flushLocked()
	}
	return nil
}

func (l *lineWriter) flush() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.beginLocked()
	return l.flushLocked()
}

func (l *lineWriter) flushLocked() error {
	if err := l.out.Flush(); err != nil {
		return err
	}
	return http.NewResponseController(l.w).Flush()
}

// containerLogsLocal serves another node: always in frames, whatever the container's terminal, so that the asker can tell lines apart.
func (a *API) containerLogsLocal(w http.ResponseWriter, r *request) error {
	o, err := parseLogRequest(r)
	if err != nil {
		return err
	}
	if _, err := a.cfg.Containers.Inspect(r.Context(), r.vars["id"]); err != nil {
		return err
	}
	return a.copyLog(w, r, newLineWriter(w, o, false), "", r.vars["id"], logOrigin{})
}

// containerLogs serves the log of a container of this node or, on a manager, of any task of the cluster.
func (a *API) containerLogs(w http.ResponseWriter, r *request) error {
	o, err := parseLogRequest(r)
	if err != nil {
		return err
	}
	found, err := a.cfg.Containers.Inspect(r.Context(), r.vars["id"])
	if err == nil {
		tty := found.Config != nil && found.Config.Tty
		return a.copyLog(w, r, newLineWriter(w, o, tty), "", found.ID, logOrigin{})
	}
	if !errdefs.IsNotFound(err) {
		return err
	}
	row, node := a.locate(r.vars["id"])
	if node == nil {
		return err
	}
	tty := hasTerminal(a.cfg.Node.Store().Local(), row)
	return a.copyLog(w, r, newLineWriter(w, o, tty), node.Address, row.Status.ContainerID, logOrigin{})
}

func hasTerminal(state *raftstore.State, row *raftstore.Task) bool {
	s := state.Spec(row.ServiceID, row.SpecVersion)
	return s != nil && s.TaskTemplate.ContainerSpec != nil && s.TaskTemplate.ContainerSpec.TTY
}

// copyLog writes one container's log. A follower gets headers at once.
func (a *API) copyLog(w http.ResponseWriter, r *request, out *lineWriter, address, id string, origin logOrigin) error {
	if out.request.Follow {
		out.begin()
	}
	err := a.readLog(r.Context(), address, id, out.request.LogOptions, func(line LogLine) error { return out.write(line, origin) })
	if err != nil {
		return err
	}
	return out.flush()
}

func streamNumber(stream string) byte {
	if stream == "stderr" {
		return 2
	}
	return 1
}

// formatUnix is the form in which times travel in queries.
func formatUnix(t time.Time) string {
	nanos := strconv.Itoa(t.Nanosecond())
	return strconv.FormatInt(t.Unix(), 10) + "." + strings.Repeat("0", 9-len(nanos)) + nanos
}
