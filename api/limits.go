package api

import "time"

// Bounds of what clients can make this server hold.
const (
	// bodyBytesMax bounds a JSON body: more than the largest object that one commit takes.
	bodyBytesMax = 2 << 20
	// bodyTimeMax is how long a client may take to send a JSON body, answerTimeMax to take the answer of a request that is no stream.
	bodyTimeMax   = 30 * time.Second
	answerTimeMax = 2 * time.Minute
	// headerBytesMax and headerTimeMax bound request headers; idleTimeMax is how long an idle connection is kept.
	headerBytesMax = 64 << 10
	headerTimeMax  = 10 * time.Second
	idleTimeMax    = 2 * time.Minute
	// connectionsMax bounds open connections, requestsMax requests being answered, streamsMax logs, events, loads and pulls among them.
	connectionsMax = 1024
	requestsMax    = 256
	streamsMax     = 128
	// nodeRequestsMax and nodeStreamsMax bound the same for other nodes: one client that follows a service asks for each of its tasks.
	nodeRequestsMax = 512
	nodeStreamsMax  = 2048

	// leaderWait is how long a read goes without a leader before it is answered from this replica; a write fails at once after that much time without one.
	leaderWait = time.Second
	// readWait bounds a read; the store answers from this replica sooner when the leader does not answer.
	readWait = 10 * time.Second
	// infoWait is how long /info waits for this node's runtime.
	infoWait = 3 * time.Second
	// writeWait bounds a write from first proposal to commit.
	writeWait = 15 * time.Second
	// drainTime is what open requests get when the server stops.
	drainTime = 2 * time.Second

	// filterBytesMax bounds the filters parameter.
	filterBytesMax = 64 << 10
)
