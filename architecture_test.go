package main

import (
	"fmt"
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The architecture, as far as imports can tell it. Changing a row is a decision: say why in the commit.

type row struct{ of, may, because string }

// importTable says which of our packages each package may import, and why no more.
// Tests may import more of ours, but not more of other people's.
var importTable = []row{
	{".", "cli", "main hands over and does nothing else"},
	{"cli", "agent api", "verbs speak HTTP; agent is linked for `swarm agent`, api for the JSON types of our own endpoints"},
	{"agent", "agent/containerd agent/images agent/keeper agent/worker api gossip raftstore rpc secrets secrets/pki service service/dispatcher service/spec service/task",
		"agent wires everything; placement is service's business, so the scheduler stays out of reach"},
	{"api", "raftstore rpc service/spec service/task", "api decodes, checks, makes one store call and renders; it declares Node, Containers and Images for the rest"},
	{"service", "raftstore service/scheduler service/spec service/task", "the loop sees the store alone; it reaches no node and no runtime"},
	{"service/dispatcher", "raftstore rpc service/spec service/task", "assignments go from the replica to the session; nothing is decided here"},
	{"service/scheduler", "service/spec service/task", "placement is pure: values in, plan out"},
	{"service/spec", "", "pure, so that api, service and worker agree on one meaning"},
	{"service/task", "", "pure, so that one place knows the order of states"},
	{"agent/worker", "rpc service/spec service/task", "the worker declares Runtime, Images and the rest; it must not know who implements them"},
	{"agent/containerd", "agent/worker", "implements the worker's Runtime and nothing else"},
	{"agent/images", "agent/worker rpc", "implements the worker's Images; fetches from peers over rpc"},
	{"agent/keeper", "", "must outlive and not follow the agent, so it shares nothing with it"},
	{"raftstore", "rpc", "the store travels over the node port and knows no user of it"},
	{"gossip", "rpc", "a few bytes per node; what they mean is decided elsewhere"},
	{"rpc", "", "everything may import rpc, so rpc imports nothing"},
	{"secrets", "", "seals bytes; the store declares the Sealer that it implements"},
	{"secrets/pki", "rpc", "certificates are shown to, and asked for by, rpc"},
	{"scenarios", "scenarios/history scenarios/lab", "stories run the real binary from outside"},
	{"scenarios/bench", "scenarios scenarios/lab", "measures the real binary in a lab"},
	{"scenarios/demo", "scenarios scenarios/lab", "the demo is a story that stays up"},
	{"scenarios/history", "", "judges what clients were told, in a lab or in the simulation; it knows neither"},
	{"scenarios/lab", "", "a lab is machines and links; it knows no cluster"},
	{"scenarios/sim", "agent agent/worker api gossip raftstore rpc scenarios/history service/task",
		"puts whole agents on edges of its own (agent, and the types that its Edges are made of), and looks into their replicas"},
	{"scenarios/hello", "", "the program inside the image that stories load"},
	{"scenarios/hello/pack", "", "makes that image"},
}

// walls keep each library, with its way of thinking, in few places. onlyIn names packages; a trailing /... means a folder.
var walls = []struct{ library, onlyIn, because string }{
	{"github.com/vishvananda/netlink", "scenarios/lab", "the kernel's network has one owner"},
	{"github.com/vishvananda/netns", "scenarios/lab", "the kernel's network has one owner"},
	{"github.com/google/nftables", "", "the kernel's network has one owner, which does not exist yet"},
	{"github.com/cilium/ebpf", "", "the kernel's network has one owner, which does not exist yet"},
	{"github.com/miekg/dns", "agent/keeper", "names are served by what outlives the agent"},
	{"golang.zx2c4.com/wireguard", "agent/keeper", "tunnels are held by what outlives the agent"},
	{"github.com/containerd/containerd", "agent/containerd agent/images", "the runtime can be replaced behind worker.Runtime and worker.Images"},
	{"github.com/hashicorp/raft", "raftstore", "everybody else sees Update, View and Watch"},
	{"github.com/hashicorp/raft-boltdb", "raftstore", "the log store can be replaced behind raft's interface"},
	{"github.com/tidwall/btree", "raftstore", "tables are the store's own matter"},
	{"github.com/hashicorp/memberlist", "gossip", "gossip can be replaced behind Members"},
	{"go.etcd.io/bbolt", "raftstore agent/worker", "two files on disk, each with one owner"},
	{"google.golang.org/grpc", "rpc service/dispatcher agent", "gRPC is the node port's matter; others see Go types"},
	{"github.com/spf13", "cli", "flags end at the command line"},
	{"github.com/docker/cli", "cli", "docker's commands end at the command line"},
	{"github.com/docker/docker", "", "API types and client come from moby/moby/api and moby/moby/client"},
	{"github.com/moby/swarmkit", "", "this is not swarmkit"},
	{"github.com/prometheus", "api", "others export plain numbers"},
	{"github.com/anishathalye/porcupine", "scenarios/history", "others record histories and read the verdict"},
	{"github.com/moby/profiles", "agent/containerd", "profiles are applied where containers are made"},
	{"github.com/google/go-containerregistry", "agent/images scenarios/...", "a registry and images for tests; production code speaks to registries through containerd"},
}

// pure packages decide and do not act: no files, no network, no goroutines.
var pure = []struct{ pkg, not string }{
	{"service/scheduler", "context net net/http os sync"},
	{"service/spec", "context net/http os sync"},
	{"service/task", "context net/http os sync"},
}

// httpServers are the only packages that may hold an http.Server: limits on headers, bodies and connections are kept there.
var httpServers = []string{"api", "rpc", "scenarios/hello", "scenarios/lab"}

var emptyNames = []string{"util", "utils", "common", "helpers", "types", "internal", "testutil", "testutils", "misc", "base"}

func TestEachPackageHasARowAndEachRowAPackage(t *testing.T) {
	have := map[string]bool{}
	for _, p := range source(t) {
		have[p.path] = true
		if _, ok := rowOf(p.path); !ok {
			t.Errorf("package %s has no row in importTable: a new package needs a second consumer or an effect to wall off, otherwise it is a file; if it stands, add the row with its reason", p.path)
		}
	}
	for _, r := range importTable {
		if !have[r.of] {
			t.Errorf("importTable has a row for %s, which does not exist: delete the row", r.of)
		}
	}
}

func TestImportsFollowTheTable(t *testing.T) {
	for _, p := range source(t) {
		p.eachImport(func(where string, path string, inTest bool) {
			if !inTest {
				if fault := againstTable(p.path, path); fault != "" {
					t.Errorf("%s: %s", where, fault)
				}
				if fault := againstPurity(p.path, path); fault != "" {
					t.Errorf("%s: %s", where, fault)
				}
			}
			if fault := againstWalls(p.path, path); fault != "" {
				t.Errorf("%s: %s", where, fault)
			}
		})
	}
}

func TestViolationsAreSeenAndExplained(t *testing.T) {
	for _, c := range []struct{ fault, want string }{
		{againstTable("cli", "swarm/raftstore"), "cli may not import swarm/raftstore: it may import only agent api, because verbs speak HTTP"},
		{againstTable("rpc", "swarm/gossip"), "rpc may not import swarm/gossip: it may import nothing of ours"},
		{againstWalls("service", "google.golang.org/grpc/codes"), "service may not import google.golang.org/grpc/codes: that library belongs to rpc service/dispatcher agent alone"},
		{againstPurity("service/scheduler", "os"), "service/scheduler may not import os: it decides and does not act"},
		{againstTable("cli", "swarm/api"), ""},
		{againstTable("cli", "fmt"), ""},
		{againstWalls("scenarios/hello/pack", "github.com/google/go-containerregistry/pkg/v1"), ""},
		{againstWalls("raftstore", "github.com/hashicorp/raft-boltdb/v2"), ""},
	} {
		if !strings.HasPrefix(c.fault, c.want) || (c.want == "") != (c.fault == "") {
			t.Errorf("got  %q\nwant %q", c.fault, c.want)
		}
	}
}

func TestEachPackageSaysWhatItIsAndWhoUsesIt(t *testing.T) {
	sentence := regexp.MustCompile(`[.](\s|$)`)
	for _, p := range source(t) {
		doc := p.doc()
		if n := len(sentence.FindAllString(doc, -1)); n < 2 {
			t.Errorf("package %s: its doc comment has %d sentences; write two: what it is, and who uses it", p.path, n)
		}
	}
}

func TestNothingRegistersItself(t *testing.T) {
	for _, p := range source(t) {
		for _, f := range p.files {
			if ast.IsGenerated(f.syntax) {
				continue
			}
			for _, d := range f.syntax.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
					t.Errorf("%s: func init runs behind the reader's back; let agent construct it", p.at(fn.Pos()))
				}
			}
		}
	}
}

func TestPackagesAreNamedAfterSomething(t *testing.T) {
	for _, p := range source(t) {
		if slices.Contains(emptyNames, filepath.Base(p.path)) {
			t.Errorf("package %s: the name says nothing; name it after the one thing it is", p.path)
		}
	}
}

func TestHTTPServersLiveWhereTheirLimitsAre(t *testing.T) {
	for _, p := range source(t) {
		if slices.Contains(httpServers, p.path) {
			continue
		}
		for _, f := range p.files {
			if f.isTest {
				continue
			}
			ast.Inspect(f.syntax, func(n ast.Node) bool {
				if s, ok := n.(*ast.SelectorExpr); ok && startsServer(s) {
					t.Errorf("%s: http.%s outside %s: serve through one of these, where headers, bodies and connections are bounded", p.at(n.Pos()), s.Sel.Name, strings.Join(httpServers, ", "))
				}
				return true
			})
		}
	}
}

func startsServer(s *ast.SelectorExpr) bool {
	x, ok := s.X.(*ast.Ident)
	return ok && x.Name == "http" && slices.Contains([]string{"Server", "Serve", "ServeTLS", "ListenAndServe", "ListenAndServeTLS"}, s.Sel.Name)
}

// The client library and the program that is built beside us must speak the same dialect.
func TestContainerdIsOneVersion(t *testing.T) {
	requirement := regexp.MustCompile(`github\.com/containerd/containerd/v2 (v\S+)`)
	version := func(file string) string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		found := requirement.FindSubmatch(text)
		if found == nil {
			t.Fatalf("%s does not require github.com/containerd/containerd/v2", file)
		}
		return string(found[1])
	}
	if ours, tools := version("go.mod"), version("tools/go.mod"); ours != tools {
		t.Errorf("go.mod has containerd %s, tools/go.mod %s: raise both together", ours, tools)
	}
}

func TestLinksInTheDocumentsLeadSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	for _, file := range []string{"README.md", "ARCHITECTURE.md"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, found := range link.FindAllSubmatch(text, -1) {
			if _, err := os.Stat(string(found[1])); err != nil {
				t.Errorf("%s links to %s, which does not exist", file, found[1])
			}
		}
	}
}

// againstTable explains why pkg may not import one of our packages; empty when it may, or when the import is not ours.
func againstTable(pkg, path string) string {
	ours, ok := strings.CutPrefix(path, "swarm/")
	if !ok {
		return ""
	}
	r, known := rowOf(pkg)
	if !known || slices.Contains(strings.Fields(r.may), ours) {
		return "" // an unknown package is another test's fault
	}
	may := "it may import only " + r.may
	if r.may == "" {
		may = "it may import nothing of ours"
	}
	return fmt.Sprintf("%s may not import %s: %s, because %s. Move the code to where it belongs, declare an interface and let agent pass it in, or change importTable and say why in the commit.", pkg, path, may, r.because)
}

func againstWalls(pkg, path string) string {
	for _, wall := range walls {
		if path != wall.library && !strings.HasPrefix(path, wall.library+"/") || allows(wall.onlyIn, pkg) {
			continue
		}
		owner := "belongs to " + wall.onlyIn + " alone"
		if wall.onlyIn == "" {
			owner = "is used nowhere"
		}
		return fmt.Sprintf("%s may not import %s: that library %s, because %s. Use what the owner exports, or change walls and say why in the commit.", pkg, path, owner, wall.because)
	}
	return ""
}

func againstPurity(pkg, path string) string {
	for _, p := range pure {
		if p.pkg == pkg && slices.Contains(strings.Fields(p.not), path) {
			return fmt.Sprintf("%s may not import %s: it decides and does not act. Take the fact as an argument; the caller reads it.", pkg, path)
		}
	}
	return ""
}

func allows(list, pkg string) bool {
	for _, entry := range strings.Fields(list) {
		if folder, whole := strings.CutSuffix(entry, "/..."); entry == pkg || whole && (pkg == folder || strings.HasPrefix(pkg, folder+"/")) {
			return true
		}
	}
	return false
}

func rowOf(pkg string) (row, bool) {
	for _, r := range importTable {
		if r.of == pkg {
			return r, true
		}
	}
	return row{}, false
}

// folder is one of our packages as parsed, tests included.
type folder struct {
	path  string // relative to the module: "agent/worker", "." for main
	files []file
	set   *token.FileSet
}

type file struct {
	syntax *ast.File
	isTest bool
}

// source parses every file of the module that a plain build or test on this machine compiles.
func source(t *testing.T) []folder {
	t.Helper()
	byPath := map[string]*folder{}
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if name := entry.Name(); path != "." && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin" || name == "tools") {
				return filepath.SkipDir
			}
			return nil
		}
		dir := filepath.Dir(path)
		if match, err := build.Default.MatchFile(dir, entry.Name()); err != nil || !match || filepath.Ext(path) != ".go" {
			return err
		}
		if byPath[dir] == nil {
			byPath[dir] = &folder{path: dir, set: token.NewFileSet()}
		}
		p := byPath[dir]
		syntax, err := parser.ParseFile(p.set, path, nil, parser.ParseComments|parser.SkipObjectResolution)
		p.files = append(p.files, file{syntax, strings.HasSuffix(path, "_test.go")})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var all []folder
	for _, p := range byPath {
		all = append(all, *p)
	}
	slices.SortFunc(all, func(a, b folder) int { return strings.Compare(a.path, b.path) })
	return all
}

func (p folder) eachImport(f func(where, path string, inTest bool)) {
	for _, file := range p.files {
		for _, spec := range file.syntax.Imports {
			path, _ := strconv.Unquote(spec.Path.Value)
			f(p.at(spec.Pos()), path, file.isTest)
		}
	}
}

func (p folder) at(pos token.Pos) string {
	at := p.set.Position(pos)
	return fmt.Sprintf("%s:%d", at.Filename, at.Line)
}

func (p folder) doc() string {
	for _, f := range p.files {
		if f.syntax.Doc != nil && !f.isTest && !ast.IsGenerated(f.syntax) {
			return f.syntax.Doc.Text()
		}
	}
	return ""
}
