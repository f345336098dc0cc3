package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/vmware/govmomi/vim25/soap"
)

// login checks name and password (the simulator takes any) and keeps the session.
func (f *front) login(w http.ResponseWriter, r *http.Request, q request) {
	asked := q.tree()
	name := asked.value("userName")
	password := ""
	if given := asked.child("password"); given != nil {
		password = given.text
	}
	f.mu.Lock()
	user, known := f.state.Users[name]
	f.mu.Unlock()
	if !known || user.Password != password {
		f.count("refused_logins", 1)
		writeFault(w, "Cannot complete login due to an incorrect user name or password.",
			"InvalidLogin", "")
		return
	}
	r.Header.Del("Cookie") // a stale cookie is no reason to refuse a login
	recorded := f.record(r, q)
	for _, cookie := range recorded.Result().Cookies() {
		if cookie.Name == soap.SessionCookieName && recorded.Code == http.StatusOK {
			f.mu.Lock()
			f.sessions[cookie.Value] = &session{user: name, views: make(map[string]struct{})}
			f.counts["logins"]++
			f.mu.Unlock()
		}
	}
	replay(w, recorded)
}

// expireSessions ends all sessions as a server does that has waited too long; their views go too.
func (f *front) expireSessions() {
	f.mu.Lock()
	gone := f.sessions
	f.sessions = make(map[string]*session)
	f.restSessions = make(map[string]string)
	f.counts["expired"] += int64(len(gone))
	f.mu.Unlock()
	for key := range gone {
		f.innerLogout(key)
	}
}

func (f *front) innerLogout(key string) {
	f.askInner(key, sessionCall("Logout", ""))
}

// ownLogin opens a session with the simulator for the front itself; no client sees or counts it.
func (f *front) ownLogin() string {
	recorded := f.askInner("", sessionCall("Login", `<userName>front</userName><password>x</password>`))
	for _, cookie := range recorded.Result().Cookies() {
		if cookie.Name == soap.SessionCookieName {
			return cookie.Value
		}
	}
	return ""
}

func sessionCall(method string, inside string) string {
	return fmt.Sprintf(`%s<%s xmlns="urn:vim25"><_this type="SessionManager">SessionManager</_this>%s</%s>%s`,
		envelopeHead, method, inside, method, envelopeTail)
}

func (f *front) askInner(key string, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "/sdk", strings.NewReader(body))
	r.Header.Set("Cookie", fmt.Sprintf("%s=%s", soap.SessionCookieName, key))
	recorded := httptest.NewRecorder()
	f.inner.ServeHTTP(recorded, r)
	return recorded
}
