package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
)

// silenceMax is how long a peer or registry may send nothing.
const silenceMax = 30 * time.Second

var errSilent = fmt.Errorf("nothing came for %s: %w", silenceMax, errdefs.ErrUnavailable)

// silence cancels a request when nothing was heard for too long.
type silence struct {
	ctx    context.Context
	timer  *time.Timer
	cancel context.CancelCauseFunc
}

func newSilence(ctx context.Context) (context.Context, *silence) {
	ctx, cancel := context.WithCancelCause(ctx)
	return ctx, &silence{ctx: ctx, cancel: cancel, timer: time.AfterFunc(silenceMax, func() { cancel(errSilent) })}
}

func (s *silence) heard() { s.timer.Reset(silenceMax) }

func (s *silence) end() {
	s.timer.Stop()
	s.cancel(nil)
}

// explain puts the true reason in the place of a cancelled request's error.
func (s *silence) explain(err error) error {
	if err != nil && err != io.EOF && errors.Is(context.Cause(s.ctx), errSilent) {
		return errSilent
	}
	return err
}

// guarded is a body that must not fall silent.
type guarded struct {
	body    io.ReadCloser
	silence *silence
}

func (g *guarded) Read(into []byte) (int, error) {
	g.silence.heard()
	n, err := g.body.Read(into)
	return n, g.silence.explain(err)
}

// Seek goes on from an offset; a body that cannot is read up to there. It is called before the first Read.
func (g *guarded) Seek(offset int64, whence int) (int64, error) {
	if seeker, ok := g.body.(io.Seeker); ok {
		return seeker.Seek(offset, whence)
	}
	return io.CopyN(io.Discard, g, offset)
}

func (g *guarded) Close() error {
	defer g.silence.end()
	return g.body.Close()
}
