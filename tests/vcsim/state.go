package main

import (
	"encoding/json"
	"fmt"
	"reflect"
	"sort"
	"strings"
)

// state is all that can be told to the server while it runs. A key that /control is given takes
// the place of its former value, lists and maps included.
type state struct {
	Users   map[string]user `json:"users"`
	Outages []outage        `json:"outages"`

	TimeShiftS        float64            `json:"time_shift_s"` // of all that the server takes for now
	OptionsForbidden  bool               `json:"options_forbidden"`
	VCenterSkewS      float64            `json:"vcenter_skew_s"` // of CurrentTime
	HostSkewS         map[string]float64 `json:"host_skew_s"`    // of a host's own clock, by name or "*"
	StampSkewS        map[string]float64 `json:"stamp_skew_s"`   // of its samples; else as its clock
	HostDateForbidden bool               `json:"host_date_forbidden"`

	Truth           []truth   `json:"truth"`
	LagS            float64   `json:"lag_s"`
	Late            []stretch `json:"late"`
	Gaps            []stretch `json:"gaps"`
	Negatives       []stretch `json:"negatives"`
	RepeatEvery     int       `json:"repeat_every"` // each nth sample comes twice
	Order           string    `json:"order"`        // oldest or newest first
	CSV             string    `json:"csv"`          // yes, ignore (answers normal), refuse
	RetentionS      float64   `json:"retention_s"`  // of realtime samples
	StatsLevel      int32     `json:"stats_level"`  // of history
	MaxQueryMetrics *string   `json:"max_query_metrics"`
	HiddenCounters  []string  `json:"hidden_counters"`  // in the table, but without samples
	MissingCounters []string  `json:"missing_counters"` // not even in the table
	StrayCounter    bool      `json:"stray_counter"`    // availability lists an id without metadata

	TaskS     float64    `json:"task_s"` // how long each task takes
	FailTasks []failTask `json:"fail_tasks"`
	DelayS    float64    `json:"delay_s"`   // before each answer
	RollBack  bool       `json:"roll_back"` // a deployment whose client leaves is undone
}

type user struct {
	Password string   `json:"password"`
	Only     []string `json:"only"`    // the privileges held; null: all
	Missing  []string `json:"missing"` // privileges taken away from those
}

func defaultState() state {
	limit := "256"
	return state{
		Users: map[string]user{
			"administrator@vsphere.local": {Password: "vcsim-secret-7f9c"},
			"reader@vsphere.local":        {Password: "vcsim-reader-3b1e&<", Only: readerPrivileges},
		},
		Order:           "oldest",
		CSV:             "yes",
		StatsLevel:      1,
		MaxQueryMetrics: &limit,
		StrayCounter:    true,
	}
}

func (f *front) snapshot() state {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state
}

// with returns the state with the keys of the patch that are its own.
func (s state) with(patch map[string]json.RawMessage) (state, error) {
	value := reflect.ValueOf(&s).Elem()
	for i := 0; i < value.NumField(); i++ {
		name := value.Type().Field(i).Tag.Get("json")
		raw, given := patch[name]
		if !given {
			continue
		}
		fresh := reflect.New(value.Field(i).Type())
		if err := json.Unmarshal(raw, fresh.Interface()); err != nil {
			return s, fmt.Errorf("%s: %w", name, err)
		}
		value.Field(i).Set(fresh.Elem())
	}
	return s, s.check()
}

func (s state) check() error {
	for _, choice := range []struct {
		name, value string
		known       []string
	}{
		{"order", s.Order, []string{"oldest", "newest"}},
		{"csv", s.CSV, []string{"yes", "ignore", "refuse"}},
	} {
		if !contains(choice.known, choice.value) {
			return fmt.Errorf("%s = %q: known are %s", choice.name, choice.value,
				strings.Join(choice.known, ", "))
		}
	}
	for _, o := range s.Outages {
		if !contains(outageModes, o.Mode) {
			return fmt.Errorf("outage mode %q: known are %s", o.Mode, strings.Join(outageModes, ", "))
		}
	}
	return nil
}

// names are the keys that stay set, as against the actions of a moment.
func (s state) names() []string { return jsonNames(reflect.TypeOf(s)) }

func jsonNames(kind reflect.Type) []string {
	var names []string
	for i := 0; i < kind.NumField(); i++ {
		names = append(names, kind.Field(i).Tag.Get("json"))
	}
	sort.Strings(names)
	return names
}

func contains(list []string, wanted string) bool {
	for _, one := range list {
		if one == wanted {
			return true
		}
	}
	return false
}
