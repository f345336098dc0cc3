package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
)

// serveControl takes one JSON object: settings that stay, actions that happen now.
func (f *front) serveControl(w http.ResponseWriter, r *http.Request) {
	patch, err := io.ReadAll(r.Body)
	if err == nil && len(patch) > 0 {
		err = f.obey(patch)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(f.report())
}

// actions happen once, in the order of the fields.
type actions struct {
	Reset          bool          `json:"reset"` // all settings and counts as at the start
	Hosts          []hostChange  `json:"hosts"`
	VMs            []vmChange    `json:"vms"`
	Stores         []storeChange `json:"datastores"`
	Move           []move        `json:"move"`
	Libraries      []shelf       `json:"libraries"`
	ExpireSessions bool          `json:"expire_sessions"`
	Drop           bool          `json:"drop_connections"`
	ResetCounts    bool          `json:"reset_counts"`
	Inventory      bool          `json:"inventory"` // names and ids are in the report
}

func (f *front) obey(body []byte) error {
	patch := make(map[string]json.RawMessage)
	if err := json.Unmarshal(body, &patch); err != nil {
		return err
	}
	if err := knownKeys(patch); err != nil {
		return err
	}
	var do actions
	if err := json.Unmarshal(body, &do); err != nil {
		return err
	}
	if do.Reset {
		f.apply(defaultState(), nil)
	}
	next, err := f.snapshot().with(patch)
	if err != nil {
		return err
	}
	truths, err := newScript(next.Truth)
	if err != nil {
		return err
	}
	f.apply(next, truths)
	f.mu.Lock()
	f.wantsInventory = do.Inventory
	f.mu.Unlock()
	return f.act(do)
}

func knownKeys(patch map[string]json.RawMessage) error {
	known := append(state{}.names(), jsonNames(reflect.TypeOf(actions{}))...)
	for key := range patch {
		if !contains(known, key) {
			return fmt.Errorf("unknown key %q; known are %s", key, strings.Join(known, ", "))
		}
	}
	return nil
}

func (f *front) apply(next state, truths script) {
	f.mu.Lock()
	f.state, f.script = next, truths
	f.mu.Unlock()
	f.catalogue.withhold(next.MissingCounters)
	setOption("config.vpxd.stats.maxQueryMetrics", next.MaxQueryMetrics)
}

func (f *front) act(do actions) error {
	for _, change := range do.Hosts {
		if err := f.changeHost(change); err != nil {
			return err
		}
	}
	for _, change := range do.VMs {
		if err := f.changeVM(change); err != nil {
			return err
		}
	}
	for _, change := range do.Stores {
		if err := changeStore(change); err != nil {
			return err
		}
	}
	for _, one := range do.Move {
		if err := f.moveVM(one); err != nil {
			return err
		}
	}
	for _, one := range do.Libraries {
		if err := f.addLibrary(one); err != nil {
			return err
		}
	}
	if do.ExpireSessions {
		f.expireSessions()
	}
	if do.Drop {
		f.dropConnections()
	}
	if do.ResetCounts || do.Reset {
		f.mu.Lock()
		f.counts = make(map[string]int64)
		f.queryTimes = nil
		f.mu.Unlock()
	}
	return nil
}

func (f *front) report() map[string]interface{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	counts := make(map[string]int64, len(f.counts)+2)
	for name, n := range f.counts {
		counts[name] = n
	}
	counts["sessions"] = int64(len(f.sessions))
	counts["rest_sessions"] = int64(len(f.restSessions))
	counts["views"] = 0
	for _, s := range f.sessions {
		counts["views"] += int64(len(s.views))
	}
	report := map[string]interface{}{
		"counts":      counts,
		"query_times": f.queryTimes,
		"settings":    f.state.names(),
	}
	if f.wantsInventory {
		report["inventory"] = inventory()
	}
	return report
}
