package main

import (
	"math/rand"
	"strconv"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// spread says for which parts of an entity a counter has samples.
type spread int

const (
	whole   spread = iota // the entity alone
	perCPU                // the entity and each processor
	perNIC                // the entity and each adapter
	perDisk               // each virtual disk, not the entity
	perGPU                // each GPU, not the entity
)

// counter is what the server knows of one figure; values lie evenly in [low, high] where no truth
// is scripted, summations for 20 s.
type counter struct {
	name      string // group.name.rollup
	low, high int64
	spread    spread

	id    int32 // as this server numbers it
	level int32
	sum   bool // summation: a level is per second
	last  bool // latest: the value at the window's end
	seed  uint64
}

var vmCounters = []counter{
	{name: "cpu.usage.average", low: 1000, high: 8000, spread: perCPU},
	{name: "cpu.usagemhz.average", low: 300, high: 2400, spread: perCPU},
	{name: "cpu.used.summation", low: 2000, high: 16000, spread: perCPU},
	{name: "cpu.ready.summation", low: 20, high: 400, spread: perCPU},
	{name: "cpu.maxlimited.summation", low: 0, high: 15, spread: perCPU},
	{name: "cpu.costop.summation", low: 0, high: 60, spread: perCPU},
	{name: "cpu.latency.average", low: 10, high: 300},
	{name: "cpu.readiness.average", low: 10, high: 200, spread: perCPU},
	{name: "mem.usage.average", low: 2000, high: 9000},
	{name: "mem.consumed.average", low: 8 << 20, high: 16 << 20},
	{name: "mem.active.average", low: 1 << 20, high: 8 << 20},
	{name: "mem.vmmemctl.average", low: 0, high: 1024},
	{name: "mem.swapped.average", low: 0, high: 512},
	{name: "mem.swapinRate.average", low: 0, high: 16},
	{name: "mem.swapoutRate.average", low: 0, high: 16},
	{name: "mem.latency.average", low: 0, high: 100},
	{name: "virtualDisk.read.average", low: 0, high: 40000, spread: perDisk},
	{name: "virtualDisk.write.average", low: 0, high: 20000, spread: perDisk},
	{name: "virtualDisk.numberReadAveraged.average", low: 0, high: 400, spread: perDisk},
	{name: "virtualDisk.numberWriteAveraged.average", low: 0, high: 200, spread: perDisk},
	{name: "virtualDisk.totalReadLatency.average", low: 0, high: 9, spread: perDisk},
	{name: "virtualDisk.totalWriteLatency.average", low: 0, high: 9, spread: perDisk},
	{name: "disk.maxTotalLatency.latest", low: 1, high: 20},
	{name: "net.bytesRx.average", low: 0, high: 9000, spread: perNIC},
	{name: "net.bytesTx.average", low: 0, high: 9000, spread: perNIC},
	{name: "net.usage.average", low: 0, high: 18000, spread: perNIC},
	{name: "net.droppedRx.summation", low: 0, high: 4, spread: perNIC},
	{name: "net.droppedTx.summation", low: 0, high: 4, spread: perNIC},
	{name: "power.power.average", low: 20, high: 90},
}

var hostCounters = []counter{
	{name: "cpu.usage.average", low: 1500, high: 7000, spread: perCPU},
	{name: "mem.usage.average", low: 3000, high: 8000},
	{name: "disk.maxTotalLatency.latest", low: 1, high: 20},
	{name: "net.usage.average", low: 0, high: 90000, spread: perNIC},
	{name: "power.power.average", low: 300, high: 700},
	{name: "power.energy.summation", low: 6000, high: 14000},
	{name: "gpu.utilization.average", low: 1000, high: 9500, spread: perGPU},
	{name: "gpu.mem.used.average", low: 1 << 20, high: 32 << 20, spread: perGPU},
	{name: "gpu.mem.usage.average", low: 500, high: 9000, spread: perGPU},
	{name: "gpu.temperature.average", low: 35, high: 80, spread: perGPU},
}

// catalogue is the server's counter table and what it keeps for each kind of entity.
type catalogue struct {
	infos []types.PerfCounterInfo
	byID  map[int32]types.PerfCounterInfo
	kinds map[string][]counter
	stray int32 // an id that availability lists and the table lacks
}

// newCatalogue takes the simulator's table and numbers it anew, since ids differ between servers.
func newCatalogue(shuffle bool, seed int64) *catalogue {
	manager := performanceManager()
	infos := append([]types.PerfCounterInfo(nil), manager.PerfCounter...)
	keys := make([]int32, len(infos))
	for i, info := range infos {
		keys[i] = info.Key
	}
	if shuffle {
		random := rand.New(rand.NewSource(seed))
		random.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	}
	c := &catalogue{byID: make(map[int32]types.PerfCounterInfo), kinds: make(map[string][]counter)}
	byName := make(map[string]types.PerfCounterInfo)
	for i := range infos {
		infos[i].Key = keys[i]
		infos[i].AssociatedCounterId = nil
		c.byID[keys[i]] = infos[i]
		byName[counterName(infos[i])] = infos[i]
		if keys[i] >= c.stray {
			c.stray = keys[i] + 7
		}
	}
	c.infos = infos
	c.kinds["VirtualMachine"] = resolved(vmCounters, byName)
	c.kinds["HostSystem"] = resolved(hostCounters, byName)
	manager.PerfCounter = infos
	return c
}

func resolved(table []counter, byName map[string]types.PerfCounterInfo) []counter {
	counters := append([]counter(nil), table...)
	for i := range counters {
		info, ok := byName[counters[i].name]
		if !ok {
			panic("the simulator's table lacks " + counters[i].name)
		}
		counters[i].id, counters[i].level = info.Key, info.Level
		counters[i].sum = info.RollupType == types.PerfSummaryTypeSummation
		counters[i].last = info.RollupType == types.PerfSummaryTypeLatest
		counters[i].seed = hashOf(counters[i].name)
	}
	return counters
}

func counterName(info types.PerfCounterInfo) string {
	return info.GroupInfo.GetElementDescription().Key + "." +
		info.NameInfo.GetElementDescription().Key + "." + string(info.RollupType)
}

func performanceManager() *simulator.PerformanceManager {
	content := serviceContent()
	return simulator.Map.Get(*content.PerfManager).(*simulator.PerformanceManager)
}

// withhold takes counters out of the table that clients read, as an older server lacks them.
func (c *catalogue) withhold(names []string) {
	missing := make(map[string]bool)
	for _, name := range names {
		missing[name] = true
	}
	var left []types.PerfCounterInfo
	for _, info := range c.infos {
		if !missing[counterName(info)] {
			left = append(left, info)
		}
	}
	performanceManager().PerfCounter = left
}

// instances are the names of the parts that have samples of this counter, the entity being "".
func (c counter) instances(e *entity) []string {
	switch c.spread {
	case perCPU:
		return e.cpuInstances()
	case perNIC:
		if e.vm {
			return []string{"", "4000"}
		}
		return []string{"", "vmnic0"}
	case perDisk:
		return []string{"scsi0:0"}
	case perGPU:
		return e.gpus
	}
	return []string{""}
}

func (e *entity) cpuInstances() []string {
	names := []string{""}
	for i := 0; i < e.cpus; i++ {
		names = append(names, strconv.Itoa(i))
	}
	return names
}

func hashOf(text string) uint64 {
	h := uint64(14695981039346656037)
	for i := 0; i < len(text); i++ {
		h = (h ^ uint64(text[i])) * 1099511628211
	}
	return h
}

func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}
