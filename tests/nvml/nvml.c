/* A small NVML: the symbols that StageScope asks, on GPUs that a scenario describes.
 *
 * The scenario is "key=value;..." in STAGESCOPE_NVML_SCENARIO, and then the same, one or more per
 * line, in the file named by STAGESCOPE_NVML_CONTROL, read anew every 10 ms: a test can change
 * the machine while it is measured. Later entries win.
 *
 *   gpus=2              number of GPUs
 *   virtualization=0    0 bare metal, 1 passthrough, 2 vGPU guest
 *   mig=0               1: MIG enabled, two instances on each GPU, no utilization. "mig0:4" in fail=:
 *                       the first of them cannot be opened
 *   architecture=9      9 Hopper, 7 Ampere, 5 Volta
 *   device_id=0x2335    PCI device id (0x20xx is a GA100)
 *   init=0              code that nvmlInitWithFlags returns
 *   fail=NAME:CODE,...  these functions return this code; "field186:3" fails one field value
 *   once=NAME:CODE,...  these functions, fields and slots return this code the first time
 *   fail_all=CODE       every question about a GPU returns this code
 *   lost=I:T,...        GPU I is lost T seconds after nvmlInit
 *   energy_back=I:T:J   GPU I's energy counter drops by J joules T seconds after nvmlInit
 *   power_w=200;power_swing_w=100;power_period_s=4
 *                       power is power_w + 50 W per index + power_swing_w * sin(2 pi t / period),
 *                       t: CLOCK_MONOTONIC; the energy counter is its exact integral
 *   util=50             GPU utilization, percent; memory utilization is half of it. util_rests=1: 0 while
 *                       power is below its mean
 *   throttle=0          bit mask of the clock event reasons; known_throttle=0x1ff
 *   temperature=55
 *   processes=PID:BYTES,...   compute processes of every GPU; BYTES -1: not told; PID self: as below
 *   pcie_rx_kb=1000;pcie_tx_kb=500;pcie_ms=20    PCIe rates, and how long a question blocks
 *   gpm=1               0: the driver says that this GPU has no GPM; it has none before Hopper, nor in
 *                       a vGPU guest but with gpm_vgpu=1. "gpm10:3" in fail= fails one GPM metric
 *   gpm_sm=50;gpm_swing=25
 *                       SM activity is gpm_sm + 10 per MIG instance + gpm_swing * sin(2 pi t / power_period_s)
 *                       percent, and a pair of samples gives its exact mean; the other percentages
 *                       are fixed shares of it; pairs less than 100 ms apart give no number
 *   gpm_nan=ID          this GPM metric succeeds, and is not a number
 *   buffer_ms=20        how often the driver samples power for itself (120 are kept)
 *   buffer_old_s=0      the newest one that is kept is so old
 *   buffer_base_us=0    added to their stamps; buffer_repeat=1: the last one seen comes again
 *   process_util=PID:SM:MEM,...   utilization by process, every 166 ms; PID self: who loaded this
 *
 * Structs, versions and constants are those of NVML 13 (nvml.h), as the Python binding has them.
 */
#define _GNU_SOURCE
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SUCCESS 0
#define UNINITIALIZED 1
#define INVALID_ARGUMENT 2
#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define INSUFFICIENT_SIZE 7
#define IN_USE 19
#define MEMORY 20
#define GPU_IS_LOST 15
#define ARGUMENT_VERSION_MISMATCH 25

#define MAX_GPUS 8
#define MIG_SLOTS 7
#define MIG_INSTANCES 2
#define GIB 1073741824ULL
#define SCENARIO_SIZE 4096
#define BUFFERED 120
#define PROCESS_STEP_US 166000ULL
#define GPM_METRIC_MAX 477
#define GPM_SHORTEST_S 0.1
#define COUNTED_BEFORE_J 1e6 /* so that a counter that drops stays above 0 on a machine just started */

typedef struct { int index, mig; } device_t;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } memory_v2_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int gpu, memory; } utilization_t;
typedef union {
    double d; unsigned int ui; unsigned long ul; unsigned long long ull; long long sll; int si; unsigned short us;
} value_t;
typedef struct {
    uint32_t field, scope; int64_t timestamp_us, latency_us; unsigned int type, ret; value_t value;
} field_value_t;
typedef struct {
    unsigned int pid; unsigned long long memory; unsigned int gpu_instance, compute_instance;
} process_t;
typedef struct {
    char bus_id_legacy[16]; unsigned int domain, bus, device, device_id, subsystem_id; char bus_id[32];
} pci_t;

typedef struct { unsigned long long timestamp_us; value_t value; } sample_t;
typedef struct {
    unsigned int pid; unsigned long long timestamp_us; unsigned int sm, memory, encoder, decoder;
} process_utilization_t;
typedef struct { int device, mig; double t, sm_seconds; } gpm_sample_t;
typedef struct {
    unsigned int id, ret; double value; struct { char *short_name, *long_name, *unit; } info;
} gpm_metric_t;
typedef struct {
    unsigned int version, count; gpm_sample_t *sample1, *sample2; gpm_metric_t metrics[GPM_METRIC_MAX];
} gpm_metrics_get_t;
typedef struct { unsigned int version, supported; } gpm_support_t;

enum { DOUBLE, UINT, ULONG, ULONGLONG };

static device_t devices[MAX_GPUS][1 + MIG_INSTANCES];
static int initialized;
static double start_s;
static char scenario[SCENARIO_SIZE];
static double scenario_read_s;

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/* ---- the scenario ---- */

static void read_scenario(void)
{
    double now = now_s();
    if (scenario_read_s && now - scenario_read_s < 0.01)
        return;
    scenario_read_s = now;
    const char *given = getenv("STAGESCOPE_NVML_SCENARIO");
    snprintf(scenario, sizeof scenario, ";%s;", given ? given : "");
    const char *control = getenv("STAGESCOPE_NVML_CONTROL");
    FILE *file = control ? fopen(control, "r") : NULL;
    if (!file)
        return;
    size_t length = strlen(scenario);
    length += fread(scenario + length, 1, sizeof scenario - length - 2, file);
    fclose(file);
    scenario[length] = ';';
    scenario[length + 1] = 0;
    for (char *c = scenario; *c; c++)
        if (*c == '\n')
            *c = ';';
}

/* The text after "key=" of the last such entry, or NULL; it ends at ';'. */
static const char *text(const char *key)
{
    char pattern[64];
    const char *found = NULL;
    read_scenario();
    int length = snprintf(pattern, sizeof pattern, ";%s=", key);
    for (const char *at = scenario; (at = strstr(at, pattern)); at += length - 1)
        found = at + length;
    return found;
}

static double number(const char *key, double otherwise)
{
    const char *value = text(key);
    return value ? (strncmp(value, "0x", 2) ? strtod(value, NULL) : (double)strtoull(value, NULL, 16)) : otherwise;
}

/* The code after "name:" in the list of a key, or SUCCESS. */
static unsigned int listed(const char *key, const char *name)
{
    size_t length = strlen(name);
    for (const char *at = text(key); at && *at && *at != ';'; at++) {
        if (!strncmp(at, name, length) && at[length] == ':')
            return (unsigned int)strtoul(at + length + 1, NULL, 10);
        while (*at && *at != ',' && *at != ';')
            at++;
        if (*at != ',')
            break;
    }
    return SUCCESS;
}

/* Whether this is the first time that the function of this name is asked for. */
static int is_first(const char *name)
{
    static char seen[SCENARIO_SIZE];
    char entry[64];
    snprintf(entry, sizeof entry, ";%s;", name);
    if (strstr(seen, entry))
        return 0;
    strncat(seen, entry, sizeof seen - strlen(seen) - 1);
    return 1;
}

static unsigned int failure(const char *name)
{
    unsigned int code = listed("fail", name), once = listed("once", name);
    return code ? code : once && is_first(name) ? once : SUCCESS;
}

static int is_lost(int index)
{
    for (const char *at = text("lost"); at && *at && *at != ';';) {
        char *end;
        long which = strtol(at, &end, 10);
        double after = *end == ':' ? strtod(end + 1, &end) : 0;
        if (which == index && now_s() - start_s >= after)
            return 1;
        if (*end != ',')
            break;
        at = end + 1;
    }
    return 0;
}

/* ---- what the GPUs do ---- */

static unsigned int util_percent(double t)
{
    if (number("util_rests", 0) && sin(2 * M_PI * t / number("power_period_s", 4)) < 0)
        return 0;
    return (unsigned int)number("util", 50);
}

static double power_w(int index, double t)
{
    return number("power_w", 200) + 50 * index
        + number("power_swing_w", 100) * sin(2 * M_PI * t / number("power_period_s", 4));
}

static double integral_j(int index, double t)
{
    double period = number("power_period_s", 4);
    return (number("power_w", 200) + 50 * index) * t
        + number("power_swing_w", 100) * period / (2 * M_PI) * (1 - cos(2 * M_PI * t / period));
}

/* The counter moves every 100 ms, as on the real GPUs. */
static double energy_j(int index)
{
    double now = now_s(), back = 0;
    const char *at = text("energy_back");
    if (at) {
        char *end;
        long which = strtol(at, &end, 10);
        double after = strtod(end + 1, &end);
        if (which == index && now - start_s >= after)
            back = strtod(end + 1, NULL);
    }
    return COUNTED_BEFORE_J + integral_j(index, floor(now * 10) / 10) - back;
}

static unsigned int check(const device_t *device, const char *name)
{
    if (!initialized)
        return UNINITIALIZED;
    unsigned int code = failure(name);
    if (!code)
        code = (unsigned int)number("fail_all", SUCCESS);
    if (code)
        return code;
    if (!device)
        return INVALID_ARGUMENT;
    return is_lost(device->index) ? GPU_IS_LOST : SUCCESS;
}

/* Each function: its own failure, a lost GPU, and then the answer. */
#define ENTER(device) do { unsigned int code_ = check(device, __func__); if (code_) return code_; } while (0)

/* ---- the library ---- */

unsigned int nvmlInitWithFlags(unsigned int flags)
{
    (void)flags;
    unsigned int code = (unsigned int)number("init", SUCCESS);
    if (code)
        return code;
    if (!initialized++)
        start_s = now_s();
    for (int i = 0; i < MAX_GPUS; i++)
        for (int m = 0; m <= MIG_INSTANCES; m++)
            devices[i][m] = (device_t){ i, m - 1 };
    return SUCCESS;
}

unsigned int nvmlShutdown(void)
{
    if (!initialized)
        return UNINITIALIZED;
    initialized--;
    return SUCCESS;
}

const char *nvmlErrorString(unsigned int code)
{
    static char sentence[40];
    snprintf(sentence, sizeof sentence, "error %u of the library", code);
    return sentence;
}

unsigned int nvmlSystemGetDriverVersion(char *version, unsigned int length)
{
    snprintf(version, length, "580.65.06");
    return initialized ? SUCCESS : UNINITIALIZED;
}

unsigned int nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    *version = 13000;
    return initialized ? failure(__func__) : UNINITIALIZED;
}

unsigned int nvmlDeviceGetCount_v2(unsigned int *count)
{
    if (!initialized)
        return UNINITIALIZED;
    *count = (unsigned int)number("gpus", 2);
    return failure(__func__);
}

unsigned int nvmlDeviceGetHandleByIndex_v2(unsigned int index, device_t **device)
{
    if (index >= (unsigned int)number("gpus", 2) || index >= MAX_GPUS)
        return INVALID_ARGUMENT;
    ENTER(&devices[index][0]);
    *device = &devices[index][0];
    return SUCCESS;
}

unsigned int nvmlDeviceGetUUID(const device_t *device, char *uuid, unsigned int length)
{
    ENTER(device);
    if (device->mig < 0)
        snprintf(uuid, length, "GPU-%08x-0000-4000-8000-00000000000%d", 0xa0 + device->index, device->index);
    else
        snprintf(uuid, length, "MIG-%08x-0000-4000-8000-00000000%d00%d", 0xb0 + device->index * 16 + device->mig,
                 device->index, device->mig);
    return SUCCESS;
}

unsigned int nvmlDeviceGetName(const device_t *device, char *name, unsigned int length)
{
    ENTER(device);
    snprintf(name, length, device->mig < 0 ? "NVIDIA H100 80GB HBM3" : "NVIDIA H100 80GB HBM3 MIG 3g.40gb");
    return SUCCESS;
}

unsigned int nvmlDeviceGetVirtualizationMode(const device_t *device, unsigned int *mode)
{
    ENTER(device);
    *mode = (unsigned int)number("virtualization", 0);
    return SUCCESS;
}

unsigned int nvmlDeviceGetArchitecture(const device_t *device, unsigned int *architecture)
{
    ENTER(device);
    *architecture = (unsigned int)number("architecture", 9);
    return SUCCESS;
}

unsigned int nvmlDeviceGetPciInfo_v3(const device_t *device, pci_t *pci)
{
    ENTER(device);
    memset(pci, 0, sizeof *pci);
    pci->bus = 0x17 + device->index;
    pci->device_id = (unsigned int)number("device_id", 0x2335) << 16 | 0x10de;
    snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%02X:00.0", pci->bus);
    return SUCCESS;
}

unsigned int nvmlDeviceGetMigMode(const device_t *device, unsigned int *current, unsigned int *pending)
{
    ENTER(device);
    *current = *pending = (unsigned int)number("mig", 0);
    return SUCCESS;
}

unsigned int nvmlDeviceGetMaxMigDeviceCount(const device_t *device, unsigned int *count)
{
    ENTER(device);
    *count = number("mig", 0) ? MIG_SLOTS : 0;
    return SUCCESS;
}

unsigned int nvmlDeviceGetMigDeviceHandleByIndex(const device_t *device, unsigned int index, device_t **instance)
{
    char name[24];
    ENTER(device);
    snprintf(name, sizeof name, "mig%u", index);
    unsigned int code = failure(name);
    if (code)
        return code;
    if (!number("mig", 0) || index >= MIG_INSTANCES)
        return NOT_FOUND;
    *instance = &devices[device->index][1 + index];
    return SUCCESS;
}

unsigned int nvmlDeviceGetUtilizationRates(const device_t *device, utilization_t *rates)
{
    ENTER(device);
    if (number("mig", 0))
        return NOT_SUPPORTED;
    rates->gpu = util_percent(now_s());
    rates->memory = rates->gpu / 2;
    return SUCCESS;
}

unsigned int nvmlDeviceGetMemoryInfo_v2(const device_t *device, memory_v2_t *memory)
{
    ENTER(device);
    if (memory->version != (sizeof *memory | 2u << 24))
        return ARGUMENT_VERSION_MISMATCH;
    memory->total = (device->mig < 0 ? 80 : 40) * GIB;
    memory->reserved = GIB / 2;
    memory->used = (3 + (unsigned long long)device->index) * GIB;
    memory->free = memory->total - memory->reserved - memory->used;
    return SUCCESS;
}

/* Not asked by StageScope, but by Dask's workers and MLflow where they look at GPUs themselves. */
unsigned int nvmlDeviceGetMemoryInfo(const device_t *device, memory_t *memory)
{
    memory_v2_t known = { .version = sizeof known | 2u << 24 };
    ENTER(device);
    unsigned int code = nvmlDeviceGetMemoryInfo_v2(device, &known);
    if (code == SUCCESS)
        *memory = (memory_t){ known.total, known.free, known.used + known.reserved };
    return code;
}

unsigned int nvmlDeviceGetPowerUsage(const device_t *device, unsigned int *milliwatts)
{
    ENTER(device);
    *milliwatts = (unsigned int)(power_w(device->index, now_s()) * 1e3);
    return SUCCESS;
}

unsigned int nvmlDeviceGetEnforcedPowerLimit(const device_t *device, unsigned int *milliwatts)
{
    ENTER(device);
    *milliwatts = 700000;
    return SUCCESS;
}

unsigned int nvmlDeviceGetTotalEnergyConsumption(const device_t *device, unsigned long long *millijoules)
{
    ENTER(device);
    *millijoules = (unsigned long long)(energy_j(device->index) * 1e3);
    return SUCCESS;
}

unsigned int nvmlDeviceGetClockInfo(const device_t *device, unsigned int clock, unsigned int *mhz)
{
    static const unsigned int clocks[] = { 1755, 1755, 2619 };
    ENTER(device);
    if (clock > 2)
        return INVALID_ARGUMENT;
    *mhz = clocks[clock] - (clock < 2 ? (unsigned int)fmod(now_s() * 10, 50) : 0);
    return SUCCESS;
}

unsigned int nvmlDeviceGetTemperature(const device_t *device, unsigned int sensor, unsigned int *celsius)
{
    ENTER(device);
    if (sensor)
        return INVALID_ARGUMENT;
    *celsius = (unsigned int)number("temperature", 55) + device->index;
    return SUCCESS;
}

unsigned int nvmlDeviceGetCurrentClocksEventReasons(const device_t *device, unsigned long long *reasons)
{
    ENTER(device);
    *reasons = (unsigned long long)number("throttle", 0);
    return SUCCESS;
}

unsigned int nvmlDeviceGetSupportedClocksEventReasons(const device_t *device, unsigned long long *reasons)
{
    ENTER(device);
    *reasons = (unsigned long long)number("known_throttle", 0x1ff);
    return SUCCESS;
}

unsigned int nvmlDeviceGetCurrentClocksThrottleReasons(const device_t *device, unsigned long long *reasons)
{
    ENTER(device);
    return nvmlDeviceGetCurrentClocksEventReasons(device, reasons);
}

unsigned int nvmlDeviceGetSupportedClocksThrottleReasons(const device_t *device, unsigned long long *reasons)
{
    ENTER(device);
    return nvmlDeviceGetSupportedClocksEventReasons(device, reasons);
}

unsigned int nvmlDeviceGetPcieThroughput(const device_t *device, unsigned int counter, unsigned int *kilobytes)
{
    struct timespec window = { 0, (long)(number("pcie_ms", 20) * 1e6) };
    ENTER(device);
    nanosleep(&window, NULL);
    *kilobytes = (unsigned int)(counter ? number("pcie_rx_kb", 1000) : number("pcie_tx_kb", 500));
    return SUCCESS;
}

unsigned int nvmlDeviceGetComputeRunningProcesses_v3(const device_t *device, unsigned int *count, process_t *out)
{
    unsigned int found = 0, room = *count;
    ENTER(device);
    for (const char *at = text("processes"); at && *at && *at != ';'; found++) {
        int self = !strncmp(at, "self", 4);
        char *end = (char *)at + 4;
        unsigned long pid = self ? (unsigned long)getpid() : strtoul(at, &end, 10);
        long long bytes = strtoll(end + 1, &end, 10);
        if (out && found < room)
            out[found] = (process_t){ (unsigned int)pid, (unsigned long long)bytes, ~0u, ~0u };
        at = *end == ',' ? end + 1 : end;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

unsigned int nvmlDeviceGetComputeRunningProcesses_v2(const device_t *device, unsigned int *count, process_t *out)
{
    return nvmlDeviceGetComputeRunningProcesses_v3(device, count, out);
}

static void answer(const device_t *device, field_value_t *value)
{
    char name[24];
    double now = now_s();
    snprintf(name, sizeof name, "field%u", value->field);
    value->timestamp_us = (int64_t)time(NULL) * 1000000;
    value->latency_us = 0;
    value->ret = failure(name);
    value->type = ULONGLONG;
    value->value.ull = 0;
    if (value->ret)
        return;
    switch (value->field) {
    case 74: /* PERF_POLICY_POWER, ns: a tenth of the time */
        value->value.ull = (unsigned long long)(now * 1e8);
        break;
    case 75: /* PERF_POLICY_THERMAL, ns */
        break;
    case 185: /* POWER_AVERAGE, mW: the mean of the last second */
        value->type = UINT;
        value->value.ui = (unsigned int)((integral_j(device->index, now) - integral_j(device->index, now - 1)) * 1e3);
        break;
    case 186: /* POWER_INSTANT, mW */
        value->type = UINT;
        value->value.ui = (unsigned int)(power_w(device->index, now) * 1e3);
        break;
    default:
        value->ret = NOT_SUPPORTED;
    }
}

unsigned int nvmlDeviceGetFieldValues(const device_t *device, int count, field_value_t *values)
{
    ENTER(device);
    for (int i = 0; i < count; i++)
        answer(device, &values[i]);
    return SUCCESS;
}

/* ---- the driver's own buffers ---- */

/* From the monotonic clock to the wall clock, in us, once: the stamp of a sample never moves. */
static unsigned long long stamp_us(double t)
{
    static double offset_s;
    struct timespec wall;
    if (!offset_s) {
        clock_gettime(CLOCK_REALTIME, &wall);
        offset_s = wall.tv_sec + wall.tv_nsec / 1e9 - now_s();
    }
    return (unsigned long long)((t + offset_s) * 1e6 + number("buffer_base_us", 0));
}

unsigned int nvmlDeviceGetSamples(const device_t *device, unsigned int type, unsigned long long last_us,
                                  unsigned int *value_type, unsigned int *count, sample_t *samples)
{
    char name[24];
    unsigned int found = 0;
    ENTER(device);
    snprintf(name, sizeof name, "samples%u", type);
    unsigned int code = failure(name);
    if (code)
        return code;
    if (type != 0) /* power alone */
        return NOT_SUPPORTED;
    if (!samples) {
        *count = BUFFERED;
        return SUCCESS;
    }
    double step = number("buffer_ms", 20) / 1e3;
    double newest = floor((now_s() - number("buffer_old_s", 0)) / step);
    for (int back = BUFFERED - 1; back >= 0 && found < *count; back--) {
        double t = (newest - back) * step;
        unsigned long long at_us = stamp_us(t);
        if (at_us > last_us || (number("buffer_repeat", 0) && at_us == last_us)) {
            samples[found].timestamp_us = at_us;
            samples[found++].value.ui = (unsigned int)(power_w(device->index, t) * 1e3);
        }
    }
    *value_type = UINT;
    *count = found;
    return found ? SUCCESS : NOT_FOUND;
}

/* One sample per process, the newest: as the real driver answers most often. */
unsigned int nvmlDeviceGetProcessUtilization(const device_t *device, process_utilization_t *out,
                                             unsigned int *count, unsigned long long last_us)
{
    unsigned int found = 0, room = *count;
    ENTER(device);
    if (number("mig", 0))
        return NOT_SUPPORTED;
    unsigned long long at_us = stamp_us(now_s()) / PROCESS_STEP_US * PROCESS_STEP_US;
    for (const char *at = text("process_util"); at && *at && *at != ';' && at_us > last_us; found++) {
        char *end;
        int self = !strncmp(at, "self", 4);
        unsigned int pid = self ? (unsigned int)getpid() : (unsigned int)strtoul(at, NULL, 10);
        unsigned int sm = (unsigned int)strtoul(strchr(at, ':') + 1, &end, 10);
        unsigned int memory = (unsigned int)strtoul(end + 1, &end, 10);
        if (out && found < room)
            out[found] = (process_utilization_t){ pid, at_us, sm, memory, 0, 0 };
        at = *end == ',' ? end + 1 : end;
    }
    *count = found;
    if (!found)
        return NOT_FOUND;
    return out && found <= room ? SUCCESS : INSUFFICIENT_SIZE;
}

/* ---- GPM ---- */

static unsigned int has_gpm(void)
{
    return number("gpm", 1) && number("architecture", 9) >= 9
        && (number("virtualization", 0) != 2 || number("gpm_vgpu", 0));
}

unsigned int nvmlGpmQueryDeviceSupport(const device_t *device, gpm_support_t *support)
{
    ENTER(device);
    if (support->version != 1)
        return ARGUMENT_VERSION_MISMATCH;
    support->supported = has_gpm();
    return SUCCESS;
}

unsigned int nvmlDeviceGetGpuInstanceId(const device_t *device, unsigned int *id)
{
    ENTER(device);
    if (device->mig < 0)
        return NOT_SUPPORTED;
    *id = (unsigned int)device->mig + 1;
    return SUCCESS;
}

unsigned int nvmlGpmSampleAlloc(gpm_sample_t **sample)
{
    unsigned int code = initialized ? failure(__func__) : UNINITIALIZED;
    if (code)
        return code;
    *sample = calloc(1, sizeof **sample);
    return *sample ? SUCCESS : MEMORY;
}

unsigned int nvmlGpmSampleFree(gpm_sample_t *sample)
{
    free(sample);
    return initialized ? SUCCESS : UNINITIALIZED;
}

static void count_gpm(const device_t *device, int mig, gpm_sample_t *sample)
{
    double t = now_s(), period = number("power_period_s", 4);
    double sm = number("gpm_sm", 50) + 10 * (mig + 1);
    double swung = number("gpm_swing", 25) * period / (2 * M_PI) * (1 - cos(2 * M_PI * t / period));
    *sample = (gpm_sample_t){ device->index, mig, t, sm * t + swung };
}

unsigned int nvmlGpmSampleGet(const device_t *device, gpm_sample_t *sample)
{
    ENTER(device);
    if (!has_gpm() || number("mig", 0))
        return NOT_SUPPORTED;
    count_gpm(device, -1, sample);
    return SUCCESS;
}

unsigned int nvmlGpmMigSampleGet(const device_t *device, unsigned int instance, gpm_sample_t *sample)
{
    ENTER(device);
    if (!has_gpm() || !number("mig", 0))
        return NOT_SUPPORTED;
    if (device->mig >= 0 || !instance || instance > MIG_INSTANCES)
        return INVALID_ARGUMENT;
    count_gpm(device, (int)instance - 1, sample);
    return SUCCESS;
}

/* Percentages are shares of the SMs' activity; traffic is in MiB/s. */
static double gpm_value(unsigned int id, double sm)
{
    switch (id) {
    case 2:
        return sm;
    case 3: case 10:
        return sm / 2;
    case 20:
        return 500;
    case 21:
        return 1000;
    case 60: case 61:
        return 2000;
    default:
        return sm / 4;
    }
}

unsigned int nvmlGpmMetricsGet(gpm_metrics_get_t *get)
{
    unsigned int code = initialized ? failure(__func__) : UNINITIALIZED;
    char name[24];
    if (code)
        return code;
    if (get->version != 1)
        return ARGUMENT_VERSION_MISMATCH;
    const gpm_sample_t *one = get->sample1, *two = get->sample2;
    if (!one || !two || one->device != two->device || one->mig != two->mig || !one->t || get->count > GPM_METRIC_MAX)
        return INVALID_ARGUMENT;
    double apart = two->t - one->t;
    for (unsigned int i = 0; i < get->count; i++) {
        gpm_metric_t *metric = &get->metrics[i];
        snprintf(name, sizeof name, "gpm%u", metric->id);
        metric->ret = failure(name);
        metric->value = apart < GPM_SHORTEST_S || number("gpm_nan", 0) == metric->id
            ? NAN : gpm_value(metric->id, (two->sm_seconds - one->sm_seconds) / apart);
    }
    return SUCCESS;
}
