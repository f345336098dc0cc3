package main

import (
	"sort"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/types"
)

// entity is a virtual machine or a host as the statistics see it.
type entity struct {
	ref   types.ManagedObjectReference
	name  string
	vm    bool
	on    bool
	cpus  int
	gpus  []string
	seed  uint64
	hosts []stay // where a VM ran, oldest first; a host has itself
}

// stay is the time of a VM on a host, from a true time in unix seconds on.
type stay struct {
	fromS float64
	host  string
}

func serviceContent() types.ServiceContent {
	return simulator.Map.Get(vim25.ServiceInstance).(*simulator.ServiceInstance).Content
}

func (f *front) entityOf(ref types.ManagedObjectReference) *entity {
	switch object := simulator.Map.Get(ref).(type) {
	case *simulator.VirtualMachine:
		host := simulator.Map.Get(*object.Runtime.Host).(*simulator.HostSystem)
		if object.Config == nil {
			return &entity{ref: ref, name: object.Name, vm: true, hosts: f.staysOf(ref.Value, host.Name)}
		}
		return &entity{
			ref: ref, name: object.Name, vm: true,
			on:    object.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn,
			cpus:  int(object.Config.Hardware.NumCPU),
			seed:  hashOf(object.Name),
			hosts: f.staysOf(ref.Value, host.Name),
		}
	case *simulator.HostSystem:
		return &entity{
			ref: ref, name: object.Name, on: true,
			cpus:  int(object.Summary.Hardware.NumCpuThreads),
			gpus:  gpuInstances(object),
			seed:  hashOf(object.Name),
			hosts: []stay{{host: object.Name}},
		}
	}
	return nil
}

// staysOf knows of the moves that /control made; a VM that was moved otherwise was always there.
func (f *front) staysOf(moid string, now string) []stay {
	f.mu.Lock()
	defer f.mu.Unlock()
	known := f.stays[moid]
	if len(known) == 0 || known[len(known)-1].host != now {
		return []stay{{host: now}}
	}
	return known
}

func (e *entity) hostAt(trueS float64) string {
	at := sort.Search(len(e.hosts), func(i int) bool { return e.hosts[i].fromS >= trueS })
	if at > 0 {
		at--
	}
	return e.hosts[at].host
}

func gpuInstances(host *simulator.HostSystem) []string {
	var names []string
	for _, gpu := range host.Config.GraphicsInfo {
		names = append(names, gpu.PciId)
	}
	return names
}
