package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestRecordSurvivesRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.json")
	if r, err := readRecord(path); r != nil || err != nil {
		t.Fatalf("without a file: %v, %v, want no record", r, err)
	}
	want := record{ClusterID: "c", NodeID: "n", ListenAddr: "0.0.0.0:2377", AdvertiseAddr: "192.0.2.1:2377", Managers: []string{"192.0.2.2:2377"}}
	if err := writeRecord(path, want); err != nil {
		t.Fatal(err)
	}
	got, err := readRecord(path)
	if err != nil {
		t.Fatal(err)
	}
	want.FormatVersion = recordVersion
	if !reflect.DeepEqual(*got, want) {
		t.Errorf("got %+v, want %+v", *got, want)
	}
}

func TestUnreadableRecordsAreNamed(t *testing.T) {
	for content, want := range map[string]string{
		`{"ClusterID":`:         "is damaged",
		`{"FormatVersion": 99}`: "written by a newer swarm (format 99",
		`{"FormatVersion": 1}`:  "is damaged",
		`{"FormatVersion": 1, "ClusterID": "c", "NodeID": "n", "ListenAddr": "nonsense", "AdvertiseAddr": "192.0.2.1:2377"}`:                      `is damaged (it holds "nonsense"`,
		"{\"FormatVersion\": 1, \"ClusterID\": \"c\xff\xfe\", \"NodeID\": \"n\", \"ListenAddr\": \"[::]:1\", \"AdvertiseAddr\": \"192.0.2.1:1\"}": "is damaged (ClusterID is ",
	} {
		path := filepath.Join(t.TempDir(), "node.json")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := readRecord(path)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), filepath.Dir(path)) {
			t.Errorf("%s: got %v, want a text with %q and the place", content, err, want)
		}
	}
}

func TestSomeOtherNodesAreRemembered(t *testing.T) {
	var many []string
	for i := range 2 * othersKeptMax {
		many = append(many, fmt.Sprintf("192.0.2.%d:2377", i))
	}
	first := someOthers(nil, many)
	if len(first) != othersKeptMax {
		t.Fatalf("%d are remembered", len(first))
	}
	if again := someOthers(first, many); !slices.Equal(again, first) {
		t.Error("they change although all are there")
	}
	without := slices.DeleteFunc(slices.Clone(many), func(a string) bool { return a == first[0] })
	if next := someOthers(first, without); len(next) != othersKeptMax || slices.Contains(next, first[0]) || !slices.Equal(next[:len(first)-1], first[1:]) {
		t.Errorf("one left, then %v", next)
	}
}
