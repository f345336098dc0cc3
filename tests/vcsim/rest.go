package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"
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
		f.restLogout(key)
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
		f.askVAPI(w, r)
	}
}

// restLogin opens a session of the front's own: the vAPI simulator takes any password, and answers
// no login while it deploys.
func (f *front) restLogin(w http.ResponseWriter, r *http.Request) {
	name, password, _ := r.BasicAuth()
	user, known := f.snapshot().Users[name]
	if !known || user.Password != password {
		f.count("refused_logins", 1)
		restError(w, http.StatusUnauthorized, "unauthenticated", "Authentication required.")
		return
	}
	key := uuid.New().String()
	f.mu.Lock()
	f.restSessions[key] = name
	f.counts["rest_logins"]++
	f.mu.Unlock()
	restValue(w, key)
}

func (f *front) restLogout(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.restSessions, key)
	f.counts["rest_logouts"]++
}

// askVAPI lets the vAPI simulator answer, in the one session that the front has with it.
func (f *front) askVAPI(w http.ResponseWriter, r *http.Request) {
	r.Header.Set(restHeader, f.vapiSession)
	f.vapi.ServeHTTP(w, r)
}

// deployment is what the vAPI simulator forgets to pass on.
type deployment struct {
	annotation string
	client     context.Context // over when the client has left
}

// restDeploy hands a deployment on.
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
	f.deploying[asked.Spec.Name] = deployment{asked.Spec.Annotation, r.Context()}
	f.mu.Unlock()
	r.Body = io.NopCloser(bytes.NewReader(body))
	f.askVAPI(w, r)
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
	value := fields{"guest_OS": "OTHER_LINUX_64"}
	if moid != "" {
		value["vm_template"] = moid
	}
	restValue(w, value)
}

func restValue(w http.ResponseWriter, value interface{}) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(fields{"value": value})
}

func restError(w http.ResponseWriter, status int, kind string, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(fields{
		"type": "com.vmware.vapi.std.errors." + kind,
		"value": fields{
			"messages": []fields{{"id": "vcsim." + kind, "default_message": text, "args": []string{}}},
		},
	})
}
