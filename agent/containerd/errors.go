package containerd

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// Errors whose text people read have their kind beside the text, not in it.

func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

func notYet(format string, args ...any) error {
	return errdefs.ErrNotImplemented.WithMessage(fmt.Sprintf(format, args...))
}
