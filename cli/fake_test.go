package cli

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"
)

// agentCommand implements the script command "agent FILE": an agent on $SOCKET that gives the answers of FILE, one a line,
//
//	METHOD PATH STATUS BODY
//
// each as often as it is asked for, the last of several in a row staying. What was asked is written to $WORK/asked.
func agentCommand(ts *testscript.TestScript, _ bool, args []string) {
	answers, err := parseAnswers(ts.ReadFile(args[0]))
	ts.Check(err)
	asked, err := os.Create(ts.MkAbs("asked"))
	ts.Check(err)
	listener, err := net.Listen("unix", ts.Getenv("SOCKET"))
	ts.Check(err)
	server := &http.Server{Handler: &fakeAgent{answers: answers, asked: asked}}
	go server.Serve(listener)
	ts.Defer(func() { server.Close() })
}

type answer struct {
	route, status, body string
}

func parseAnswers(text string) ([]answer, error) {
	var answers []answer
	for line := range strings.Lines(text) {
		parts := strings.SplitN(strings.TrimSpace(line), " ", 4)
		if len(parts) != 4 {
			return nil, fmt.Errorf("answer %q is not METHOD PATH STATUS BODY", line)
		}
		answers = append(answers, answer{parts[0] + " " + parts[1], parts[2], parts[3]})
	}
	return answers, nil
}

type fakeAgent struct {
	mu      sync.Mutex
	answers []answer
	asked   *os.File
}

var versionPrefix = regexp.MustCompile(`^/v1\.\d+`)

func (f *fakeAgent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	path := versionPrefix.ReplaceAllString(r.URL.Path, "")
	if path == "/_ping" {
		w.Header().Set("Api-Version", "1.56")
		return
	}
	if r.URL.RawQuery != "" && r.Method != http.MethodGet {
		path += "?" + r.URL.RawQuery
	}
	body, _ := io.ReadAll(r.Body)
	fmt.Fprintln(f.asked, strings.TrimSpace(r.Method+" "+path+" "+string(body)))
	w.Header().Set("Content-Type", "application/json")
	for i, a := range f.answers {
		if a.route != r.Method+" "+path {
			continue
		}
		if i+1 < len(f.answers) && f.answers[i+1].route == a.route {
			f.answers = append(f.answers[:i:i], f.answers[i+1:]...)
		}
		var status int
		fmt.Sscan(a.status, &status)
		w.WriteHeader(status)
		io.WriteString(w, a.body)
		return
	}
	w.WriteHeader(http.StatusNotFound)
	fmt.Fprintf(w, `{"message":"the script has no answer for %s %s"}`, r.Method, path)
}
