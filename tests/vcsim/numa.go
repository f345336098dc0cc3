package main

import (
	"fmt"
	"strconv"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// The simulator's types end before API 8.0, where a VM's virtual NUMA became config.numaInfo. It is
// read from the spec and put into the answers here.

// numaInfo is one VM's; without nodes of its own choice the server decides ("auto").
type numaInfo struct {
	coresPerNode int
	onHotAdd     string
	given        bool
}

// virtualNUMA finds virtualNuma in a spec: of a VM to be made, cloned or changed.
func virtualNUMA(q request) numaInfo {
	tree := q.tree()
	for _, path := range [][]string{{"config"}, {"spec"}, {"spec", "config"}} {
		at := tree
		for _, name := range path {
			if at = at.child(name); at == nil {
				break
			}
		}
		if at == nil || at.child("virtualNuma") == nil {
			continue
		}
		numa := at.child("virtualNuma")
		cores, _ := strconv.Atoi(numa.value("coresPerNumaNode"))
		return numaInfo{cores, numa.value("exposeVnumaOnCpuHotadd"), true}
	}
	return numaInfo{}
}

func (f *front) keepNUMA(vm types.ManagedObjectReference, numa numaInfo) {
	if numa.given {
		f.mu.Lock()
		f.numa[vm.Value] = numa
		f.mu.Unlock()
	}
}

// numaXML is the property config.numaInfo of one VM.
func (f *front) numaXML(vm *simulator.VirtualMachine) string {
	f.mu.Lock()
	numa := f.numa[vm.Self.Value]
	f.mu.Unlock()
	cores := numa.coresPerNode
	if cores == 0 {
		cores = int(vm.Config.Hardware.NumCPU)
	}
	return fmt.Sprintf(`<propSet><name>config.numaInfo</name><val xsi:type="VirtualMachineVirtualNumaInfo">`+
		`<coresPerNumaNode>%d</coresPerNumaNode><autoCoresPerNumaNode>%t</autoCoresPerNumaNode>`+
		`<vnumaOnCpuHotaddExposed>%t</vnumaOnCpuHotaddExposed></val></propSet>`,
		cores, numa.coresPerNode == 0, numa.onHotAdd == "true")
}
