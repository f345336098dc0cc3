package main

import (
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// vmChange is what /control may do to a virtual machine by hand, without a task.
type vmChange struct {
	Name         string            `json:"name"`
	Rename       string            `json:"rename"`
	UUID         string            `json:"uuid"` // config.uuid: the BIOS's, as the guest's DMI shows it
	InstanceUUID string            `json:"instance_uuid"`
	CPUs         int32             `json:"cpus"`
	MemoryMB     int32             `json:"memory_mb"`
	Firmware     string            `json:"firmware"`
	Power        string            `json:"power"` // on or off
	Template     bool              `json:"template"`
	Inaccessible *bool             `json:"inaccessible"` // the server knows nothing of its config
	ExtraConfig  map[string]string `json:"extra_config"`
}

func (f *front) changeVM(change vmChange) error {
	vm, ok := byName("VirtualMachine", change.Name).(*simulator.VirtualMachine)
	if !ok {
		return fmt.Errorf("no virtual machine %q", change.Name)
	}
	if change.Inaccessible != nil {
		f.setInaccessible(vm, *change.Inaccessible)
	}
	if vm.Config == nil {
		return nil
	}
	var changes []types.PropertyChange
	set := func(value interface{}, zero bool, names ...string) {
		for _, name := range names {
			if !zero {
				changes = append(changes, types.PropertyChange{Name: name, Val: value})
			}
		}
	}
	set(change.Rename, change.Rename == "", "name", "config.name", "summary.config.name")
	set(change.UUID, change.UUID == "", "config.uuid", "summary.config.uuid")
	set(change.InstanceUUID, change.InstanceUUID == "", "config.instanceUuid", "summary.config.instanceUuid")
	set(change.CPUs, change.CPUs == 0, "config.hardware.numCPU", "summary.config.numCpu")
	set(change.MemoryMB, change.MemoryMB == 0, "config.hardware.memoryMB", "summary.config.memorySizeMB")
	set(change.Firmware, change.Firmware == "", "config.firmware")
	if change.Power != "" {
		power := types.VirtualMachinePowerState("powered" + strings.Title(change.Power))
		set(power, false, "runtime.powerState", "summary.runtime.powerState")
	}
	simulator.Map.Update(vm, changes)
	for key, value := range change.ExtraConfig {
		vm.Config.ExtraConfig = append(vm.Config.ExtraConfig, &types.OptionValue{Key: key, Value: value})
	}
	tidyExtraConfig(vm)
	if change.Template {
		vm.Config.Template, vm.Summary.Config.Template = true, true
		vm.ResourcePool = nil
	}
	return nil
}

// setInaccessible takes a VM's config away, as of one whose files are not there, or gives it back.
func (f *front) setInaccessible(vm *simulator.VirtualMachine, away bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	state := types.VirtualMachineConnectionStateConnected
	if away {
		state = types.VirtualMachineConnectionStateInaccessible
		f.configs[vm.Self.Value], vm.Config = vm.Config, nil
	} else if vm.Config == nil {
		vm.Config = f.configs[vm.Self.Value]
	}
	vm.Runtime.ConnectionState, vm.Summary.Runtime.ConnectionState = state, state
}

// storeChange sets what a datastore holds; the simulator's own figures are the test machine's.
type storeChange struct {
	Name        string  `json:"name"`
	CapacityGiB float64 `json:"capacity_gib"`
	FreeGiB     float64 `json:"free_gib"`
}

func changeStore(change storeChange) error {
	store, ok := byName("Datastore", change.Name).(*simulator.Datastore)
	if !ok {
		return fmt.Errorf("no datastore %q", change.Name)
	}
	store.Summary.Capacity = int64(change.CapacityGiB * (1 << 30))
	store.Summary.FreeSpace = int64(change.FreeGiB * (1 << 30))
	store.Info.GetDatastoreInfo().FreeSpace = store.Summary.FreeSpace
	return nil
}

// move brings a VM to another host, as DRS does.
type move struct {
	VM     string  `json:"vm"`
	To     string  `json:"to"`
	AtS    float64 `json:"at_s"`   // true time; 0: now
	Forget bool    `json:"forget"` // the samples of before are lost with the old host
}

func (f *front) moveVM(m move) error {
	vm, ok := byName("VirtualMachine", m.VM).(*simulator.VirtualMachine)
	if !ok {
		return fmt.Errorf("no virtual machine %q", m.VM)
	}
	to, ok := byName("HostSystem", m.To).(*simulator.HostSystem)
	if !ok {
		return fmt.Errorf("no host %q", m.To)
	}
	from := simulator.Map.Get(*vm.Runtime.Host).(*simulator.HostSystem)
	if m.AtS == 0 {
		m.AtS = unixS(f.now())
	}
	stays := f.staysOf(vm.Self.Value, from.Name)
	if m.Forget {
		stays = nil
	}
	f.mu.Lock()
	f.stays[vm.Self.Value] = append(append([]stay(nil), stays...), stay{m.AtS, to.Name})
	f.mu.Unlock()
	rehost(vm, from, to)
	at := time.Unix(0, int64((m.AtS+f.snapshot().VCenterSkewS)*1e9))
	postMigration(vm, from, to, at)
	return nil
}

func byName(kind string, name string) mo.Entity {
	for _, candidate := range simulator.Map.All(kind) {
		if nameOf(candidate) == name {
			return candidate
		}
	}
	return nil
}

func nameOf(e mo.Entity) string {
	if store, ok := e.(*simulator.Datastore); ok {
		return store.Name
	}
	return e.Entity().Name
}

// inventory is names and ids by kind, for the tests' reports.
func inventory() map[string]map[string]string {
	found := make(map[string]map[string]string)
	for _, kind := range []string{"VirtualMachine", "HostSystem", "Datastore", "ClusterComputeResource"} {
		found[kind] = make(map[string]string)
		for _, e := range simulator.Map.All(kind) {
			found[kind][nameOf(e)] = e.Reference().Value
		}
	}
	return found
}

// setOption changes a setting of the server, or takes it away.
func setOption(key string, value *string) {
	manager := simulator.Map.OptionManager()
	simulator.Map.WithLock(manager, func() {
		var left []types.BaseOptionValue
		for _, option := range manager.Setting {
			if option.GetOptionValue().Key != key {
				left = append(left, option)
			}
		}
		if value != nil {
			left = append(left, &types.OptionValue{Key: key, Value: *value})
		}
		manager.Setting = left
	})
}

// tidyExtraConfig does what the simulator leaves out: the last value of a key holds, "" removes it.
func tidyExtraConfig(vm *simulator.VirtualMachine) {
	last := make(map[string]string)
	var order []string
	for _, option := range vm.Config.ExtraConfig {
		one := option.GetOptionValue()
		if _, seen := last[one.Key]; !seen {
			order = append(order, one.Key)
		}
		last[one.Key] = fmt.Sprint(one.Value)
	}
	var tidy []types.BaseOptionValue
	for _, key := range order {
		if last[key] != "" {
			tidy = append(tidy, &types.OptionValue{Key: key, Value: last[key]})
		}
	}
	vm.Config.ExtraConfig = tidy
}

// furnish gives the inventory what the simulator leaves to chance or to the test machine.
func furnish() {
	for _, e := range simulator.Map.All("Datastore") {
		_ = changeStore(storeChange{Name: nameOf(e), CapacityGiB: 10 << 10, FreeGiB: 8 << 10})
	}
	for _, e := range simulator.Map.All("HostSystem") {
		addClock(e.(*simulator.HostSystem))
	}
}

// addLight makes further VMs of the first one, sharing all that is not their own.
func addLight(n int) {
	if n == 0 {
		return
	}
	var pattern *simulator.VirtualMachine
	for _, e := range simulator.Map.All("VirtualMachine") {
		vm := e.(*simulator.VirtualMachine)
		if pattern == nil || vm.Name < pattern.Name {
			pattern = vm
		}
	}
	host := simulator.Map.Get(*pattern.Runtime.Host).(*simulator.HostSystem)
	folder := simulator.Map.Get(*pattern.Parent).(*simulator.Folder)
	pool := simulator.Map.Get(*pattern.ResourcePool).(*simulator.ResourcePool)
	for i := 0; i < n; i++ {
		vm := lightCopy(pattern, i)
		simulator.Map.Put(vm)
		folder.ChildEntity = append(folder.ChildEntity, vm.Self)
		host.Vm = append(host.Vm, vm.Self)
		pool.Vm = append(pool.Vm, vm.Self)
	}
}

func lightCopy(pattern *simulator.VirtualMachine, i int) *simulator.VirtualMachine {
	vm := *pattern
	config := *pattern.Config
	vm.Config = &config
	vm.Name = fmt.Sprintf("light-%05d", i)
	vm.Self.Value = fmt.Sprintf("vm-light-%05d", i)
	config.Name = vm.Name
	config.Uuid = fmt.Sprintf("4217a1b2-0000-4000-8000-%012x", i)
	config.InstanceUuid = fmt.Sprintf("5017a1b2-0000-4000-8000-%012x", i)
	vm.Summary.Vm = &vm.Self
	vm.Summary.Config.Name = vm.Name
	vm.Summary.Config.Uuid = config.Uuid
	vm.Summary.Config.InstanceUuid = config.InstanceUuid
	config.Files.VmPathName = path.Join("[LocalDS_0]", vm.Name+".vmx")
	return &vm
}
