package api

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "rewrite the transcripts in testdata")

// Each file of testdata is a transcript against a fresh cluster. A file of the archive named "GET /path" is a request
// (its content: headers up to an empty line when the first line starts with a header, then the body), "answer" what came back;
// "tasks SERVICE FROM NODE…" gives a service running tasks. $id1, $v1 … stand for ids and versions seen before.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no transcripts", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, archive)
			if *update {
				if err := os.WriteFile(file, txtar.Format(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want := txtar.Format(archive)
			if have := txtar.Format(got); !bytes.Equal(have, want) {
				t.Errorf("%s differs; run go test -update and read the difference:\n%s", file, firstDifference(string(want), string(have)))
			}
		})
	}
}

func firstDifference(want, have string) string {
	w, h := strings.Split(want, "\n"), strings.Split(have, "\n")
	for i := range min(len(w), len(h)) {
		if w[i] != h[i] {
			return fmt.Sprintf("line %d\nwant %s\nhave %s", i+1, w[i], strings.Join(h[i:min(i+6, len(h))], "\n     "))
		}
	}
	return fmt.Sprintf("%d lines instead of %d", len(h), len(w))
}

// play sends the requests of a transcript and returns it with the answers that came.
func play(t *testing.T, archive *txtar.Archive) *txtar.Archive {
	c := newCluster(t)
	names := newNames()
	got := &txtar.Archive{Comment: archive.Comment}
	for _, file := range archive.Files {
		if file.Name == "answer" {
			continue
		}
		got.Files = append(got.Files, file)
		words := strings.Fields(names.expand(file.Name))
		if words[0] == "tasks" {
			var from uint64
			fmt.Sscan(words[2], &from)
			c.addTasks(words[1], from, words[3:]...)
			continue
		}
		answer := ask(t, c.socket, words[0], words[1], names.expand(string(file.Data)))
		got.Files = append(got.Files, txtar.File{Name: "answer", Data: []byte(names.hide(answer))})
	}
	return got
}

var headerLine = regexp.MustCompile(`^[A-Z][A-Za-z-]+: `)

// ask sends one request and renders the answer.
func ask(t testing.TB, socket, method, path, content string) string {
	t.Helper()
	header := http.Header{}
	for headerLine.MatchString(content) {
		line, rest, _ := strings.Cut(content, "\n")
		name, value, _ := strings.Cut(line, ": ")
		header.Add(name, value)
		content = rest
	}
	content = strings.TrimPrefix(content, "\n")
	r, err := http.NewRequest(method, "http://swarm"+path, strings.NewReader(strings.TrimSuffix(content, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	r.Header = header
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	answer, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	fmt.Fprintln(&out, answer.Status)
	for _, name := range []string{"Api-Version", "Builder-Version", "Cache-Control", "Docker-Experimental", "Ostype", "Swarm", "Content-Type"} {
		if value := answer.Header.Get(name); value != "" && (name == "Content-Type" && value != "application/json" || strings.HasSuffix(path, "_ping")) {
			fmt.Fprintf(&out, "%s: %s\n", name, value)
		}
	}
	var pretty bytes.Buffer
	if json.Indent(&pretty, body, "", " ") == nil {
		body = pretty.Bytes()
	}
	out.Write(body)
	if len(body) > 0 && !bytes.HasSuffix(body, []byte("\n")) {
		out.WriteByte('\n')
	}
	return out.String()
}

// names replaces what differs from run to run by what does not.
type names struct {
	hidden map[string]string
	shown  map[string]string
	counts map[string]int
}

func newNames() *names {
	return &names{hidden: map[string]string{}, shown: map[string]string{}, counts: map[string]int{}}
}

var (
	idPattern      = regexp.MustCompile(`"[a-z0-9]{25}"|service [a-z0-9]{25}|-[a-z0-9]{25}"`)
	bareID         = regexp.MustCompile(`[a-z0-9]{25}`)
	indexPattern   = regexp.MustCompile(`"Index": (\d+)`)
	timePattern    = regexp.MustCompile(`"202[0-9]-[0-9T:.Z+-]+"`)
	startedPattern = `"2026-01-02T03:04:05Z"`
)

func (n *names) hide(text string) string {
	text = idPattern.ReplaceAllStringFunc(text, func(s string) string {
		id := bareID.FindString(s)
		switch id {
		case nodeOne, nodeTwo, nodeThree, "hostnetwork00000000000000", "nonenetwork00000000000000", "cluster000000000000000000":
			return s
		}
		if strings.HasPrefix(id, "task") && strings.HasSuffix(id, "00000000000000000000") {
			return s
		}
		return strings.Replace(s, id, n.nameOf("id", id), 1)
	})
	text = indexPattern.ReplaceAllStringFunc(text, func(s string) string {
		version := indexPattern.FindStringSubmatch(s)[1]
		return `"Index": ` + n.nameOf("v", version)
	})
	return timePattern.ReplaceAllStringFunc(text, func(s string) string {
		if s == startedPattern {
			return s
		}
		return `"<time>"`
	})
}

func (n *names) nameOf(kind, value string) string {
	key := kind + " " + value
	if n.hidden[key] == "" {
		n.counts[kind]++
		n.hidden[key] = fmt.Sprintf("$%s%d", kind, n.counts[kind])
		n.shown[n.hidden[key]] = value
	}
	return n.hidden[key]
}

var variable = regexp.MustCompile(`\$(id|v)\d+`)

func (n *names) expand(text string) string {
	return variable.ReplaceAllStringFunc(text, func(s string) string {
		if value, ok := n.shown[s]; ok {
			return value
		}
		return s
	})
}
