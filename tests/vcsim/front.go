package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// versions are the API's, newest first; a server speaks its own and the older ones.
var versions = []string{
	"8.0.2.0", "8.0.1.0", "8.0.0.1", "7.0.3.0", "7.0.2.0", "7.0.1.0", "7.0", "6.9.1", "6.7.3", "6.7",
	"6.5", "6.0", "5.5",
}

func versionsXML(own string) string {
	older := versions
	for i, version := range versions {
		if version == own {
			older = versions[i+1:]
		}
	}
	return `<?xml version="1.0" encoding="UTF-8"?><namespaces version="1.0"><namespace>` +
		`<name>urn:vim25</name><version>` + own + `</version><priorVersions><version>` +
		strings.Join(older, `</version><version>`) + `</version></priorVersions></namespace></namespaces>`
}

// front stands before the simulator: it sees each request first.
type front struct {
	inner http.Handler
	api   string

	mu       sync.Mutex // guards all below
	state    state
	sessions map[string]*session
	counts   map[string]int64
	script   script
	conns    map[net.Conn]struct{}

	stays          map[string][]stay  // of moved VMs, by id
	downSince      map[string]float64 // hosts that are not there, by name
	gpus           map[string][]gpu   // by the host's id
	numa           map[string]numaInfo
	configs        map[string]*types.VirtualMachineConfigInfo // of VMs that are inaccessible, by id
	queryTimes     []float64
	wantsInventory bool

	restSessions map[string]string     // users by REST session
	deploying    map[string]deployment // by name of the VM
	templates    map[string]string     // VM templates by their library item; "": not told
	transfers    map[string]transfer   // imports that still copy disks, by lease

	catalogue   *catalogue
	vapi        http.Handler
	vapiSession string
}

// session is an open login: ours, since the simulator's own are private.
type session struct {
	user  string
	views map[string]struct{}
}

type handler func(f *front, w http.ResponseWriter, r *http.Request, q request)

// answers are the methods that never reach the simulator.
var answers = map[string]handler{
	"CurrentTime":                  (*front).currentTime,
	"QueryDateTime":                (*front).queryDateTime,
	"QueryPerf":                    (*front).queryPerf,
	"RefreshDatastore":             (*front).refreshed,
	"RefreshDatastoreStorageInfo":  (*front).refreshed,
	"QueryEvents":                  (*front).queryEvents,
	"QueryAvailablePerfMetric":     (*front).queryAvailable,
	"HasPrivilegeOnEntities":       (*front).hasPrivileges,
	"HasUserPrivilegeOnEntities":   (*front).hasPrivileges,
	"FindAllByUuid":                (*front).findAll,
	"FetchUserPrivilegeOnEntities": (*front).fetchPrivileges,
	"HasPrivilegeOnEntity":         (*front).hasPrivilegesOne,
}

func newFront(inner http.Handler, o options) *front {
	furnish()
	addLight(o.light)
	f := &front{
		inner:     inner,
		api:       o.api,
		sessions:  make(map[string]*session),
		conns:     make(map[net.Conn]struct{}),
		counts:    make(map[string]int64),
		stays:     make(map[string][]stay),
		downSince: make(map[string]float64),
		gpus:      make(map[string][]gpu),
		numa:      make(map[string]numaInfo),
		configs:   make(map[string]*types.VirtualMachineConfigInfo),

		restSessions: make(map[string]string),
		deploying:    make(map[string]deployment),
		templates:    make(map[string]string),
		transfers:    make(map[string]transfer),

		catalogue: newCatalogue(o.shuffle, o.seed),
	}
	f.addBrowsers()
	f.apply(defaultState(), nil)
	return f
}

func (f *front) serveAPI(listener net.Listener, certificate tls.Certificate) error {
	server := &http.Server{
		Handler:  f,
		ErrorLog: log.New(io.Discard, "", 0), // a client that does not trust us is no news
	}
	server.ConnState = f.track
	config := &tls.Config{Certificates: []tls.Certificate{certificate}}
	return server.Serve(tls.NewListener(&gate{Listener: listener, front: f}, config))
}

func (f *front) track(c net.Conn, s http.ConnState) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s == http.StateClosed || s == http.StateHijacked {
		delete(f.conns, c)
	} else {
		f.conns[c] = struct{}{}
	}
}

// dropConnections closes what clients keep open, without a word, as a proxy before a server does.
func (f *front) dropConnections() {
	f.mu.Lock()
	open := make([]net.Conn, 0, len(f.conns))
	for c := range f.conns {
		open = append(open, c)
	}
	f.mu.Unlock()
	for _, c := range open {
		_ = c.Close()
	}
}

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasSuffix(r.URL.Path, "vimServiceVersions.xml") {
		if !f.interrupted(w, r, "") {
			_, _ = io.WriteString(w, versionsXML(f.api))
		}
		return
	}
	if strings.HasPrefix(r.URL.Path, "/rest/") {
		f.serveREST(w, r)
		return
	}
	if !strings.HasPrefix(r.URL.Path, "/sdk") || r.Method != http.MethodPost {
		f.inner.ServeHTTP(w, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	q, ok := parseRequest(body)
	if !ok {
		http.Error(w, "no SOAP method in the request", http.StatusBadRequest)
		return
	}
	f.dispatch(w, r, q)
}

func (f *front) dispatch(w http.ResponseWriter, r *http.Request, q request) {
	f.count("calls", 1)
	f.count("calls."+q.method, 1)
	if f.interrupted(w, r, q.method) {
		return
	}
	if delay := f.snapshot().DelayS; delay > 0 {
		time.Sleep(seconds(delay))
	}
	key := sessionKey(r)
	if q.method == "Login" {
		f.login(w, r, q)
		return
	}
	if !f.isOpen(key) && !anonymous(q) {
		f.count("not_authenticated", 1)
		writeFault(w, "The session is not authenticated.", "NotAuthenticated",
			fmt.Sprintf(`<object type="%s">%s</object><privilegeId>System.View</privilegeId>`,
				q.this.kind, escape(q.this.value)))
		return
	}
	if f.forbidden(w, key, q) {
		return
	}
	if answer, ok := answers[q.method]; ok {
		answer(f, w, r, q)
		return
	}
	if paths := ownPaths(q.body); len(paths) > 0 {
		f.withOwnPaths(w, r, q, paths)
		return
	}
	if strings.HasSuffix(q.method, "_Task") {
		f.task(w, r, q)
		return
	}
	f.handOn(w, r, q)
}

// anonymous tells what may be asked without a login.
func anonymous(q request) bool {
	switch q.method {
	case "RetrieveServiceContent":
		return true
	case "Fetch", "RetrieveProperties", "RetrievePropertiesEx":
		return bytes.Contains(q.body, []byte(">ServiceInstance<")) ||
			bytes.Contains(q.body, []byte(">SessionManager<"))
	}
	return false
}

// handOn lets the simulator answer, and keeps account of sessions and views.
func (f *front) handOn(w http.ResponseWriter, r *http.Request, q request) {
	switch q.method {
	case "Logout", "CreateContainerView", "CreateListView", "CreateInventoryView", "DestroyView":
	default:
		f.forward(w, r, q)
		return
	}
	recorded := f.record(r, q)
	if recorded.Code == http.StatusOK {
		f.account(sessionKey(r), q, recorded.Body.Bytes())
	}
	replay(w, recorded)
}

func (f *front) account(key string, q request, answer []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.sessions[key]
	if s == nil {
		return
	}
	switch q.method {
	case "Logout":
		f.counts["views_left"] += int64(len(s.views))
		f.counts["logouts"]++
		delete(f.sessions, key)
	case "DestroyView":
		delete(s.views, q.this.value)
	default:
		s.views[returned(answer)] = struct{}{}
		f.counts["views_made"]++
	}
}

// returned is the text of the answer's <returnval>.
func returned(answer []byte) string {
	s := scanner{data: answer}
	for {
		t, ok := s.next()
		if !ok {
			return ""
		}
		if t.open && t.name == "returnval" {
			end, _ := s.next()
			return end.text
		}
	}
}

func (f *front) forward(w http.ResponseWriter, r *http.Request, q request) {
	r.Body = io.NopCloser(bytes.NewReader(q.body))
	f.inner.ServeHTTP(w, r)
}

func (f *front) record(r *http.Request, q request) *httptest.ResponseRecorder {
	recorded := httptest.NewRecorder()
	f.forward(recorded, r, q)
	return recorded
}

func replay(w http.ResponseWriter, recorded *httptest.ResponseRecorder) {
	for name, values := range recorded.Header() {
		w.Header()[name] = values
	}
	w.WriteHeader(recorded.Code)
	_, _ = w.Write(recorded.Body.Bytes())
}

func sessionKey(r *http.Request) string {
	cookie, err := r.Cookie(soap.SessionCookieName)
	if err != nil {
		return ""
	}
	return strings.Trim(cookie.Value, `"`)
}

func (f *front) isOpen(key string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sessions[key] != nil
}

func (f *front) count(name string, n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts[name] += n
}

func (f *front) currentTime(w http.ResponseWriter, _ *http.Request, _ request) {
	skew := f.snapshot().VCenterSkewS
	writeAnswer(w, "CurrentTimeResponse",
		"<returnval>"+stamp(f.now().Add(seconds(skew)))+"</returnval>")
}

// refreshed is the answer to who wants a datastore measured: it has the room that it was told.
func (f *front) refreshed(w http.ResponseWriter, _ *http.Request, q request) {
	writeAnswer(w, q.method+"Response", "")
}

// now is the true time: this machine's, or as far from it as /control says.
func (f *front) now() time.Time {
	return time.Now().Add(seconds(f.snapshot().TimeShiftS))
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z") }
