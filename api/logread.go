package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/common"
)

const (
	// frameHeaderBytes is the head of a frame: stream, three zeros, length of the rest.
	frameHeaderBytes = 8
	// frameBytesMax bounds one line from another node; a longer one ends the stream with an error.
	frameBytesMax = 1 << 20
	// logAnswerWait is how long another node may take to begin its answer.
	logAnswerWait = 5 * time.Second
	// errorBytesMax bounds an error text from another node.
	errorBytesMax = 64 << 10
)

// readLog reads a container's log, from this node (empty address) or another, line by line.
func (a *API) readLog(ctx context.Context, address, id string, o LogOptions, emit func(LogLine) error) error {
	if address == "" {
		return a.cfg.Containers.Logs(ctx, id, o, emit)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	late := time.AfterFunc(logAnswerWait, cancel)
	defer late.Stop()
	target := url.URL{Scheme: "http", Host: address, Path: "/containers/" + id + "/logs", RawQuery: logQuery(o).Encode()}
	ask, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return err
	}
	answer, err := a.cfg.Nodes.RoundTrip(ask)
	if !late.Stop() {
		if err == nil {
			answer.Body.Close()
		}
		return fmt.Errorf("no answer within %s: %w", logAnswerWait, errdefs.ErrUnavailable)
	}
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return remoteError(answer)
	}
	return decodeFrames(answer.Body, emit)
}

func logQuery(o LogOptions) url.Values {
	q := url.Values{"timestamps": {"1"}}
	if o.Stdout {
		q.Set("stdout", "1")
	}
	if o.Stderr {
		q.Set("stderr", "1")
	}
	if o.Follow {
		q.Set("follow", "1")
	}
	if o.Tail >= 0 {
		q.Set("tail", strconv.Itoa(o.Tail))
	}
	if !o.Since.IsZero() {
		q.Set("since", formatUnix(o.Since))
	}
	if !o.Until.IsZero() {
		q.Set("until", formatUnix(o.Until))
	}
	return q
}

// remoteError is what another node answered instead of a log.
func remoteError(answer *http.Response) error {
	body, _ := io.ReadAll(io.LimitReader(answer.Body, errorBytesMax))
	var told common.ErrorResponse
	if json.Unmarshal(body, &told) != nil || told.Message == "" {
		told.Message = answer.Status
	}
	if answer.StatusCode == http.StatusNotFound {
		return errdefs.ErrNotFound.WithMessage(told.Message)
	}
	return errors.New(told.Message)
}

// decodeFrames reads the frames of a node's answer: one line each, with its time in front. A stream that ends inside a frame is an error.
func decodeFrames(r io.Reader, emit func(LogLine) error) error {
	in := bufio.NewReaderSize(r, 32<<10)
	var head [frameHeaderBytes]byte
	for {
		if _, err := io.ReadFull(in, head[:]); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("read log frame: %w", err)
		}
		size := binary.BigEndian.Uint32(head[4:])
		if head[0] != 1 && head[0] != 2 || size > frameBytesMax {
			return fmt.Errorf("log frame of stream %d with %d bytes is malformed", head[0], size)
		}
		content := make([]byte, size)
		if _, err := io.ReadFull(in, content); err != nil {
			return fmt.Errorf("read log frame: %w", io.ErrUnexpectedEOF)
		}
		stamp, text, _ := bytes.Cut(content, []byte(" "))
		at, err := time.Parse(time.RFC3339Nano, string(stamp))
		if err != nil {
			return fmt.Errorf("log frame without a time: %w", err)
		}
		line := LogLine{Stream: "stdout", Time: at, Text: text}
		if head[0] == 2 {
			line.Stream = "stderr"
		}
		if err := emit(line); err != nil {
			return err
		}
	}
}
