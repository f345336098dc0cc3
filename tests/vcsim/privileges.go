package main

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator/esx"
)

var readerPrivileges = []string{"System.Anonymous", "System.View", "System.Read"}

// needed is the privilege that a method asks for, where it is more than to be logged in.
var needed = map[string]string{
	"CloneVM_Task":        "VirtualMachine.Provisioning.Clone",
	"CreateVM_Task":       "VirtualMachine.Inventory.Create",
	"CreateFolder":        "Folder.Create",
	"Destroy_Task":        "VirtualMachine.Inventory.Delete",
	"PowerOffVM_Task":     "VirtualMachine.Interact.PowerOff",
	"PowerOnVM_Task":      "VirtualMachine.Interact.PowerOn",
	"QueryDateTime":       "System.Read",
	"QueryPerf":           "System.Read",
	"ReconfigVM_Task":     "VirtualMachine.Config.Settings",
	"RelocateVM_Task":     "Resource.ColdMigrate",
	"UpdateOptions":       "Global.Settings",
	"UpdateDateTime":      "Host.Config.DateTime",
	"MarkAsTemplate":      "VirtualMachine.Provisioning.MarkAsTemplate",
	"ShutdownGuest":       "VirtualMachine.Interact.PowerOff",
	"TerminateSession":    "Sessions.TerminateSession",
	"CreateSnapshot_Task": "VirtualMachine.State.CreateSnapshot",
}

// holds tells whether a user has a privilege; the simulator knows no objects without.
func (u user) holds(privilege string) bool {
	if contains(u.Missing, privilege) {
		return false
	}
	return u.Only == nil || contains(u.Only, privilege)
}

func (f *front) forbidden(w http.ResponseWriter, key string, q request) bool {
	if q.method == "QueryOptions" && f.snapshot().OptionsForbidden {
		noPermission(w, q.this, "Global.Settings")
		return true
	}
	privilege, ok := needed[q.method]
	if !ok || f.userOf(key).holds(privilege) {
		return false
	}
	f.count("forbidden", 1)
	noPermission(w, q.this, privilege)
	return true
}

func noPermission(w http.ResponseWriter, on reference, privilege string) {
	writeFault(w, "Permission to perform this operation was denied.", "NoPermission",
		fmt.Sprintf(`<object type="%s">%s</object><privilegeId>%s</privilegeId>`,
			on.kind, escape(on.value), privilege))
}

func (f *front) userOf(key string) user {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.sessions[key]; s != nil {
		return f.state.Users[s.user]
	}
	return user{Only: []string{}}
}

// asked is the user of whom a question on privileges is: named, or by his session.
func (f *front) asked(q *element) user {
	if name := q.value("userName"); name != "" {
		return f.snapshot().Users[name]
	}
	return f.userOf(q.value("sessionId"))
}

func (f *front) hasPrivileges(w http.ResponseWriter, _ *http.Request, q request) {
	question := q.tree()
	who := f.asked(question)
	var text strings.Builder
	for _, entity := range append(question.all("entity"), question.all("entities")...) {
		text.WriteString(`<returnval>` + entityXML(entity))
		for _, privilege := range question.all("privId") {
			fmt.Fprintf(&text, `<privAvailability><privId>%s</privId><isGranted>%t</isGranted></privAvailability>`,
				escape(privilege.text), who.holds(privilege.text))
		}
		text.WriteString(`</returnval>`)
	}
	writeAnswer(w, q.method+"Response", text.String())
}

func (f *front) hasPrivilegesOne(w http.ResponseWriter, _ *http.Request, q request) {
	question := q.tree()
	who := f.asked(question)
	var text strings.Builder
	for _, privilege := range question.all("privId") {
		fmt.Fprintf(&text, `<returnval>%t</returnval>`, who.holds(privilege.text))
	}
	writeAnswer(w, q.method+"Response", text.String())
}

func (f *front) fetchPrivileges(w http.ResponseWriter, _ *http.Request, q request) {
	question := q.tree()
	who := f.asked(question)
	var text strings.Builder
	for _, entity := range question.all("entities") {
		text.WriteString(`<returnval>` + entityXML(entity))
		for _, privilege := range object.AuthorizationRoleList(esx.RoleList).ByName("Admin").Privilege {
			if who.holds(privilege) {
				text.WriteString(`<privileges>` + privilege + `</privileges>`)
			}
		}
		text.WriteString(`</returnval>`)
	}
	writeAnswer(w, q.method+"Response", text.String())
}

func entityXML(e *element) string {
	return fmt.Sprintf(`<entity type="%s">%s</entity>`, e.kind, escape(e.text))
}
