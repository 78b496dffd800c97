package scenarios

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"swarm/scenarios/lab"
)

// answerBytesMax of an answer are read.
const answerBytesMax = 4 << 20

// staleHeader marks answers from a replica that may be behind.
const staleHeader = "Swarm-Stale"

// answer of a node's API.
type answer struct {
	status int
	stale  string // for how many seconds there has been no leader; empty: the answer is good
	body   []byte
}

// fresh says whether this is an answer that promises something.
func (a answer) fresh(err error) bool {
	return err == nil && a.status == http.StatusOK && a.stale == ""
}

func (a answer) text() string {
	text := fmt.Sprintf("%d %s", a.status, a.body)
	if a.stale != "" {
		text += "\n" + staleHeader + ": " + a.stale
	}
	return text
}

// ask a node's API for something without any client's help, so in ways in which no client asks. Body: text as it is, or
// anything that JSON can hold.
func (w *World) ask(ctx context.Context, n *lab.Node, method, path string, body any) (answer, error) {
	content, isText := body.(string)
	if body != nil && !isText {
		encoded, err := json.Marshal(body)
		if err != nil {
			return answer{}, err
		}
		content = string(encoded)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://swarm"+path, strings.NewReader(content))
	if err != nil {
		return answer{}, err
	}
	transport := &http.Transport{DialContext: n.DialAPI, DisableKeepAlives: true}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	got, err := io.ReadAll(io.LimitReader(response.Body, answerBytesMax))
	return answer{response.StatusCode, response.Header.Get(staleHeader), got}, err
}
