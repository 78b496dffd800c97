package dispatcher

import (
	"log/slog"
	"strings"
	"testing"
	"unicode/utf8"

	"swarm/rpc"

	"google.golang.org/protobuf/proto"
)

// FuzzAgentMessage gives a session whatever bytes a node may send: it takes them within bounds or refuses them.
func FuzzAgentMessage(f *testing.F) {
	for _, m := range []*rpc.AgentMessage{
		{Kind: &rpc.AgentMessage_Hello{Hello: &rpc.Hello{FormatVersion: 1, DescriptionJson: []byte(`{"Hostname":"a"}`), Address: "a:1"}}},
		{Kind: &rpc.AgentMessage_Beat{Beat: &rpc.Beat{}}},
		{Kind: &rpc.AgentMessage_Statuses{Statuses: &rpc.TaskStatuses{Sequence: 1, Statuses: []*rpc.TaskStatus{{TaskId: "t", State: 512, Err: "é"}}}}},
		{Kind: &rpc.AgentMessage_Images{Images: &rpc.HeldImages{Images: []*rpc.HeldImage{{Name: "a:1", Digest: "sha256:x"}}}}},
		{Kind: &rpc.AgentMessage_Goodbye{Goodbye: &rpc.Goodbye{Reason: "leave"}}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	d := New(Config{NodeID: "n1", Log: slog.New(slog.DiscardHandler)})
	f.Fuzz(func(t *testing.T, b []byte) {
		var m rpc.AgentMessage
		if proto.Unmarshal(b, &m) != nil {
			return
		}
		s := &session{d: d, nodeID: "n1", wakeUp: make(chan struct{}, 1)}
		if h := m.GetHello(); h != nil {
			if s.read(h) == nil && (s.address == "" || len(h.DescriptionJson) > descriptionBytesMax) {
				t.Fatalf("took %v", h)
			}
			return
		}
		_, err := s.take(&m)
		d.writer.drop(s)
		for id, st := range s.report.statuses {
			if text := bounded(st.Err); id == "" || !utf8.ValidString(text) || len(text) > statusTextBytesMax {
				t.Fatalf("took status %v", st)
			}
		}
		for id, i := range s.report.images {
			if err == nil && (strings.Count(id, "@") < 1 || len(id) > imageTextBytesMax+1) {
				t.Fatalf("took image %v", i)
			}
		}
	})
}

func TestTextsAreCutAtCharacters(t *testing.T) {
	for _, s := range []string{strings.Repeat("é", statusTextBytesMax), strings.Repeat("a", statusTextBytesMax-1) + "世界", "\xff\xfe"} {
		if got := bounded(s); len(got) > statusTextBytesMax || !utf8.ValidString(got) {
			t.Errorf("%d bytes, valid %v", len(got), utf8.ValidString(got))
		}
	}
}
