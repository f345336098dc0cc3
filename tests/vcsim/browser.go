package main

import (
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// browser is the simulator's environment browser, and knows GPUs as well.
type browser struct {
	simulator.EnvironmentBrowser
	front *front
	owner mo.Entity
}

// addBrowsers puts ours in the place of the simulator's.
func (f *front) addBrowsers() {
	for _, kind := range []string{"ComputeResource", "ClusterComputeResource"} {
		for _, owner := range simulator.Map.All(kind) {
			ref := computeResource(owner).EnvironmentBrowser
			inner := simulator.Map.Get(*ref).(*simulator.EnvironmentBrowser)
			simulator.Map.Put(&browser{EnvironmentBrowser: *inner, front: f, owner: owner})
		}
	}
}

func computeResource(e mo.Entity) *mo.ComputeResource {
	if cluster, ok := e.(*simulator.ClusterComputeResource); ok {
		return &cluster.ComputeResource
	}
	return e.(*mo.ComputeResource)
}

// QueryConfigTarget is called by the simulator, by its name.
func (b *browser) QueryConfigTarget(ctx *simulator.Context, req *types.QueryConfigTarget) soap.HasFault {
	answer := b.EnvironmentBrowser.QueryConfigTarget(ctx, req)
	body, ok := answer.(*methods.QueryConfigTargetBody)
	if !ok || body.Res == nil {
		return answer
	}
	hosts := computeResource(b.owner).Host
	if req.Host != nil {
		hosts = []types.ManagedObjectReference{*req.Host}
	}
	for _, host := range hosts {
		for _, one := range b.front.gpusOf(host.Value) {
			offer(body.Res.Returnval, one)
		}
	}
	return body
}

// offer adds what a virtual machine can have of one GPU.
func offer(target *types.ConfigTarget, one gpu) {
	if one.Passthrough {
		target.PciPassthrough = append(target.PciPassthrough, &types.VirtualMachinePciPassthroughInfo{
			VirtualMachineTargetInfo: types.VirtualMachineTargetInfo{Name: one.PCI},
			PciDevice:                one.device(), SystemId: "simulated",
		})
		offerDynamic(target, one)
	}
	for _, profile := range one.Profiles {
		if !offered(target, profile) {
			target.SharedGpuPassthroughTypes = append(target.SharedGpuPassthroughTypes,
				types.VirtualMachinePciSharedGpuPassthroughInfo{
					VirtualMachineTargetInfo: types.VirtualMachineTargetInfo{Name: profile}, Vgpu: profile,
				})
		}
	}
}

func offerDynamic(target *types.ConfigTarget, one gpu) {
	for _, known := range target.DynamicPassthrough {
		if int(known.DeviceId) == one.DeviceID && known.CustomLabel == one.Label {
			return
		}
	}
	target.DynamicPassthrough = append(target.DynamicPassthrough,
		types.VirtualMachineDynamicPassthroughInfo{
			VirtualMachineTargetInfo: types.VirtualMachineTargetInfo{Name: one.Name},
			VendorName:               "NVIDIA Corporation", DeviceName: one.Name, CustomLabel: one.Label,
			VendorId: int32(one.VendorID), DeviceId: int32(one.DeviceID),
		})
}

func offered(target *types.ConfigTarget, profile string) bool {
	for _, known := range target.SharedGpuPassthroughTypes {
		if known.Vgpu == profile {
			return true
		}
	}
	return false
}
