// Package sim runs whole real agents, up to 7 managers and 50 workers, in one process and in virtual time: a testing/synctest
// bubble in which network, containers, images and the managers' disks are simulated and can fail. Its tests (make sim) play random
// stories, one per seed, and judge them; a story that goes wrong is printed, and replays with STORY=file.
//
// What is judged, while a story runs and after everything was mended at its end: a term has one leader; replicas at one index have
// one content; states of tasks and what is wanted of them only go forward, along the table of service/task, and a task never changes
// its node; no task is started twice; a change of leader or a restart within the grace time moves no task; what was acknowledged
// is there in the end, and all that clients were told is linearizable (scenarios/history); every slot has one running task, and
// exactly the containers of running tasks run, where they shall; every node takes part again, in its role; an agent ends when it is
// told to, leaves no goroutine behind, and not before.
//
// What it cannot see:
//   - Anything below the edges: containerd, runc, the keeper's process, real sockets, the kernel's network and file systems. The
//     stories in scenarios are for those.
//   - The CPU as a scarce thing: virtual time stands still while anybody computes, so nothing is ever late for want of a
//     processor, and loops that burn it look free.
//   - Data races, unless the race detector is on; and orders of goroutines that one processor does not produce. A seed repeats the
//     faults and their times, not how goroutines took turns.
//   - A program that is really stopped: freeze holds back what reaches a program and what it says, but its timers go on.
//   - Lost writes of ordinary files (node.json, certificates, the worker's file of tasks): a crash finds them as they were last
//     written. Only the managers' log, vote and snapshots have a disk with faults; and that disk does not sync late.
//   - Clocks: all nodes share one.
//   - A goroutine that waits for a mutex while its holder waits for time: the bubble's clock then stands still, which the tests
//     report as such.
package sim
