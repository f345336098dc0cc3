"""Build the small NVML of ``nvml.c``, and the environment in which a process loads it.

The loader path is read when a process starts, so what loads the library is always a subprocess:
``subprocess.run(command, env=environment(build(folder), "gpus=1"))``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SONAME = "libnvidia-ml.so.1"
SOURCE = Path(__file__).with_name("nvml.c")

VGPU = (
    "gpus=1;virtualization=2;fail=nvmlDeviceGetTotalEnergyConsumption:3,nvmlDeviceGetPcieThroughput:3,"
    "nvmlDeviceGetTemperature:3,field185:3,field186:3,field74:3,field75:3,nvmlDeviceGetPowerUsage:3,"
    "nvmlDeviceGetMigMode:3,samples0:3"
)
"""A vGPU guest: no power, energy, temperature or PCIe of the card that it shares."""


def build(folder: Path, *, without: Sequence[str] = ()) -> Path:
    """Compile the library into ``folder`` (made if needed) and return the folder.

    ``without``: functions that this driver does not export, so that the loader itself misses them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    exports = folder / "exports.map"
    hidden = "".join(f"{name}; " for name in without)
    exports.write_text(f"{{ global: nvml*; local: {hidden}{'' if hidden else 'none;'} }};\n")
    flags = f"-std=c11 -O2 -Wall -Wextra -shared -fPIC -Wl,-soname,{SONAME}".split()
    script = f"-Wl,--version-script={exports}"
    output = str(folder / SONAME)
    subprocess.run(["gcc", *flags, script, "-o", output, str(SOURCE), "-lm"], check=True)
    return folder


def environment(folder: Path, scenario: str = "", control: Path | None = None) -> dict[str, str]:
    """This process's environment with the library first on the loader path and its scenario set."""
    env = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    env["LD_LIBRARY_PATH"] = os.pathsep.join(
        filter(None, [str(folder), env.get("LD_LIBRARY_PATH")])
    )
    env["STAGESCOPE_NVML_SCENARIO"] = scenario
    if control is not None:
        env["STAGESCOPE_NVML_CONTROL"] = str(control)
    return env


def run_with(env: Mapping[str, str], code: str) -> Any:
    """Run Python code as a process in this environment and return the JSON that it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=env,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return json.loads(done.stdout)
