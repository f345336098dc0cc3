package main

import (
	"fmt"
	"net/http"
	"sort"
	"strings"

	"github.com/vmware/govmomi/simulator"
)

// findAll is FindAllByUuid of virtual machines: the simulator finds one alone, by the UUID that it
// had when it was made.
func (f *front) findAll(w http.ResponseWriter, _ *http.Request, q request) {
	asked := q.tree()
	byInstance := asked.value("instanceUuid") == "true"
	var ids []string
	if asked.value("vmSearch") == "true" {
		for _, e := range simulator.Map.All("VirtualMachine") {
			vm := e.(*simulator.VirtualMachine)
			if vm.Config == nil {
				continue
			}
			own := vm.Config.Uuid
			if byInstance {
				own = vm.Config.InstanceUuid
			}
			if strings.EqualFold(own, asked.value("uuid")) {
				ids = append(ids, vm.Self.Value)
			}
		}
	}
	sort.Strings(ids)
	var text strings.Builder
	for _, id := range ids {
		fmt.Fprintf(&text, `<returnval type="VirtualMachine">%s</returnval>`, id)
	}
	writeAnswer(w, q.method+"Response", text.String())
}
