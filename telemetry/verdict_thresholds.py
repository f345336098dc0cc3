"""The numbers that the rules of the verdicts compare with, in one table, each with its source."""

from __future__ import annotations

from dataclasses import dataclass

OWN = "StageScope's own choice"


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """One number that rules compare with, what it is of, and where it is from."""

    name: str
    value: float
    unit: str
    of: str
    source: str


def _table(*ones: Threshold) -> dict[str, Threshold]:
    return {one.name: one for one in ones}


THRESHOLDS = _table(
    Threshold(
        name="most_of_the_time",
        value=0.5,
        unit="share",
        of="the stage that one thing must take to be what held it back",
        source=f"{OWN}: more than half is more than all the rest together",
    ),
    Threshold(
        name="input_bound",
        value=0.2,
        unit="share",
        of="the stage spent waiting for data, from which it is told beside another verdict",
        source="TensorFlow's profiler calls a step highly input-bound from 20 % on",
    ),
    Threshold(
        name="gpu_busy",
        value=80.0,
        unit="%",
        of="the time in which a GPU worked",
        source="rule of thumb: below 80 % one looks for what keeps the GPU waiting",
    ),
    Threshold(
        name="gpu_of_each",
        value=20.0,
        unit="%",
        of="a full GPU's time in which this run had work on it, and in which others did",
        source=f"{OWN}: a fifth, as of CPUs",
    ),
    Threshold(
        name="memory_stall",
        value=0.1,
        unit="share",
        of="the time in which some task of the machine waited for memory (PSI)",
        source=f"{OWN}: a tenth of the time",
    ),
    Threshold(
        name="major_faults_per_s",
        value=10.0,
        unit="1/s",
        of="page faults of the stage that waited for storage",
        source=f"{OWN}: loading a program makes some hundreds, once",
    ),
    Threshold(
        name="quota_periods",
        value=0.25,
        unit="share",
        of="the quota's periods in which the stage was held back",
        source="the alert CPUThrottlingHigh of the Kubernetes mixin: 25 %",
    ),
    Threshold(
        name="steal",
        value=0.1,
        unit="share",
        of="the time of the CPUs that were wanted, that the hypervisor gave to others",
        source="rule of thumb among administrators (Scout): 10 %",
    ),
    Threshold(
        name="ready_of_idle",
        value=0.3,
        unit="%",
        of="ready time of each virtual CPU, which is left out: it has it while idle, too",
        source=f"{OWN}: an idle VM's timers wake its CPUs, and each waits a moment",
    ),
    Threshold(
        name="cpu_pressure",
        value=0.25,
        unit="share",
        of="the time in which some task of the machine waited for a CPU (PSI)",
        source=f"{OWN}: as for a quota's periods",
    ),
    Threshold(
        name="pressure_of_one",
        value=0.02,
        unit="share",
        of="the machine's pressure on I/O or memory (PSI), below which it is not laid to one stage",
        source=f"{OWN}: what somebody's log makes is less, and is much on 32 busy CPUs",
    ),
    Threshold(
        name="cpus_full",
        value=0.9,
        unit="share",
        of="the machine's CPUs that worked",
        source=f"{OWN}: with less there was mostly a free one",
    ),
    Threshold(
        name="cpus_of_others",
        value=0.2,
        unit="share",
        of="the machine's CPUs that worked for others than the stage",
        source=f"{OWN}: a fifth",
    ),
    Threshold(
        name="cpu_got",
        value=0.85,
        unit="share",
        of="the time in which the stage was ready to run, that it ran",
        source=f"{OWN}: a tenth for chance in sixty samples, and some",
    ),
    Threshold(
        name="all_cpus",
        value=0.85,
        unit="share",
        of="the machine's CPUs that the stage used",
        source=f"{OWN}: what the system and the recorder need is left",
    ),
    Threshold(
        name="one_thread",
        value=1.25,
        unit="cores",
        of="CPU that one thread can seem to use, its helpers included",
        source=f"{OWN}: a quarter for what a runtime does beside",
    ),
    Threshold(
        name="storage_bytes_per_s",
        value=64 * 1024.0,
        unit="B/s",
        of="the stage's reads and writes of storage, below which it waits for no disk",
        source=f"{OWN}: sixteen pages a second",
    ),
    Threshold(
        name="little_bytes",
        value=8.0 * (1 << 20),
        unit="B",
        of="what the stage read, below which it is not told where its data came from",
        source=f"{OWN}: below it a program's own files are most of it (as the ledger's floor)",
    ),
    Threshold(
        name="network_bytes_per_s",
        value=1024.0 * 1024,
        unit="B/s",
        of="an interface of the machine, sent and received, in the median",
        source=f"{OWN}: 8 Mbit/s steadily is no idle machine's chatter",
    ),
    Threshold(
        name="coverage",
        value=0.5,
        unit="share",
        of="the stage that a figure must cover to be used",
        source=f"{OWN}: as most_of_the_time",
    ),
    Threshold(
        name="shortest_s",
        value=1.0,
        unit="s",
        of="the shortest stage that is judged",
        source=f"{OWN}: ten samples at 10 Hz",
    ),
)


def limit(name: str) -> float:
    """The value of a threshold."""
    return THRESHOLDS[name].value
