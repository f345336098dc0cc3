package main

import (
	"fmt"
	"log"
	"sync/atomic"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// vmWork is our own way of creating, cloning and changing a VM: the simulator's, and what it leaves
// out. It is nil for other methods.
func (f *front) vmWork(q request) work {
	switch q.method {
	case "CreateVM_Task", "CloneVM_Task", "ReconfigVM_Task":
	default:
		return nil
	}
	method, err := simulator.UnmarshalBody(types.TypeFunc(), q.body)
	if err != nil {
		return func() (types.AnyType, types.BaseMethodFault) {
			return nil, &types.GenericVmConfigFault{Reason: err.Error()}
		}
	}
	numa := virtualNUMA(q)
	return func() (result types.AnyType, fault types.BaseMethodFault) {
		defer func() {
			if why := recover(); why != nil { // the simulator's way to refuse a strange device
				log.Printf("%s: %v", q.method, why)
				result, fault = nil, &types.GenericVmConfigFault{Reason: fmt.Sprint(why)}
			}
		}()
		switch body := method.Body.(type) {
		case *types.CreateVM_Task:
			result, fault = createVM(body)
		case *types.CloneVM_Task:
			result, fault = cloneVM(body)
		case *types.ReconfigVM_Task:
			fault = reconfigVM(body.This, &body.Spec)
			if fault == nil {
				f.keepNUMA(body.This, numa)
			}
		}
		if made, ok := result.(types.ManagedObjectReference); ok && fault == nil {
			f.keepNUMA(made, numa)
		}
		return result, fault
	}
}

func createVM(req *types.CreateVM_Task) (types.AnyType, types.BaseMethodFault) {
	prepare(&req.Config, nil)
	folder, ok := simulator.Map.Get(req.This).(*simulator.Folder)
	if !ok {
		return nil, &types.ManagedObjectNotFound{Obj: req.This}
	}
	result, fault := run(folder, func(ctx *simulator.Context) soap.HasFault {
		return folder.CreateVMTask(ctx, req)
	})
	if fault == nil {
		vm := simulator.Map.Get(result.(types.ManagedObjectReference)).(*simulator.VirtualMachine)
		tidyExtraConfig(vm)
		changed(vm)
	}
	return result, fault
}

// run calls a method that returns a task, with the object locked as the simulator has it.
func run(on mo.Entity, call func(*simulator.Context) soap.HasFault) (types.AnyType, types.BaseMethodFault) {
	var answer soap.HasFault
	ref := on.Reference()
	simulator.Map.WithLock(on, func() { answer = call(ownContext(ref)) })
	if fault := answer.Fault(); fault != nil {
		if known, ok := fault.VimFault().(types.BaseMethodFault); ok {
			return nil, known
		}
		return nil, &types.GenericVmConfigFault{Reason: fault.String}
	}
	var task types.ManagedObjectReference
	switch body := answer.(type) {
	case *methods.CreateVM_TaskBody:
		task = body.Res.Returnval
	case *methods.CloneVM_TaskBody:
		task = body.Res.Returnval
	case *methods.ReconfigVM_TaskBody:
		task = body.Res.Returnval
	case *methods.PowerOnVM_TaskBody:
		task = body.Res.Returnval
	}
	return outcome(simulator.Map.Get(task).(*simulator.Task))
}

// prepare fills what the simulator would stumble over or forget, from the VM as it is.
func prepare(spec *types.VirtualMachineConfigSpec, now *types.VirtualMachineConfigInfo) {
	for _, change := range spec.DeviceChange {
		device := change.GetVirtualDeviceConfigSpec().Device.GetVirtualDevice()
		if device.DeviceInfo == nil {
			device.DeviceInfo = &types.Description{}
		}
	}
	if now != nil {
		spec.CpuAllocation = merged(spec.CpuAllocation, now.CpuAllocation)
		spec.MemoryAllocation = merged(spec.MemoryAllocation, now.MemoryAllocation)
		return
	}
	defaults := types.DefaultResourceConfigSpec()
	spec.CpuAllocation = merged(spec.CpuAllocation, &defaults.CpuAllocation)
	spec.MemoryAllocation = merged(spec.MemoryAllocation, &defaults.MemoryAllocation)
}

func merged(wanted, now *types.ResourceAllocationInfo) *types.ResourceAllocationInfo {
	if wanted == nil || now == nil {
		return wanted
	}
	whole := *now
	if wanted.Reservation != nil {
		whole.Reservation = wanted.Reservation
	}
	if wanted.Limit != nil {
		whole.Limit = wanted.Limit
	}
	if wanted.Shares != nil {
		whole.Shares = wanted.Shares
	}
	return &whole
}

func reconfigVM(ref types.ManagedObjectReference, spec *types.VirtualMachineConfigSpec) types.BaseMethodFault {
	vm, ok := simulator.Map.Get(ref).(*simulator.VirtualMachine)
	if !ok {
		return &types.ManagedObjectNotFound{Obj: ref}
	}
	if vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn && needsPowerOff(vm, spec) {
		return &types.InvalidPowerState{
			RequestedState: types.VirtualMachinePowerStatePoweredOff,
			ExistingState:  vm.Runtime.PowerState,
		}
	}
	if spec.ChangeVersion != "" && spec.ChangeVersion != vm.Config.ChangeVersion {
		return &types.ConcurrentAccess{}
	}
	prepare(spec, vm.Config)
	_, fault := run(vm, func(ctx *simulator.Context) soap.HasFault {
		return vm.ReconfigVMTask(ctx, &types.ReconfigVM_Task{This: ref, Spec: *spec})
	})
	tidyExtraConfig(vm)
	changed(vm)
	return fault
}

// changed gives a VM's configuration another version, by which a client tells that it has changed.
func changed(vm *simulator.VirtualMachine) {
	vm.Config.ChangeVersion = fmt.Sprint(configVersions.Add(1))
}

var configVersions atomic.Int64

// needsPowerOff tells which changes a running VM does not take; the simulator takes all.
func needsPowerOff(vm *simulator.VirtualMachine, spec *types.VirtualMachineConfigSpec) bool {
	hardware := vm.Config.Hardware
	if spec.NumCPUs != 0 && spec.NumCPUs != hardware.NumCPU && !isTrue(vm.Config.CpuHotAddEnabled) ||
		spec.NumCoresPerSocket != 0 && spec.NumCoresPerSocket != hardware.NumCoresPerSocket ||
		spec.MemoryMB != 0 && spec.MemoryMB != int64(hardware.MemoryMB) && !isTrue(vm.Config.MemoryHotAddEnabled) ||
		spec.Firmware != "" && spec.Firmware != vm.Config.Firmware {
		return true
	}
	for _, change := range spec.DeviceChange {
		if _, pci := change.GetVirtualDeviceConfigSpec().Device.(*types.VirtualPCIPassthrough); pci {
			return true
		}
	}
	return false
}

func isTrue(b *bool) bool { return b != nil && *b }

// cloneVM lets the simulator copy, which takes the source's own devices and forgets most of its
// settings and of the spec, and puts that right.
func cloneVM(req *types.CloneVM_Task) (types.AnyType, types.BaseMethodFault) {
	source, ok := simulator.Map.Get(req.This).(*simulator.VirtualMachine)
	if !ok {
		return nil, &types.ManagedObjectNotFound{Obj: req.This}
	}
	spec := req.Spec.Config
	if spec != nil {
		prepare(spec, source.Config)
	}
	pristine := new(types.VirtualMachineConfigInfo)
	if err := copyOf(source.Config, pristine); err != nil {
		return nil, &types.GenericVmConfigFault{Reason: err.Error()}
	}
	asTemplate := req.Spec.Template
	req.Spec.Template, req.Spec.Config = false, nil
	result, fault := run(source, func(ctx *simulator.Context) soap.HasFault {
		return source.CloneVMTask(ctx, req)
	})
	source.Config.Hardware.Device = pristine.Hardware.Device
	if fault != nil {
		return nil, fault
	}
	clone := simulator.Map.Get(result.(types.ManagedObjectReference)).(*simulator.VirtualMachine)
	inherit(clone, pristine)
	changed(clone)
	place(clone, req.Spec.Location.Host)
	if spec != nil {
		if fault := reconfigVM(clone.Self, spec); fault != nil {
			return nil, fault
		}
	}
	if asTemplate {
		clone.Config.Template, clone.Summary.Config.Template = true, true
	} else if req.Spec.PowerOn {
		_, fault = run(clone, func(ctx *simulator.Context) soap.HasFault {
			return clone.PowerOnVMTask(ctx, &types.PowerOnVM_Task{This: clone.Self})
		})
	}
	return clone.Self, fault
}

// inherit gives a clone the settings of its source.
func inherit(clone *simulator.VirtualMachine, from *types.VirtualMachineConfigInfo) {
	config := clone.Config
	config.Firmware, config.Annotation, config.Version = from.Firmware, from.Annotation, from.Version
	config.BootOptions, config.LatencySensitivity = from.BootOptions, from.LatencySensitivity
	config.CpuAllocation, config.MemoryAllocation = from.CpuAllocation, from.MemoryAllocation
	config.MemoryReservationLockedToMax = from.MemoryReservationLockedToMax
	config.ExtraConfig = append([]types.BaseOptionValue(nil), from.ExtraConfig...)
}

// place puts a VM on the host that was asked for, if one was.
func place(vm *simulator.VirtualMachine, wanted *types.ManagedObjectReference) {
	if wanted == nil || *wanted == *vm.Runtime.Host {
		return
	}
	from := simulator.Map.Get(*vm.Runtime.Host).(*simulator.HostSystem)
	to, ok := simulator.Map.Get(*wanted).(*simulator.HostSystem)
	if !ok {
		return
	}
	rehost(vm, from, to)
}

func rehost(vm *simulator.VirtualMachine, from, to *simulator.HostSystem) {
	simulator.Map.RemoveReference(from, &from.Vm, vm.Self)
	simulator.Map.AddReference(to, &to.Vm, vm.Self)
	simulator.Map.Update(vm, []types.PropertyChange{
		{Name: "runtime.host", Val: to.Self},
		{Name: "summary.runtime.host", Val: to.Self},
	})
}
