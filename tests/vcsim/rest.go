package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"
)

const (
	restSession   = "/rest/com/vmware/cis/session"
	restOVF       = "/rest/com/vmware/vcenter/ovf/library-item/"
	restTemplates = "/rest/vcenter/vm-template/library-items/"
	restHeader    = "vmware-api-session-id"
)

// serveREST stands before govmomi's vAPI simulator as the front does before the SOAP one: it checks
// passwords, keeps the sessions and refuses what an account may not do.
func (f *front) serveREST(w http.ResponseWriter, r *http.Request) {
	f.count("rest_calls", 1)
	if f.interrupted(w, r, "") {
		return
	}
	if delay := f.snapshot().DelayS; delay > 0 {
		time.Sleep(seconds(delay))
	}
	action := r.URL.Query().Get("~action")
	if r.URL.Path == restSession && r.Method == http.MethodPost && action == "" {
		f.restLogin(w, r)
		return
	}
	key := r.Header.Get(restHeader)
	f.mu.Lock()
	name, open := f.restSessions[key]
	who := f.state.Users[name]
	f.mu.Unlock()
	switch {
	case !open:
		f.count("not_authenticated", 1)
		restError(w, http.StatusUnauthorized, "unauthenticated", "This method requires authentication.")
	case r.URL.Path == restSession && r.Method == http.MethodDelete:
		f.restLogout(w, r, key)
	case strings.HasPrefix(r.URL.Path, restOVF) && action == "deploy":
		if !who.holds("VApp.Import") {
			f.count("forbidden", 1)
			restError(w, http.StatusForbidden, "unauthorized", "User is not authorized: VApp.Import is missing.")
			return
		}
		f.restDeploy(w, r)
	case strings.HasPrefix(r.URL.Path, restTemplates) && r.Method == http.MethodGet:
		f.restTemplate(w, strings.TrimPrefix(r.URL.Path, restTemplates))
	default:
		f.vapi.ServeHTTP(w, r)
	}
}

func (f *front) restLogin(w http.ResponseWriter, r *http.Request) {
	name, password, _ := r.BasicAuth()
	user, known := f.snapshot().Users[name]
	if !known || user.Password != password {
		f.count("refused_logins", 1)
		restError(w, http.StatusUnauthorized, "unauthenticated", "Authentication required.")
		return
	}
	recorded := httptest.NewRecorder()
	f.vapi.ServeHTTP(recorded, r)
	var answer struct{ Value string }
	if json.Unmarshal(recorded.Body.Bytes(), &answer) == nil && answer.Value != "" {
		f.mu.Lock()
		f.restSessions[answer.Value] = name
		f.counts["rest_logins"]++
		f.mu.Unlock()
	}
	replay(w, recorded)
}

func (f *front) restLogout(w http.ResponseWriter, r *http.Request, key string) {
	f.mu.Lock()
	delete(f.restSessions, key)
	f.counts["rest_logouts"]++
	f.mu.Unlock()
	f.vapi.ServeHTTP(w, r)
}

// restDeploy hands a deployment on, and remembers what the vAPI simulator forgets to pass on.
func (f *front) restDeploy(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var asked struct {
		Spec struct {
			Name       string `json:"name"`
			Annotation string `json:"annotation"`
		} `json:"deployment_spec"`
	}
	if err := json.Unmarshal(body, &asked); err != nil {
		restError(w, http.StatusBadRequest, "invalid_argument", err.Error())
		return
	}
	f.count("deploys", 1)
	f.mu.Lock()
	f.annotations[asked.Spec.Name] = asked.Spec.Annotation
	f.mu.Unlock()
	r.Body = io.NopCloser(bytes.NewReader(body))
	f.vapi.ServeHTTP(w, r)
}

// restTemplate tells which VM template an item holds; the vAPI simulator answers with nothing.
func (f *front) restTemplate(w http.ResponseWriter, item string) {
	f.mu.Lock()
	moid, known := f.templates[item]
	f.mu.Unlock()
	if !known {
		restError(w, http.StatusNotFound, "not_found", "There is no VM template in this item.")
		return
	}
	value := map[string]interface{}{"guest_OS": "OTHER_LINUX_64"}
	if moid != "" {
		value["vm_template"] = moid
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]interface{}{"value": value})
}

func restError(w http.ResponseWriter, status int, kind string, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]interface{}{
		"type": "com.vmware.vapi.std.errors." + kind,
		"value": map[string]interface{}{
			"messages": []map[string]interface{}{{"id": "vcsim." + kind, "default_message": text, "args": []string{}}},
		},
	})
}
