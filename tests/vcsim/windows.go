package main

import (
	"math"
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

// window is one sample's time: its stamp on the clock of the host that took it, and its end on the
// true clock.
type window struct {
	stampS int64
	endS   float64
}

// reach is which windows a query may see.
type reach struct {
	intervalS int64
	afterS    float64 // exclusive; stamps
	untilS    float64 // inclusive; stamps
	max       int
}

var keptS = map[int64]float64{20: 3600, 300: 86400, 1800: 7 * 86400, 7200: 31 * 86400, 86400: 366 * 86400}

// windows lists an entity's samples within reach, oldest first: those that have been posted by now
// and are not yet forgotten, without those that never came.
func (s *state) windows(e *entity, r reach, downSince map[string]float64, nowS float64) []window {
	kept, ok := keptS[r.intervalS]
	if !ok || !e.on {
		return nil
	}
	if r.intervalS == 20 && s.RetentionS > 0 {
		kept = s.RetentionS
	}
	step := float64(r.intervalS)
	var found []window
	for at, stay := range e.hosts {
		skew := s.stampSkew(stay.host)
		from := math.Max(nowS-kept, stay.fromS)
		to := nowS - s.LagS
		if at+1 < len(e.hosts) {
			to = math.Min(to, e.hosts[at+1].fromS)
		}
		if since, down := downSince[stay.host]; down {
			to = math.Min(to, since)
		}
		first := math.Floor((math.Max(from+skew, r.afterS))/step) + 1
		for n := first; n*step <= math.Min(to+skew, r.untilS); n++ {
			w := window{stampS: int64(n * step), endS: n*step - skew}
			if !s.withheld(e, w, nowS) {
				found = append(found, w)
			}
		}
	}
	if r.max > 0 && len(found) > r.max {
		found = found[len(found)-r.max:]
	}
	return found
}

// stretch is a part of the true time of some entity ("" all) and counter ("" all).
type stretch struct {
	Entity  string  `json:"entity"`
	Counter string  `json:"counter"`
	FromS   float64 `json:"from_s"`
	ToS     float64 `json:"to_s"`
	LagS    float64 `json:"lag_s"`
}

func (p stretch) holds(e *entity, w window) bool {
	return (p.Entity == "" || p.Entity == e.name) && p.FromS < w.endS && w.endS <= p.ToS
}

func (s *state) withheld(e *entity, w window, nowS float64) bool {
	for _, gap := range s.Gaps {
		if gap.holds(e, w) {
			return true
		}
	}
	for _, late := range s.Late {
		if late.holds(e, w) && w.endS+late.LagS > nowS {
			return true
		}
	}
	return false
}

// negative tells which samples a server shows as -1, the sign of a missing one.
func (s *state) negative(e *entity, c *counter, w window) bool {
	for _, n := range s.Negatives {
		if n.holds(e, w) && (n.Counter == "" || n.Counter == c.name) {
			return true
		}
	}
	return false
}

// stampSkew is how far a host's stamps run ahead: its own setting, else that of its clock.
func (s *state) stampSkew(host string) float64 {
	if skew, ok := skewOf(s.StampSkewS, host); ok {
		return skew
	}
	skew, _ := skewOf(s.HostSkewS, host)
	return skew
}

// skewOf looks a host up, then "*", which stands for all.
func skewOf(skews map[string]float64, host string) (float64, bool) {
	if skew, ok := skews[host]; ok {
		return skew, true
	}
	skew, ok := skews["*"]
	return skew, ok
}

func unixS(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }

func entityRef(r reference) types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: r.kind, Value: r.value}
}
