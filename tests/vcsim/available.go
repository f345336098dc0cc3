package main

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// keeps tells whether this server has a counter's samples: all in realtime, by level in history.
func (s *state) keeps(c *counter, intervalS int64) bool {
	for _, name := range s.HiddenCounters {
		if name == c.name {
			return false
		}
	}
	for _, name := range s.MissingCounters {
		if name == c.name {
			return false
		}
	}
	return intervalS == 20 || c.level <= s.StatsLevel
}

func (f *front) available(s *state, e *entity, intervalS int64) []metricID {
	var found []metricID
	counters := f.catalogue.kinds[e.ref.Type]
	for i := range counters {
		if !s.keeps(&counters[i], intervalS) {
			continue
		}
		for _, instance := range counters[i].instances(e) {
			found = append(found, metricID{counters[i].id, instance})
		}
	}
	return found
}

func (f *front) queryAvailable(w http.ResponseWriter, _ *http.Request, q request) {
	asked := q.tree()
	entity := asked.child("entity")
	if entity == nil {
		invalidArgument(w, "entity")
		return
	}
	e := f.entityOf(entityRef(reference{entity.kind, entity.text}))
	var text strings.Builder
	if e != nil {
		s := f.snapshot()
		intervalS := int64(20)
		if given := asked.value("intervalId"); given != "" {
			intervalS, _ = strconv.ParseInt(given, 10, 64)
		}
		ids := f.available(&s, e, intervalS)
		if s.StrayCounter {
			ids = append(ids, metricID{counter: f.catalogue.stray})
		}
		for _, id := range ids {
			fmt.Fprintf(&text, `<returnval><counterId>%d</counterId><instance>%s</instance></returnval>`,
				id.counter, escape(id.instance))
		}
	}
	writeAnswer(w, "QueryAvailablePerfMetricResponse", text.String())
}
