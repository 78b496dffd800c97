package gossip

import (
	"log"
	"log/slog"
	"strings"

	"golang.org/x/time/rate"
)

// Strangers can provoke a warning with every packet, so that warnings are limited: so many per second, so many at once.
const (
	warningsPerSecond = 0.2
	warningsBurst     = 10
)

// libraryLog passes the library's warnings and errors on to to.
func libraryLog(to *slog.Logger) *log.Logger {
	return log.New(&logWriter{to: to, limit: rate.NewLimiter(warningsPerSecond, warningsBurst)}, "", 0)
}

type logWriter struct {
	to    *slog.Logger
	limit *rate.Limiter
}

// Write takes one line of the form "[LEVEL] memberlist: text".
func (w *logWriter) Write(line []byte) (int, error) {
	level, text, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
	if (level == "[WARN]" || level == "[ERR]" || level == "[ERROR]") && w.limit.Allow() {
		w.to.Warn("gossip trouble", "text", strings.TrimPrefix(text, "memberlist: "))
	}
	return len(line), nil
}
