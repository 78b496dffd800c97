package main

import (
	"testing"
	"time"
)

func TestQuantilesAreMeasuredValues(t *testing.T) {
	var times []time.Duration
	for i := 10; i >= 1; i-- {
		times = append(times, time.Duration(i))
	}
	for q, want := range map[float64]time.Duration{0.5: 5, 0.9: 9, 1: 10, 0.01: 1} {
		if got := quantile(times, q); got != want {
			t.Errorf("quantile %.2f of 1…10 is %d, want %d", q, got, want)
		}
	}
	if got := median([]time.Duration{3, 1, 2}); got != 2 {
		t.Errorf("median is %d", got)
	}
}
