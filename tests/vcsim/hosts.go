package main

import (
	"fmt"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

const classDisplay3D = 0x0302 // PCI: display controller, 3D

// hostChange is what /control may do to a host; what is not named stays.
type hostChange struct {
	Name        string  `json:"name"`
	Sockets     int16   `json:"sockets"`
	Cores       int16   `json:"cores"`
	Threads     int16   `json:"threads"`
	MHz         int32   `json:"mhz"`
	MemoryGiB   int64   `json:"memory_gib"`
	NUMANodes   int32   `json:"numa_nodes"`
	PowerPolicy string  `json:"power_policy"`
	Version     string  `json:"version"`    // of ESXi
	Connection  string  `json:"connection"` // connected, disconnected, notResponding
	AtS         float64 `json:"at_s"`       // true time from which on it is not there; 0: now
	Maintenance *bool   `json:"maintenance"`
	GPUs        *[]gpu  `json:"gpus"` // in place of those that it had
}

// gpu is one physical GPU of a host.
type gpu struct {
	PCI         string   `json:"pci"` // 0000:3b:00.0
	Name        string   `json:"name"`
	VendorID    int      `json:"vendor_id"` // 0: NVIDIA
	DeviceID    int      `json:"device_id"`
	MemoryGiB   float64  `json:"memory_gib"`
	Graphics    string   `json:"graphics"`    // shared, sharedDirect (vGPU), direct, basic
	Passthrough bool     `json:"passthrough"` // DirectPath is on, after a reboot
	Label       string   `json:"label"`       // hardware label of Dynamic DirectPath
	Profiles    []string `json:"profiles"`    // vGPU types that it can be cut into
	NUMANode    int      `json:"numa_node"`
	InUseBy     []string `json:"in_use_by"` // names of VMs
}

func (f *front) changeHost(change hostChange) error {
	host, ok := byName("HostSystem", change.Name).(*simulator.HostSystem)
	if !ok {
		return fmt.Errorf("no host %q", change.Name)
	}
	changeSize(host, change)
	if change.GPUs != nil {
		f.setGPUs(host, *change.GPUs)
	}
	if nodes := change.NUMANodes; nodes > 0 {
		setNUMA(host, nodes, f.gpusOf(host.Self.Value))
	}
	if change.PowerPolicy != "" {
		policy := types.HostPowerPolicy{Name: change.PowerPolicy, ShortName: change.PowerPolicy}
		host.Config.PowerSystemInfo = &types.PowerSystemInfo{CurrentPolicy: policy}
		host.Hardware.CpuPowerManagementInfo = &types.HostCpuPowerManagementInfo{
			CurrentPolicy: change.PowerPolicy,
		}
	}
	if change.Version != "" {
		host.Config.Product.Version = change.Version
		about := *host.Summary.Config.Product
		about.Version = change.Version
		about.FullName = "VMware ESXi " + change.Version + " build-simulated"
		host.Summary.Config.Product = &about
	}
	if change.Maintenance != nil {
		host.Runtime.InMaintenanceMode = *change.Maintenance
	}
	if change.Connection != "" {
		f.connect(host, change.Connection, change.AtS)
	}
	return nil
}

func changeSize(host *simulator.HostSystem, change hostChange) {
	summary := host.Summary.Hardware
	if change.Sockets > 0 {
		summary.NumCpuPkgs, host.Hardware.CpuInfo.NumCpuPackages = change.Sockets, change.Sockets
	}
	if change.Cores > 0 {
		summary.NumCpuCores, host.Hardware.CpuInfo.NumCpuCores = change.Cores, change.Cores
		summary.NumCpuThreads = change.Cores * 2
		host.Hardware.CpuInfo.NumCpuThreads = change.Cores * 2
	}
	if change.Threads > 0 {
		summary.NumCpuThreads, host.Hardware.CpuInfo.NumCpuThreads = change.Threads, change.Threads
	}
	if change.MHz > 0 {
		summary.CpuMhz = change.MHz
		host.Hardware.CpuInfo.Hz = int64(change.MHz) * 1e6
	}
	if change.MemoryGiB > 0 {
		summary.MemorySize, host.Hardware.MemorySize = change.MemoryGiB<<30, change.MemoryGiB<<30
	}
}

// connect loses a host or finds it again; while it is lost its samples and its VMs' do not come.
func (f *front) connect(host *simulator.HostSystem, connection string, atS float64) {
	power := types.HostSystemPowerStatePoweredOn
	f.mu.Lock()
	down := make(map[string]float64)
	for name, since := range f.downSince {
		down[name] = since
	}
	delete(down, host.Name)
	if connection != string(types.HostSystemConnectionStateConnected) {
		power = types.HostSystemPowerStateUnknown
		if atS == 0 {
			atS = unixS(f.now())
		}
		down[host.Name] = atS
	}
	f.downSince = down
	f.mu.Unlock()
	simulator.Map.Update(host, []types.PropertyChange{
		{Name: "runtime.connectionState", Val: types.HostSystemConnectionState(connection)},
		{Name: "runtime.powerState", Val: power},
	})
}

func setNUMA(host *simulator.HostSystem, nodes int32, gpus []gpu) {
	info := &types.HostNumaInfo{Type: "NUMA", NumNodes: nodes}
	threads := host.Summary.Hardware.NumCpuThreads / int16(nodes)
	memory := host.Hardware.MemorySize / int64(nodes)
	for n := int32(0); n < nodes; n++ {
		node := types.HostNumaNode{
			TypeId:            byte(n),
			MemoryRangeBegin:  int64(n) * memory,
			MemoryRangeLength: memory,
		}
		for cpu := int16(n) * threads; cpu < (int16(n)+1)*threads; cpu++ {
			node.CpuID = append(node.CpuID, cpu)
		}
		for _, one := range gpus {
			if one.NUMANode == int(n) {
				node.PciId = append(node.PciId, one.PCI)
			}
		}
		info.NumaNode = append(info.NumaNode, node)
	}
	host.Hardware.NumaInfo = info
}

// setGPUs makes the host's hardware and its graphics and passthrough settings show these GPUs.
func (f *front) setGPUs(host *simulator.HostSystem, gpus []gpu) {
	for i := range gpus {
		if gpus[i].VendorID == 0 {
			gpus[i].VendorID = 0x10de
		}
	}
	f.mu.Lock()
	f.gpus[host.Self.Value] = gpus
	f.mu.Unlock()
	hardware, config := host.Hardware, host.Config
	var devices []types.HostPciDevice
	for _, device := range hardware.PciDevice {
		if device.ClassId != classDisplay3D {
			devices = append(devices, device)
		}
	}
	config.PciPassthruInfo, config.GraphicsInfo = nil, nil
	config.SharedPassthruGpuTypes, config.SharedGpuCapabilities = nil, nil
	config.GraphicsConfig = &types.HostGraphicsConfig{
		HostDefaultGraphicsType:        "shared",
		SharedPassthruAssignmentPolicy: "performance",
	}
	for _, one := range gpus {
		devices = append(devices, one.device())
		config.PciPassthruInfo = append(config.PciPassthruInfo, one.passthru())
		config.GraphicsInfo = append(config.GraphicsInfo, one.graphics())
		config.GraphicsConfig.DeviceType = append(config.GraphicsConfig.DeviceType,
			types.HostGraphicsConfigDeviceType{DeviceId: one.PCI, GraphicsType: one.Graphics})
		addProfiles(config, one)
	}
	hardware.PciDevice = devices
}

func addProfiles(config *types.HostConfigInfo, one gpu) {
	for _, profile := range one.Profiles {
		if contains(config.SharedPassthruGpuTypes, profile) {
			continue
		}
		config.SharedPassthruGpuTypes = append(config.SharedPassthruGpuTypes, profile)
		config.SharedGpuCapabilities = append(config.SharedGpuCapabilities,
			types.HostSharedGpuCapabilities{Vgpu: profile, SuspendSupported: true, MigrateSupported: true})
	}
}

func (g gpu) device() types.HostPciDevice {
	var bus, slot, function int
	_, _ = fmt.Sscanf(g.PCI, "0000:%02x:%02x.%x", &bus, &slot, &function)
	return types.HostPciDevice{
		Id: g.PCI, ClassId: classDisplay3D,
		Bus: byte(bus), Slot: byte(slot), Function: byte(function),
		VendorId: int16(g.VendorID), DeviceId: int16(g.DeviceID),
		VendorName: "NVIDIA Corporation", DeviceName: g.Name,
	}
}

// HostPciPassthruInfo has the name of the simulator's type, which is in the answers, and the label
// that came with API 7.0.
type HostPciPassthruInfo struct {
	types.HostPciPassthruInfo

	HardwareLabel string `xml:"hardwareLabel,omitempty"`
}

func (g gpu) passthru() *HostPciPassthruInfo {
	return &HostPciPassthruInfo{
		HostPciPassthruInfo: types.HostPciPassthruInfo{
			Id: g.PCI, DependentDevice: g.PCI, PassthruCapable: true,
			PassthruEnabled: g.Passthrough, PassthruActive: g.Passthrough,
		},
		HardwareLabel: g.Label,
	}
}

func (g gpu) graphics() types.HostGraphicsInfo {
	info := types.HostGraphicsInfo{
		DeviceName: g.Name, VendorName: "NVIDIA Corporation", PciId: g.PCI,
		GraphicsType: g.Graphics, MemorySizeInKB: int64(g.MemoryGiB * (1 << 20)),
	}
	for _, name := range g.InUseBy {
		if vm := byName("VirtualMachine", name); vm != nil {
			info.Vm = append(info.Vm, vm.Reference())
		}
	}
	return info
}

func (f *front) gpusOf(host string) []gpu {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.gpus[host]
}
