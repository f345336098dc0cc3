package main

import (
	"bufio"
	"strconv"
	"time"
)

// answer writes the samples of a QueryPerf as it computes them.
type answer struct {
	*bufio.Writer
	state       *state
	front       *front
	script      script
	down        map[string]float64
	nowS        float64
	vcenterNowS float64
	samples     int64
	scratch     []byte
}

func (a *answer) entity(spec *querySpec) {
	e := a.front.entityOf(entityRef(spec.entity))
	if e == nil {
		return
	}
	windows := a.arranged(a.state.windows(e, a.reach(spec), a.down, a.nowS))
	csv := spec.csv && a.state.CSV != "ignore"
	a.head(e, csv)
	a.stamps(windows, spec.intervalS, csv)
	counters := a.front.catalogue.kinds[spec.entity.kind]
	metrics := spec.metrics
	if len(metrics) == 0 {
		metrics = a.front.available(a.state, e, spec.intervalS)
	}
	for _, id := range metrics {
		for i := range counters {
			if counters[i].id == id.counter && a.state.keeps(&counters[i], spec.intervalS) {
				a.parts(e, &counters[i], id.instance, windows, spec.intervalS, csv)
			}
		}
	}
	_, _ = a.WriteString(`</returnval>`)
}

func (a *answer) reach(spec *querySpec) reach {
	r := reach{intervalS: spec.intervalS, max: spec.max, untilS: a.vcenterNowS + 1e9}
	if spec.start != nil {
		r.afterS = unixS(*spec.start)
	}
	if spec.end != nil {
		r.untilS = unixS(*spec.end)
	}
	return r
}

// arranged puts the samples in the order of this server, some of them twice.
func (a *answer) arranged(windows []window) []window {
	if n := a.state.RepeatEvery; n > 0 {
		var repeated []window
		for _, w := range windows {
			repeated = append(repeated, w)
			if (w.stampS/20)%int64(n) == 0 {
				repeated = append(repeated, w)
			}
		}
		windows = repeated
	}
	if a.state.Order == "newest" {
		for i, j := 0, len(windows)-1; i < j; i, j = i+1, j-1 {
			windows[i], windows[j] = windows[j], windows[i]
		}
	}
	return windows
}

func (a *answer) head(e *entity, csv bool) {
	kind := "PerfEntityMetric"
	if csv {
		kind = "PerfEntityMetricCSV"
	}
	_, _ = a.WriteString(`<returnval xsi:type="` + kind + `"><entity type="` + e.ref.Type + `">` +
		e.ref.Value + `</entity>`)
}

func (a *answer) stamps(windows []window, intervalS int64, csv bool) {
	if csv {
		_, _ = a.WriteString(`<sampleInfoCSV>`)
	}
	interval := strconv.FormatInt(intervalS, 10)
	for i, w := range windows {
		at := time.Unix(w.stampS, 0).UTC().Format("2006-01-02T15:04:05Z")
		switch {
		case !csv:
			_, _ = a.WriteString(`<sampleInfo><timestamp>` + at + `</timestamp><interval>` + interval +
				`</interval></sampleInfo>`)
		case i == 0:
			_, _ = a.WriteString(interval + "," + at)
		default:
			_, _ = a.WriteString("," + interval + "," + at)
		}
	}
	if csv {
		_, _ = a.WriteString(`</sampleInfoCSV>`)
	}
}

// parts writes the series of one metric id: one, or with "*" all that there are.
func (a *answer) parts(e *entity, c *counter, asked string, windows []window, intervalS int64, csv bool) {
	first := true
	for _, instance := range c.instances(e) {
		if asked == "*" || asked == instance {
			a.series(e, c, instance, first, windows, intervalS, csv)
		}
		first = false
	}
}

func (a *answer) series(
	e *entity, c *counter, instance string, first bool, windows []window, intervalS int64, csv bool,
) {
	b := a.scratch[:0]
	if csv {
		b = append(b, `<value><id><counterId>`...)
	} else {
		b = append(b, `<value xsi:type="PerfMetricIntSeries"><id><counterId>`...)
	}
	b = strconv.AppendInt(b, int64(c.id), 10)
	b = append(b, `</counterId><instance>`...)
	b = append(b, escape(instance)...)
	b = append(b, `</instance></id>`...)
	if csv {
		b = append(b, `<value>`...)
	}
	scripted := find(a.script[e.name], c, instance, first)
	for i, w := range windows {
		value := a.value(e, c, instance, scripted, w, intervalS)
		if csv {
			if i > 0 {
				b = append(b, ',')
			}
			b = strconv.AppendInt(b, value, 10)
		} else {
			b = append(b, `<value>`...)
			b = strconv.AppendInt(b, value, 10)
			b = append(b, `</value>`...)
		}
	}
	if csv {
		b = append(b, `</value>`...)
	}
	b = append(b, `</value>`...)
	_, _ = a.Write(b)
	a.scratch = b
	a.samples += int64(len(windows))
}

func (a *answer) value(
	e *entity, c *counter, instance string, scripted *truth, w window, intervalS int64,
) int64 {
	if len(a.state.Negatives) > 0 && a.state.negative(e, c, w) {
		return -1
	}
	if scripted != nil {
		return scripted.value(c, w.endS-float64(intervalS), w.endS)
	}
	return usual(c, e, instance, w.stampS/intervalS, intervalS)
}
