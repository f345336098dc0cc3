package main

import (
	"bufio"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

type metricID struct {
	counter  int32
	instance string
}

// querySpec is one entity's part of a QueryPerf.
type querySpec struct {
	entity    reference
	start     *time.Time
	end       *time.Time
	max       int
	metrics   []metricID
	intervalS int64
	csv       bool
}

const defaultMaxQueryMetrics = 256

func (f *front) queryPerf(w http.ResponseWriter, _ *http.Request, q request) {
	specs, err := parseQuery(q)
	if err != nil {
		invalidArgument(w, err.Error())
		return
	}
	s := f.snapshot()
	metrics, open := f.countQuery(specs)
	if limit := s.queryLimit(); limit >= 0 && metrics > limit {
		f.count("queries_too_large", 1)
		invalidArgument(w, "querySpec.size")
		return
	}
	f.count("queries_without_start", open)
	if property := f.refused(&s, specs); property != "" {
		invalidArgument(w, property)
		return
	}
	for i := range specs {
		if f.entityOf(entityRef(specs[i].entity)) == nil {
			notFound(w, specs[i].entity)
			return
		}
	}
	f.answerQuery(w, &s, specs)
}

// countQuery keeps account of a query; it returns its metrics and its specs without a start.
func (f *front) countQuery(specs []querySpec) (int, int64) {
	metrics, open := 0, int64(0)
	for i := range specs {
		metrics += len(specs[i].metrics)
		if specs[i].start == nil {
			open++
		}
	}
	now := unixS(f.now())
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts["queries"]++
	f.counts["query_specs"] += int64(len(specs))
	f.counts["query_metrics"] += int64(metrics)
	if int64(metrics) > f.counts["query_metrics_most"] {
		f.counts["query_metrics_most"] = int64(metrics)
	}
	if len(f.queryTimes) < 10_000 {
		f.queryTimes = append(f.queryTimes, now)
	}
	return metrics, open
}

func (s *state) queryLimit() int {
	if s.MaxQueryMetrics == nil {
		return defaultMaxQueryMetrics
	}
	limit, err := strconv.Atoi(*s.MaxQueryMetrics)
	if err != nil {
		return defaultMaxQueryMetrics
	}
	return limit
}

// refused names the property of the query that the server does not take, "" if it takes all.
func (f *front) refused(s *state, specs []querySpec) string {
	for i := range specs {
		if specs[i].csv && s.CSV == "refuse" {
			return "querySpec.format"
		}
		for _, id := range specs[i].metrics {
			if _, known := f.catalogue.byID[id.counter]; !known {
				return fmt.Sprintf("querySpec[%d].metricId", i)
			}
		}
	}
	return ""
}

func notFound(w http.ResponseWriter, r reference) {
	writeFault(w, "The object has already been deleted or has not been completely created",
		"ManagedObjectNotFound", fmt.Sprintf(`<obj type="%s">%s</obj>`, r.kind, escape(r.value)))
}

func invalidArgument(w http.ResponseWriter, property string) {
	writeFault(w, "A specified parameter was not correct: "+property, "InvalidArgument",
		"<invalidProperty>"+escape(property)+"</invalidProperty>")
}

// parseQuery reads the specs by hand: a general decoder would take longer than all the rest.
func parseQuery(q request) ([]querySpec, error) {
	var specs []querySpec
	s := scanner{data: q.body, at: q.at}
	for {
		t, ok := s.next()
		if !ok || (!t.open && t.name == "QueryPerf") {
			return specs, nil
		}
		if t.open && t.name == "querySpec" {
			spec, err := parseSpec(&s)
			if err != nil {
				return nil, err
			}
			specs = append(specs, spec)
		}
	}
}

func parseSpec(s *scanner) (querySpec, error) {
	spec := querySpec{intervalS: 20}
	for {
		t, ok := s.next()
		if !ok {
			return spec, fmt.Errorf("querySpec")
		}
		if t.open {
			if t.name == "entity" {
				spec.entity.kind = t.attr("type")
			}
			if t.name == "metricId" {
				spec.metrics = append(spec.metrics, metricID{})
			}
			continue
		}
		if t.name == "querySpec" {
			return spec, nil
		}
		if err := spec.set(t.name, t.text); err != nil {
			return spec, err
		}
	}
}

func (spec *querySpec) set(name string, text string) error {
	var err error
	switch name {
	case "entity":
		spec.entity.value = text
	case "startTime":
		spec.start, err = parseTime(text)
	case "endTime":
		spec.end, err = parseTime(text)
	case "maxSample":
		spec.max, err = strconv.Atoi(text)
	case "intervalId":
		spec.intervalS, err = strconv.ParseInt(text, 10, 64)
	case "format":
		spec.csv = text == "csv"
	case "counterId":
		var id int64
		id, err = strconv.ParseInt(text, 10, 32)
		spec.metrics[len(spec.metrics)-1].counter = int32(id)
	case "instance":
		spec.metrics[len(spec.metrics)-1].instance = text
	}
	if err != nil {
		return fmt.Errorf("querySpec.%s", name)
	}
	return nil
}

func parseTime(text string) (*time.Time, error) {
	if !strings.ContainsAny(text[len("2006-01-02"):], "Z+-") {
		text += "Z"
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	return &t, err
}

func (f *front) answerQuery(w http.ResponseWriter, s *state, specs []querySpec) {
	w.Header().Set("Content-Type", `text/xml; charset="utf-8"`)
	out := &answer{Writer: bufio.NewWriterSize(w, 1<<16), state: s, front: f}
	out.nowS = unixS(f.now())
	out.vcenterNowS = out.nowS + s.VCenterSkewS
	f.mu.Lock()
	out.script = f.script
	out.down = f.downSince
	f.mu.Unlock()
	_, _ = out.WriteString(envelopeHead + `<QueryPerfResponse xmlns="urn:vim25">`)
	for i := range specs {
		out.entity(&specs[i])
	}
	_, _ = out.WriteString(`</QueryPerfResponse>` + envelopeTail)
	_ = out.Flush()
	f.count("samples", out.samples)
}
