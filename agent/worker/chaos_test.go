package worker

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"swarm/service/task"

	"github.com/moby/moby/api/types/swarm"
)

// Whatever happens, and whenever the agent is killed: no task is started twice, no state goes back, and in
// the end exactly what is wanted runs.
func TestNoTaskRunsTwiceWheneverTheAgentIsKilled(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			inBubble(t, func(t *testing.T, l *lab) { chaos(t, l, rand.New(rand.NewPCG(seed, 1))) })
		})
	}
}

func chaos(t *testing.T, l *lab, random *rand.Rand) {
	images := []string{"sleep", "stubborn", "exit 0", "exit 3", "flaky", "missing", "nope", "mounts"}
	desired := map[string]swarm.TaskState{}
	image := map[string]string{}
	l.runtime.createTakes = 100 * time.Millisecond
	set := func() (all [][3]string) {
		for n := range len(image) { // in order of ids, so that slots stay
			id := fmt.Sprint("t", n)
			if desired[id] != task.Unassigned {
				all = append(all, [3]string{id, image[id], string(desired[id])})
			}
		}
		return all
	}
	for range 60 {
		switch random.IntN(9) {
		case 0, 1, 2:
			id := fmt.Sprint("t", len(image))
			image[id] = images[random.IntN(len(images))]
			desired[id] = []swarm.TaskState{swarm.TaskStateReady, swarm.TaskStateRunning}[random.IntN(2)]
		case 3, 4:
			if len(image) == 0 {
				continue
			}
			id := fmt.Sprint("t", random.IntN(len(image)))
			desired[id] = further(desired[id], random)
		case 5:
			l.runtime.setDown(random.IntN(2) == 0)
		case 6:
			l.kill()
			time.Sleep(time.Duration(random.IntN(3000)) * time.Millisecond)
			l.start()
		default:
			time.Sleep(time.Duration(random.IntN(3000)) * time.Millisecond)
			continue
		}
		l.assign(true, set()...)
	}
	l.runtime.setDown(false)
	time.Sleep(10 * time.Minute)
	synctest.Wait()
	starts := map[string]int{}
	for _, call := range l.runtime.calls {
		if name, ok := strings.CutPrefix(call, "start "); ok && !strings.Contains(name, "nope") {
			starts[name[strings.LastIndex(name, ".")+1:]]++
		}
	}
	for id, n := range starts {
		if n > 1 && image[id] != "nope" {
			t.Errorf("%s (%s) was started %d times", id, image[id], n)
		}
	}
	statuses := map[string]swarm.TaskState{}
	l.worker.Resend()
	synctest.Wait()
	for _, line := range l.story {
		id, rest, _ := strings.Cut(line, " ")
		word, _, _ := strings.Cut(rest, " ")
		if task.Before(swarm.TaskState(word), statuses[id]) {
			t.Errorf("%s went back from %s to %s", id, statuses[id], word)
		}
		statuses[id] = swarm.TaskState(word)
	}
	for id, want := range desired {
		checkEnd(t, l, id, image[id], want, statuses[id])
	}
}

func further(s swarm.TaskState, random *rand.Rand) swarm.TaskState {
	later := map[swarm.TaskState][]swarm.TaskState{
		swarm.TaskStateReady:    {swarm.TaskStateRunning, swarm.TaskStateShutdown, task.Unassigned},
		swarm.TaskStateRunning:  {swarm.TaskStateShutdown, swarm.TaskStateRemove, task.Unassigned},
		swarm.TaskStateShutdown: {swarm.TaskStateRemove, task.Unassigned},
	}[s]
	if len(later) == 0 {
		return s
	}
	return later[random.IntN(len(later))]
}

// checkEnd compares what is left of a task with what was wanted.
func checkEnd(t *testing.T, l *lab, id, image string, desired, status swarm.TaskState) {
	c, exists := l.runtime.containers[ContainerID(id)]
	runs := exists && c.pid != 0 && c.exit == nil
	switch desired {
	case task.Unassigned:
		if exists {
			t.Errorf("%s is unassigned and has a container", id)
		}
	case swarm.TaskStateShutdown, swarm.TaskStateRemove:
		if exists || !task.Ended(status) {
			t.Errorf("%s (%s) is to be %s: status %s, container %v", id, image, desired, status, exists)
		}
	case swarm.TaskStateReady:
		if runs || status != swarm.TaskStateReady && status != swarm.TaskStateRejected {
			t.Errorf("%s (%s) is to be ready: status %s, runs %v", id, image, status, runs)
		}
	case swarm.TaskStateRunning:
		wantRuns := image == "sleep" || image == "stubborn"
		if wantRuns != runs && !task.Ended(status) || runs && status != swarm.TaskStateRunning || !runs && !task.Ended(status) {
			t.Errorf("%s (%s) is to run: status %s, runs %v", id, image, status, runs)
		}
	}
}
