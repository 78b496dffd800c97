package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/common"
)

// Texts that clients and scripts compare with.
const (
	textNoSwarm      = "This node is not part of a swarm"
	textSwarmExists  = `This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.`
	textSwarmLocked  = `Swarm is encrypted and needs to be unlocked before it can be used. Please use "docker swarm unlock" to unlock it.`
	textNotManager   = "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this command on a manager node or promote the current node to a manager."
	textNotInSwarm   = `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`
	textManagerNotUp = "This node is not a swarm manager. Manager is being prepared or has trouble connecting to the cluster."
	textOutdated     = "update out of sequence"
	overlayNotYet    = "overlay networks are not supported yet; a service can use the predefined networks host and none"
)

// errOutdated answers an update that carries another version than the object's. It has no kind on purpose: clients expect status 500.
var errOutdated = errors.New(textOutdated)

func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

func notFound(format string, args ...any) error {
	return errdefs.ErrNotFound.WithMessage(fmt.Sprintf(format, args...))
}

func refused(format string, args ...any) error {
	return errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf(format, args...))
}

func forbidden(format string, args ...any) error {
	return errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf(format, args...))
}

func unavailable(text string) error { return errdefs.ErrUnavailable.WithMessage(text) }

// notYet answers a route that the Engine API has and we have not.
func notYet(text string) handler {
	return func(http.ResponseWriter, *request) error { return errdefs.ErrNotImplemented.WithMessage(text) }
}

// statusOf is the one place where kinds of errors become HTTP statuses.
func statusOf(err error) int {
	switch {
	case errdefs.IsInvalidArgument(err), errdefs.IsFailedPrecondition(err), errdefs.IsOutOfRange(err):
		return http.StatusBadRequest
	case errdefs.IsUnauthorized(err):
		return http.StatusUnauthorized
	case errdefs.IsPermissionDenied(err):
		return http.StatusForbidden
	case errdefs.IsNotFound(err):
		return http.StatusNotFound
	case errdefs.IsAlreadyExists(err), errdefs.IsConflict(err), errdefs.IsAborted(err):
		return http.StatusConflict
	case errdefs.IsNotImplemented(err):
		return http.StatusNotImplemented
	case errdefs.IsUnavailable(err), errdefs.IsResourceExhausted(err), errdefs.IsDeadlineExceeded(err), errdefs.IsCanceled(err),
		errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// messageOf is an error's text for a client: without the bare name of its kind at the end, which the status says already.
func messageOf(err error) string {
	text := err.Error()
	for _, kind := range []error{
		errdefs.ErrInvalidArgument, errdefs.ErrFailedPrecondition, errdefs.ErrOutOfRange, errdefs.ErrUnauthenticated, errdefs.ErrPermissionDenied,
		errdefs.ErrNotFound, errdefs.ErrAlreadyExists, errdefs.ErrConflict, errdefs.ErrAborted, errdefs.ErrNotImplemented,
		errdefs.ErrUnavailable, errdefs.ErrResourceExhausted, errdefs.ErrInternal,
	} {
		if cut, ok := strings.CutSuffix(text, ": "+kind.Error()); ok && cut != "" {
			return cut
		}
	}
	return text
}

// fail answers with an error, unless an answer has begun: then the connection ends early, which is all that HTTP allows.
func (a *API) fail(w *trackingWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		return // the client has gone
	}
	status := statusOf(err)
	if status == http.StatusInternalServerError && !errors.Is(err, errOutdated) {
		a.log.Error("request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	if w.begun {
		a.log.Warn("answer cut short", "method", r.Method, "path", r.URL.Path, "err", err)
		panic(http.ErrAbortHandler)
	}
	_ = writeJSON(w, status, common.ErrorResponse{Message: messageOf(err)})
}
