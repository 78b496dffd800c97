package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// request is an HTTP request that found its route.
type request struct {
	*http.Request
	vars map[string]string
	// version is the API version that the client speaks.
	version    apiVersion
	connection *http.ResponseController
}

// bounds hold a token per request that is being answered.
type bounds struct{ requests, streams chan struct{} }

// router answers requests by a route table, so many at a time; seen, which may be nil, counts them.
func (a *API) router(routes []route, requestsMax, streamsMax int, seen *metrics) http.Handler {
	m := compile(routes)
	b := bounds{requests: make(chan struct{}, requestsMax), streams: make(chan struct{}, streamsMax)}
	return http.HandlerFunc(func(w http.ResponseWriter, httpRequest *http.Request) {
		tracked := &trackingWriter{ResponseWriter: w}
		if seen != nil {
			seen.inFlight.Inc()
			defer seen.finished(tracked, httpRequest, time.Now())
		}
		defer a.recoverPanic(tracked, httpRequest)
		a.setIdentity(tracked.Header())
		if err := a.answer(m, b, tracked, httpRequest); err != nil {
			a.fail(tracked, httpRequest, err)
		}
	})
}

func (a *API) answer(m matcher, b bounds, w *trackingWriter, httpRequest *http.Request) error {
	version, path, err := negotiate(httpRequest.URL.Path)
	if err != nil {
		return err
	}
	found, vars := m.find(httpRequest.Method, path)
	if found == nil {
		return errdefs.ErrNotFound.WithMessage("page not found")
	}
	w.route = found
	slots, answerBy := b.requests, time.Now().Add(answerTimeMax)
	if found.stream {
		slots, answerBy = b.streams, time.Time{}
	}
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	default:
		return errdefs.ErrUnavailable.WithMessage("this node is answering too many requests at once; try again in a moment")
	}
	if found.stream {
		var done context.CancelFunc
		httpRequest, done = untilStop(httpRequest)
		defer done()
	}
	// Set for streams too: a deadline outlives its request on a connection that is used again.
	_ = http.NewResponseController(w).SetWriteDeadline(answerBy)
	return found.handle(w, &request{Request: httpRequest, vars: vars, version: version, connection: http.NewResponseController(w)})
}

// recoverPanic answers 500 after a bug of ours, instead of cutting the connection without a word.
func (a *API) recoverPanic(w *trackingWriter, r *http.Request) {
	cause := recover()
	if cause == nil {
		return
	}
	if cause == http.ErrAbortHandler {
		panic(cause)
	}
	a.log.Error("request panicked", "method", r.Method, "path", r.URL.Path, "panic", cause, "stack", string(debug.Stack()))
	a.fail(w, r, fmt.Errorf("internal error; the agent's log has the details: %w", errdefs.ErrInternal))
}

// trackingWriter knows whether an answer has begun, with which status, and to what route.
type trackingWriter struct {
	http.ResponseWriter
	begun  bool
	status int
	route  *route
}

func (w *trackingWriter) WriteHeader(status int) {
	if !w.begun {
		w.begun, w.status = true, status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *trackingWriter) Write(p []byte) (int, error) {
	if !w.begun {
		w.begun, w.status = true, http.StatusOK
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *trackingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// decode reads a JSON body into v. Unknown fields are refused, so that nothing that a client asks for is silently ignored.
func (r *request) decode(v any) error {
	if err := checkContentType(r.Header.Get("Content-Type")); err != nil {
		return err
	}
	_ = r.connection.SetReadDeadline(time.Now().Add(bodyTimeMax))
	body, err := io.ReadAll(io.LimitReader(r.Body, bodyBytesMax+1))
	_ = r.connection.SetReadDeadline(time.Time{})
	if err != nil {
		return fmt.Errorf("read request body: %w (%w)", err, errdefs.ErrInvalidArgument)
	}
	if len(body) > bodyBytesMax {
		return invalid("request body is larger than %d bytes", bodyBytesMax)
	}
	err = decodeStrictly(body, v)
	if err != nil && strings.Contains(err.Error(), `unknown field "`+angularMark) {
		err = decodeStrictly(withoutMarks(body), v)
	}
	return err
}

// angularMark begins the keys that web clients made with AngularJS leave in objects they have shown.
const angularMark = "$$"

func decodeStrictly(body []byte, v any) error {
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(v); err != nil {
		return describeJSONError(err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return invalid("invalid JSON: unexpected content after the JSON value")
	}
	return nil
}

// withoutMarks takes AngularJS's marks out of a JSON body; one that cannot be read stays as it is.
func withoutMarks(body []byte) []byte {
	var content any
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber()
	if decoder.Decode(&content) != nil {
		return body
	}
	var clean func(any)
	clean = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			maps.DeleteFunc(v, func(key string, _ any) bool { return strings.HasPrefix(key, angularMark) })
			for _, inner := range v {
				clean(inner)
			}
		case []any:
			for _, inner := range v {
				clean(inner)
			}
		}
	}
	clean(content)
	cleaned, err := json.Marshal(content)
	if err != nil {
		return body
	}
	return cleaned
}

func checkContentType(header string) error {
	if header == "" {
		return nil
	}
	mediaType, _, err := mime.ParseMediaType(header)
	if err != nil || mediaType != "application/json" {
		return invalid("unsupported Content-Type header (%s): must be 'application/json'", header)
	}
	return nil
}

func describeJSONError(err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	field, unknown := strings.CutPrefix(err.Error(), "json: unknown field ")
	switch {
	case errors.Is(err, io.EOF):
		return invalid("invalid JSON: the request body is empty")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return invalid("invalid JSON: the request body ends too early")
	case unknown:
		return invalid("unknown field %s: API version %s has no such field; remove it or correct its spelling", field, apiNewest)
	case errors.As(err, &kind) && kind.Field != "":
		// Clients know fields by their path in JSON, without the Go types that hold them.
		return invalid("invalid JSON: field %s cannot hold a %s", strings.NewReplacer("ServiceSpec.", "", "Annotations.", "").Replace(kind.Field), kind.Value)
	case errors.As(err, &syntax):
		return invalid("invalid JSON at byte %d: %s", syntax.Offset, syntax)
	}
	return invalid("invalid JSON: %s", err)
}

// flag reads a query parameter as Docker does: anything but a few words for no is yes.
func (r *request) flag(name string) bool {
	switch strings.ToLower(strings.TrimSpace(r.URL.Query().Get(name))) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

// objectVersion reads the version that an update must carry.
func (r *request) objectVersion(kind string) (uint64, error) {
	raw := r.URL.Query().Get("version")
	version, err := strconv.ParseUint(raw, 10, 64)
	if err != nil {
		return 0, invalid("invalid %s version '%s': send the Version.Index of the object as last read", kind, raw)
	}
	return version, nil
}

// unixTime reads a time in seconds with an optional fraction, or in RFC 3339; zero when the parameter is missing or 0.
func (r *request) unixTime(name string) (time.Time, error) {
	raw := r.URL.Query().Get(name)
	if raw == "" || raw == "0" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339Nano, raw); err == nil {
		return t, nil
	}
	whole, fraction, _ := strings.Cut(raw, ".")
	seconds, err := strconv.ParseInt(whole, 10, 64)
	nanos := int64(0)
	if err == nil && fraction != "" {
		nanos, err = strconv.ParseInt((fraction + "000000000")[:9], 10, 64)
	}
	if err != nil || nanos < 0 {
		return time.Time{}, invalid("invalid value %q for %q: send a unix time in seconds, such as 1700000000.5", raw, name)
	}
	return time.Unix(seconds, nanos), nil
}

// writeJSON answers with v.
func writeJSON(w http.ResponseWriter, status int, v any) error {
	var body bytes.Buffer
	if err := encodeJSON(&body, v); err != nil {
		return err
	}
	writeBody(w, status, &body)
	return nil
}
