package main

import (
	"fmt"
	"math"
	"sort"
)

// truth is a scripted course of one counter over absolute time (unix seconds, the true clock).
// Levels are in the counter's own unit; of a summation, per second. Either steps, or values that
// hold for step_s each from start_s on.
type truth struct {
	Entity   string       `json:"entity"` // name of a VM or a host
	Counter  string       `json:"counter"`
	Instance string       `json:"instance"`
	Steps    [][3]float64 `json:"steps"` // from, to, level
	StartS   float64      `json:"start_s"`
	StepS    float64      `json:"step_s"`
	Values   []float64    `json:"values"`
	Else     float64      `json:"else"` // the level outside of the steps

	sums []float64 // of the values before each
}

type truthKey struct{ counter, instance string }

// script is all truths, by entity.
type script map[string]map[truthKey]*truth

func newScript(truths []truth) (script, error) {
	s := make(script)
	for i := range truths {
		t := truths[i]
		if t.Entity == "" || t.Counter == "" {
			return nil, fmt.Errorf("truth %d: needs entity and counter", i)
		}
		if len(t.Values) > 0 && t.StepS <= 0 {
			return nil, fmt.Errorf("truth %d: values need step_s above 0", i)
		}
		sort.Slice(t.Steps, func(a, b int) bool { return t.Steps[a][0] < t.Steps[b][0] })
		t.sums = make([]float64, len(t.Values)+1)
		for j, v := range t.Values {
			t.sums[j+1] = t.sums[j] + v
		}
		if s[t.Entity] == nil {
			s[t.Entity] = make(map[truthKey]*truth)
		}
		s[t.Entity][truthKey{t.Counter, t.Instance}] = &t
	}
	return s, nil
}

// find returns the truth of one part; one that names no part is the entity's, or its first part's.
func find(of map[truthKey]*truth, c *counter, instance string, first bool) *truth {
	if t := of[truthKey{c.name, instance}]; t != nil {
		return t
	}
	if first {
		return of[truthKey{c.name, ""}]
	}
	return nil
}

// value is what a window (from, to] of the true clock shows, rounded as a server rounds.
func (t *truth) value(c *counter, from float64, to float64) int64 {
	switch {
	case c.last:
		return int64(math.Round(t.integral(to-1e-3, to) / 1e-3))
	case c.sum:
		return int64(math.Round(t.integral(from, to)))
	}
	return int64(math.Round(t.integral(from, to) / (to - from)))
}

func (t *truth) integral(from float64, to float64) float64 {
	if len(t.Values) > 0 {
		return t.arrayUntil(to) - t.arrayUntil(from) + t.Else*t.outside(from, to)
	}
	sum, covered := 0.0, 0.0
	for _, step := range t.Steps {
		overlap := math.Min(to, step[1]) - math.Max(from, step[0])
		if overlap > 0 {
			sum += overlap * step[2]
			covered += overlap
		}
	}
	return sum + t.Else*(to-from-covered)
}

func (t *truth) arrayUntil(at float64) float64 {
	position := (at - t.StartS) / t.StepS
	if position <= 0 {
		return 0
	}
	if position >= float64(len(t.Values)) {
		return t.sums[len(t.Values)] * t.StepS
	}
	whole := int(position)
	return (t.sums[whole] + (position-float64(whole))*t.Values[whole]) * t.StepS
}

func (t *truth) outside(from float64, to float64) float64 {
	end := t.StartS + t.StepS*float64(len(t.Values))
	inside := math.Min(to, end) - math.Max(from, t.StartS)
	return to - from - math.Max(0, inside)
}

// usual is the value where nothing is scripted: the same each time it is asked for, and unlike
// that of the next window, counter, instance and entity.
func usual(c *counter, e *entity, instance string, window int64, intervalS int64) int64 {
	h := e.seed ^ c.seed
	if instance != "" {
		h ^= hashOf(instance)
	}
	h = mix(h + uint64(window)*0x9e3779b97f4a7c15)
	value := c.low + int64(h%uint64(c.high-c.low+1))
	if c.sum {
		value = value * intervalS / 20
	}
	return value
}
