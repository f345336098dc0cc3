package main

import (
	"bytes"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// ownPath is a property that a server can be asked for and the simulator cannot: the virtual NUMA,
// and one key of a VM's extraConfig.
var ownPath = regexp.MustCompile(
	`<(?:\w+:)?pathSet>(config\.numaInfo|config\.extraConfig\[(?:"|&quot;)[^<]+(?:"|&quot;)\])</(?:\w+:)?pathSet>`)

func ownPaths(body []byte) []string {
	if !bytes.Contains(body, []byte("config.numaInfo")) && !bytes.Contains(body, []byte("config.extraConfig[")) {
		return nil
	}
	var paths []string
	for _, match := range ownPath.FindAllSubmatch(body, -1) {
		paths = append(paths, unescape(match[1]))
	}
	return paths
}

// withOwnPaths asks the simulator for the properties that it knows and adds the others.
func (f *front) withOwnPaths(w http.ResponseWriter, r *http.Request, q request, paths []string) {
	q.body = ownPath.ReplaceAll(q.body, nil)
	recorded := f.record(r, q)
	if recorded.Code == http.StatusOK {
		answer := f.addPaths(recorded.Body.String(), paths)
		recorded.Body.Reset()
		recorded.Body.WriteString(answer)
		recorded.Header().Del("Content-Length")
	}
	replay(w, recorded)
}

// addPaths puts our properties behind the name of each VM in the answer.
func (f *front) addPaths(answer string, paths []string) string {
	const opening, closing = `<obj type="VirtualMachine">`, `</obj>`
	var out strings.Builder
	for {
		at := strings.Index(answer, opening)
		if at < 0 {
			out.WriteString(answer)
			return out.String()
		}
		end := at + strings.Index(answer[at:], closing)
		ref := types.ManagedObjectReference{Type: "VirtualMachine", Value: answer[at+len(opening) : end]}
		out.WriteString(answer[:end+len(closing)])
		if vm, ok := simulator.Map.Get(ref).(*simulator.VirtualMachine); ok {
			for _, path := range paths {
				out.WriteString(f.pathXML(vm, path))
			}
		}
		answer = answer[end+len(closing):]
	}
}

func (f *front) pathXML(vm *simulator.VirtualMachine, path string) string {
	if path == "config.numaInfo" {
		return f.numaXML(vm)
	}
	key := strings.TrimSuffix(strings.TrimPrefix(path, `config.extraConfig["`), `"]`)
	for _, option := range vm.Config.ExtraConfig {
		one := option.GetOptionValue()
		if one.Key == key {
			return fmt.Sprintf(`<propSet><name>%s</name><val xsi:type="OptionValue"><key>%s</key>`+
				`<value xsi:type="xsd:string">%s</value></val></propSet>`,
				escape(path), escape(key), escape(fmt.Sprint(one.Value)))
		}
	}
	return ""
}
