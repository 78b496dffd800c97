package sim

import (
	"testing"
	"testing/synctest"
	"time"
)

// tell plays a story in a bubble of its own.
func tell(t *testing.T, text string) *Outcome {
	t.Helper()
	story, err := ParseStory(text)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := scratch()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	var o *Outcome
	synctest.Test(t, func(t *testing.T) { o = Play(story, dir) })
	t.Logf("wall %s, virtual %s, %+v", time.Since(began).Round(time.Millisecond), o.Elapsed, o.Looks)
	return o
}

func TestLeaderKilled(t *testing.T) {
	o := tell(t, `
cluster 3+2
image load
service create --detach --name web --replicas 6 hello sleep
* running web 6
remember
history start
wait 2s
kill leader
wait 1s
start
wait 10s
unchanged
service scale web=9
* running web 9
power-off n5
wait 12s
* running web 9
partition n1 | n2 n3 n4
wait 10s
heal
restart-all
settle
`)
	if o.Err != nil {
		t.Error(o.Err)
		for _, s := range o.Steps {
			t.Log(s)
		}
		t.Log(o.Diaries)
	}
	if err := o.load.recorder.Check(20 * time.Second); err != nil {
		t.Error(err)
	}
	t.Log(o.load.recorder.Summary())
}
