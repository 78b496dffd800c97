package sim

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"
)

// Size bounds the clusters of random stories.
type Size struct {
	ManagersMax, WorkersMax int
	// Faults is about how many things happen.
	Faults int
	// Operators contend for roles in some stories.
	Operators bool
}

// Small clusters are for many seeds in little time, large ones are what the product is made for.
func Small() Size { return Size{ManagersMax: 3, WorkersMax: 5, Faults: 9} }

// Large is as far as the simulation goes.
func Large() Size { return Size{ManagersMax: 7, WorkersMax: 50, Faults: 12, Operators: true} }

// Generate makes the story of a seed.
func Generate(seed uint64, size Size) *Story {
	g := &generator{random: rand.New(rand.NewPCG(seed, uint64(size.WorkersMax)))}
	var text strings.Builder
	latency := []time.Duration{200 * time.Microsecond, time.Millisecond, 5 * time.Millisecond, 25 * time.Millisecond}[g.random.IntN(4)]
	fmt.Fprintf(&text, "sim: seed=%d latency=%s jitter=%s snapshots=%d\n", seed, latency, latency, 40+g.random.IntN(400))
	// Three of five have as many managers as there may be: with one there is little to agree on.
	if g.managers = 1 + g.random.IntN(size.ManagersMax); g.chance(60) {
		g.managers = size.ManagersMax
	}
	g.workers = g.random.IntN(size.WorkersMax + 1)
	g.begin()
	switch kind := g.random.IntN(8); {
	case kind == 0:
		g.calm(size.Faults / 2)
	case kind <= 2:
		g.members(size.Faults)
	case kind == 3 && size.Operators:
		g.roles(size.Faults)
	case kind == 4 && g.managers > 1:
		g.recovery(size.Faults / 2)
	default:
		g.storm(size.Faults)
	}
	text.WriteString(strings.Join(g.lines, "\n"))
	story, err := ParseStory(text.String())
	if err != nil {
		panic(fmt.Sprintf("the generator wrote what nobody can read: %v\n%s", err, text.String()))
	}
	return story
}

type generator struct {
	random            *rand.Rand
	managers, workers int
	lines             []string
	undo              []string // what mends faults that are standing
	services          []string
	extra             int  // machines beyond the first ones
	moved             int  // the machine that changes its address
	recovered         bool // from one manager
}

func (g *generator) say(format string, args ...any) {
	g.lines = append(g.lines, fmt.Sprintf(format, args...))
}

func (g *generator) total() int { return g.managers + g.workers }

// any machine; managers, which the interesting faults happen to, half of the time.
func (g *generator) any() string {
	if g.random.IntN(2) == 0 {
		return g.manager()
	}
	return "n" + strconv.Itoa(1+g.random.IntN(g.total()))
}

func (g *generator) manager() string { return "n" + strconv.Itoa(1+g.random.IntN(g.managers)) }

// victim may also be named by what it does at that moment.
func (g *generator) victim() string {
	switch g.random.IntN(4) {
	case 0:
		return "leader"
	case 1:
		return g.manager()
	}
	return g.any()
}

func (g *generator) wait(upTo time.Duration) {
	g.say("wait %s", time.Duration(1+g.random.Int64N(int64(upTo))).Round(time.Millisecond))
}

func (g *generator) chance(percent int) bool { return g.random.IntN(100) < percent }

// begin makes the cluster and something that runs on it.
func (g *generator) begin() {
	g.say("cluster %d+%d", g.managers, g.workers)
	g.say("image load < $HELLO")
	replicas := 1 + g.random.IntN(2+g.total()*2)
	g.say("service create --detach --name web --update-parallelism %d --replicas %d hello sleep", g.random.IntN(3), replicas)
	g.services = append(g.services, "web")
	if g.chance(40) {
		g.say("service create --detach --name each --mode global hello sleep")
		g.services = append(g.services, "each")
	}
	if g.chance(30) {
		g.say("service create --detach --name job --replicas 2 hello exit %d %ds", g.random.IntN(2), g.random.IntN(8))
	}
	if g.chance(15) {
		g.say("service create --detach --name mule --replicas 2 hello %s", []string{"stubborn", "hang"}[g.random.IntN(2)])
		g.services = append(g.services, "mule")
	}
	g.say("* running web %d", replicas)
}

// calm has managers come and go, none for longer than the grace time: no task may move.
func (g *generator) calm(faults int) {
	g.lines = g.lines[:0]
	g.services = nil
	g.say("cluster %d+%d", g.managers, g.workers)
	g.say("image load < $HELLO")
	g.say("service create --detach --name web --replicas %d hello sleep", g.total()*2)
	g.say("service create --detach --name each --mode global hello sleep")
	g.say("* running web %d", g.total()*2)
	g.say("* running each %d", g.total())
	g.say("history start 3")
	g.say("wait 3s")
	g.say("remember")
	for range faults {
		switch g.random.IntN(5) {
		case 0:
			g.say("? kill leader")
			g.wait(2500 * time.Millisecond)
			g.say("start")
		case 1:
			g.say("? transfer")
		case 2:
			g.say("restart %s", g.manager())
		case 3:
			m := g.manager()
			g.say("stop %s", m)
			g.wait(2 * time.Second)
			g.say("start")
		case 4:
			g.say("? restart leader")
		}
		g.wait(12 * time.Second)
		if g.chance(50) {
			g.say("wait 8s")
		}
		g.say("unchanged")
	}
	g.say("wait 12s")
	g.say("unchanged")
	g.say("settle")
	g.say("unchanged")
}

// storm is faults of all kinds upon each other, while clients and an operator go on.
func (g *generator) storm(faults int) {
	g.say("history start")
	g.wait(3 * time.Second)
	for range faults {
		switch g.random.IntN(10) {
		case 0, 1, 2, 3, 4, 5:
			g.fault()
		case 6, 7, 8:
			g.operate()
		case 9:
			g.mend()
		}
		g.wait(time.Duration(1+g.random.IntN(6)) * time.Second)
		if g.chance(35) {
			g.mend()
		}
	}
	g.say("settle")
}

// fault does some harm and notes how to undo it.
func (g *generator) fault() {
	v := g.victim()
	switch g.random.IntN(14) {
	case 0, 1:
		g.say("? kill %s", v)
		g.undo = append(g.undo, "start")
	case 2:
		g.say("? %s %s", []string{"power-off", "tear"}[g.random.IntN(2)], v)
		g.undo = append(g.undo, "start")
	case 3:
		g.say("? freeze %s", v)
		g.undo = append(g.undo, "thaw")
	case 4, 5:
		g.say("partition %s", g.split())
		g.undo = append(g.undo, "heal")
	case 6:
		g.say("? unplug %s", v)
		g.undo = append(g.undo, "heal")
	case 7:
		g.say("? block %s %s", v, g.any())
		g.undo = append(g.undo, "heal")
	case 8:
		loss := []string{"0", "0.05", "0.2"}[g.random.IntN(3)]
		g.say("? slow-link %s %s %d %dms %s", v, g.any(), 20000+g.random.IntN(200000), g.random.IntN(300), loss)
		g.undo = append(g.undo, "heal")
	case 9:
		m := g.manager()
		kind := []string{"fill-disk " + m, "break-disk " + m, fmt.Sprintf("slow-disk %s %dms", m, 1+g.random.IntN(200))}[g.random.IntN(3)]
		g.say("%s", kind)
		g.undo = append(g.undo, "free-disk "+m, "mend-disk "+m)
	case 10:
		g.say("restart-all")
	case 11:
		g.say("? stop %s", v)
		g.undo = append(g.undo, "start")
	case 12:
		g.say("? %s %s", []string{"mute", "deafen"}[g.random.IntN(2)], v)
		g.undo = append(g.undo, "heal")
	case 13:
		g.move()
	}
}

// move gives one machine another address, each time the same: those that move while they see nobody find no one again. For the same
// reason no manager moves of which there are too few others: a worker that restarts meanwhile knows no address but theirs.
func (g *generator) move() {
	first := 1
	if g.managers < 3 || g.recovered {
		first = 1 + g.managers
	}
	if g.moved == 0 && first <= g.total() {
		g.moved = first + g.random.IntN(g.total()-first+1)
	}
	if g.moved != 0 {
		g.say("? move n%d", g.moved)
	}
}

// split puts the machines into two groups.
func (g *generator) split() string {
	var left, right []string
	for i := range g.total() {
		name := "n" + strconv.Itoa(i+1)
		if g.chance(50) {
			left = append(left, name)
		} else {
			right = append(right, name)
		}
	}
	return strings.Join(left, " ") + " | " + strings.Join(right, " ")
}

func (g *generator) mend() {
	if len(g.undo) == 0 {
		return
	}
	i := g.random.IntN(len(g.undo))
	g.say("%s", g.undo[i])
	g.undo = append(g.undo[:i], g.undo[i+1:]...)
}

// operate is a command on services, which may fail.
func (g *generator) operate() {
	s := g.services[g.random.IntN(len(g.services))]
	switch g.random.IntN(7) {
	case 0, 1:
		g.say("? service scale web=%d", g.random.IntN(3+g.total()*2))
	case 2:
		g.say("? service update --force %s", s)
	case 3:
		name := "more-" + strconv.Itoa(len(g.services))
		g.say("? service create --name %s --replicas %d hello sleep", name, 1+g.random.IntN(4))
		g.services = append(g.services, name)
	case 4:
		if s != "web" {
			g.say("? service rm %s", s)
		}
	case 5:
		g.say("? node update --availability %s %s", []string{"drain", "pause"}[g.random.IntN(2)], g.any())
	case 6:
		g.say("? node update --availability active %s", g.any())
	}
}

// members has nodes change their role, join and go, with some faults between.
func (g *generator) members(faults int) {
	g.say("history start")
	g.wait(2 * time.Second)
	for range faults {
		switch g.random.IntN(9) {
		case 8:
			gone := g.any()
			g.say("? retire %s", gone)
			if g.chance(50) {
				g.wait(3 * time.Second)
				g.say("? join-as %s %s", []string{"worker", "manager"}[g.random.IntN(2)], gone)
			}
		case 0, 1:
			g.say("? node promote %s", g.any())
		case 2, 3:
			g.say("? node demote %s", g.any())
		case 4:
			g.extra++
			name := "x" + strconv.Itoa(g.extra)
			g.say("machine %s", name)
			g.say("? join-as %s %s", []string{"worker", "manager"}[g.random.IntN(2)], name)
		case 5:
			g.say("? node rm --force %s", g.any())
		case 6:
			g.operate()
		case 7:
			g.fault()
		}
		g.wait(time.Duration(1+g.random.IntN(5)) * time.Second)
		if g.chance(60) {
			g.mend()
		}
	}
	g.say("settle")
}

// trouble is a fault of the network. A worker that restarts while all the managers it knows are replaced finds no other.
func (g *generator) trouble() {
	switch g.random.IntN(4) {
	case 0:
		g.say("partition %s", g.split())
	case 1:
		g.say("? %s %s", []string{"mute", "deafen", "unplug"}[g.random.IntN(3)], g.victim())
	case 2:
		g.say("? slow-link %s %s %d %dms 0.1", g.any(), g.any(), 20000+g.random.IntN(200000), g.random.IntN(300))
	case 3:
		g.say("? transfer")
	}
	g.undo = append(g.undo, "heal")
}

// roles has operators promote and demote at once, down to the last manager, amid faults.
func (g *generator) roles(faults int) {
	g.say("history start 2 %d", 2+g.random.IntN(2))
	g.wait(5 * time.Second)
	for range faults / 2 {
		if g.chance(60) {
			g.trouble()
		} else {
			g.operate()
		}
		g.wait(4 * time.Second)
		if g.chance(60) {
			g.mend()
		}
	}
	g.say("settle")
}

// recovery loses all managers but one, which then goes on alone; the others come back. What everybody was told before one was left
// alone must be kept; what was told meanwhile by the others is lost.
func (g *generator) recovery(faults int) {
	g.say("history start 3")
	for range g.random.IntN(3) {
		g.operate()
		g.wait(2 * time.Second)
	}
	// Calls under way end within 5 s, and a replica that has missed something catches up.
	g.say("history stop")
	g.say("wait 5s")
	survivor := g.manager()
	var others []string
	for i := range g.managers {
		if name := "n" + strconv.Itoa(i+1); name != survivor {
			others = append(others, name)
		}
	}
	lost := strings.Join(others, " ")
	switch g.random.IntN(3) {
	case 0:
		g.say("power-off %s", lost)
	case 1:
		g.say("kill %s", lost)
	case 2:
		// The others go on without it, until they are gone as well.
		g.say("unplug %s", survivor)
		g.wait(3 * time.Second)
		for range 1 + g.random.IntN(3) {
			g.operate()
			g.wait(3 * time.Second)
		}
		g.say("power-off %s", lost)
		g.say("heal")
	}
	g.say("wait 6s")
	g.say("* force-new %s", survivor)
	g.recovered = true
	g.say("history start 3")
	g.wait(5 * time.Second)
	// Those that come back have to meet the survivor, or they form the old cluster again: nobody can tell them.
	g.say("start")
	g.say("wait 10s")
	for range faults {
		if g.chance(50) {
			g.fault()
		} else {
			g.operate()
		}
		g.wait(4 * time.Second)
		g.mend()
	}
	g.say("settle")
}
