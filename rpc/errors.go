package rpc

import (
	"context"
	"errors"
	"io"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// errorKind pairs a code on the wire with the kind that callers branch on.
type errorKind struct {
	code codes.Code
	kind error
}

// errorKinds is the mapping in both directions; a code means the first kind beside it.
func errorKinds() []errorKind {
	return []errorKind{
		{codes.InvalidArgument, errdefs.ErrInvalidArgument},
		{codes.NotFound, errdefs.ErrNotFound},
		{codes.AlreadyExists, errdefs.ErrAlreadyExists},
		{codes.PermissionDenied, errdefs.ErrPermissionDenied},
		{codes.Unauthenticated, errdefs.ErrUnauthenticated},
		{codes.ResourceExhausted, errdefs.ErrResourceExhausted},
		{codes.FailedPrecondition, errdefs.ErrFailedPrecondition},
		// Conflict has no code of its own; Aborted is what gRPC says when a transaction must run again.
		{codes.Aborted, errdefs.ErrConflict},
		{codes.Aborted, errdefs.ErrAborted},
		{codes.OutOfRange, errdefs.ErrOutOfRange},
		{codes.Unimplemented, errdefs.ErrNotImplemented},
		{codes.DataLoss, errdefs.ErrDataLoss},
		{codes.Internal, errdefs.ErrInternal},
		{codes.Unavailable, errdefs.ErrUnavailable},
		{codes.Canceled, context.Canceled},
		{codes.DeadlineExceeded, context.DeadlineExceeded},
		{codes.Unknown, errdefs.ErrUnknown},
	}
}

// toWire turns a handler's error into a gRPC status with the same text.
func toWire(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return err
	}
	kind := errdefs.Resolve(err)
	for _, k := range errorKinds() {
		if errors.Is(kind, k.kind) {
			return status.Error(k.code, err.Error())
		}
	}
	return status.Error(codes.Unknown, err.Error())
}

// fromWire turns a gRPC status into an error with the same text and the kind of its code.
func fromWire(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	for _, k := range errorKinds() {
		if s.Code() == k.code {
			return &wireError{status: s, kind: k.kind}
		}
	}
	return &wireError{status: s, kind: errdefs.ErrUnknown}
}

// wireError is an error of another node: its text, intact, and its kind.
type wireError struct {
	status *status.Status
	kind   error
}

func (e *wireError) Error() string              { return e.status.Message() }
func (e *wireError) Unwrap() error              { return e.kind }
func (e *wireError) GRPCStatus() *status.Status { return e.status }
