package raftstore

import (
	"math"
	"sync/atomic"
	"time"
)

// histogramBuckets bounds are 0.1 ms · 2^n: from 0.1 ms to 6.5 s.
const (
	histogramBuckets = 17
	histogramLowest  = 100 * time.Microsecond
)

// Histogram counts durations in buckets of fixed bounds. The zero value is ready; observing costs two atomic additions.
type Histogram struct {
	// counts has one more for what is above the last bound.
	counts [histogramBuckets + 1]atomic.Uint64
	sumNS  atomic.Uint64
}

// Observe counts a duration.
func (h *Histogram) Observe(d time.Duration) {
	d = max(d, 0)
	bucket := 0
	for bound := histogramLowest; bucket < histogramBuckets && d > bound; bucket++ {
		bound *= 2
	}
	h.counts[bucket].Add(1)
	h.sumNS.Add(uint64(d))
}

// HistogramSnapshot is what a Histogram held at one time.
type HistogramSnapshot struct {
	// Bounds are the buckets' inclusive upper bounds in seconds, ascending.
	Bounds []float64
	// Counts are what fell into each bucket; the last one, after the last bound, is what was longer.
	Counts []uint64
	// Count is how many there were, Sum what they lasted together in seconds.
	Count uint64
	Sum   float64
}

// Snapshot reads the counts; what is observed meanwhile may be missing in part.
func (h *Histogram) Snapshot() HistogramSnapshot {
	s := HistogramSnapshot{Sum: time.Duration(h.sumNS.Load()).Seconds()}
	bound := histogramLowest
	for i := range h.counts {
		if i < histogramBuckets {
			s.Bounds = append(s.Bounds, bound.Seconds())
			bound *= 2
		}
		n := h.counts[i].Load()
		s.Counts = append(s.Counts, n)
		s.Count += n
	}
	return s
}

// Quantile estimates, from 0 to 1, below which bound a share of the durations lies; 0 without any, +Inf above the last bound.
func (s HistogramSnapshot) Quantile(q float64) float64 {
	var seen uint64
	for i, n := range s.Counts {
		seen += n
		switch {
		case s.Count == 0:
			return 0
		case float64(seen) < q*float64(s.Count) || seen == 0:
		case i < len(s.Bounds):
			return s.Bounds[i]
		}
	}
	return math.Inf(1)
}
