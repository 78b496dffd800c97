package sim

import "slices"

// shrink drops steps that a story does without and still fails. The first step, which makes the cluster, and the last
// stay. fails plays a story; it is asked at most triesMax times, as a fault may depend on luck and each play takes time.
func shrink(story *Story, triesMax int, fails func(*Story) bool) *Story {
	best := story
	for size := max(1, (len(story.Steps)-2)/2); size >= 1 && triesMax > 0; {
		dropped := false
		for at := 1; at+size < len(best.Steps) && triesMax > 0; {
			try := &Story{Config: best.Config, Steps: slices.Delete(slices.Clone(best.Steps), at, at+size)}
			triesMax--
			if fails(try) {
				best, dropped = try, true
			} else {
				at += size
			}
		}
		if size > 1 {
			size /= 2
		} else if !dropped {
			break
		}
	}
	return best
}
