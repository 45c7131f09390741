"""What a measurement depends on, and nothing that tells whose machine it is: no host name, no kernel build, no path."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from ..doctor import package_versions
from ..machine import affinity, cpu_flags, cpu_model, cpu_quota, load_average, read_text, usable_cores

PATIENCE = 10.0
"""Seconds that one of NVIDIA's tools may take to answer."""

GPU_FIELDS = (
    *("name", "driver_version", "pstate", "persistence_mode", "clocks.sm", "clocks.mem", "clocks.max.sm"),
    *("clocks.max.mem", "power.draw", "power.limit", "temperature.gpu", "memory.used", "memory.total"),
)
_CPU = Path("/sys/devices/system/cpu")
_MODE = re.compile(r"NV Power Mode: *(\S+)")


def environment() -> dict[str, Any]:
    """The machine and its state now; None and empty lists for what the system does not tell."""
    return {
        "id": machine_id(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "cpu_flags": cpu_flags(),
        "cpu_count": os.cpu_count(),
        "usable_cores": usable_cores(),
        "affinity": ranges(affinity()),
        "cgroup_quota_cores": cpu_quota(),
        **_clocks(),
        "gpus": gpus(),
        "power_mode": power_mode(asked("nvpmodel", "-q")),
    }


def versions() -> dict[str, str | None]:
    """Python and the packages a portrait depends on."""
    return {"python": platform.python_version(), **package_versions()}


def machine_id() -> str:
    """Equal for machines whose numbers may be compared: processor, usable cores and a digest with instruction sets."""
    return id_of(cpu_model(), usable_cores(), cpu_flags())


def id_of(model: str, cores: int, flags: list[str]) -> str:
    """Such as "amd-epyc-2-cores-1a2b3c4d": the name of a file, and readable."""
    digest = hashlib.sha256("\n".join([model, str(cores), *sorted(flags)]).encode()).hexdigest()
    words = re.sub("[^a-z0-9]+", "-", model.lower()).strip("-")[:48].strip("-")
    return f"{words or 'cpu'}-{cores}-cores-{digest[:8]}"


def ranges(numbers: set[int]) -> str:
    """Numbers as the kernel writes them: "0-3,8"."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


def state() -> dict[str, Any]:
    """What changes while one measures: load averages, and percent of the time in which tasks waited (10, 60, 300 s)."""
    return {"load": load_average(), "pressure": pressure(read_text(Path("/proc/pressure/cpu")))}


def pressure(text: str) -> list[float]:
    """The three averages of /proc/pressure/cpu in percent; empty where it is not told."""
    found = re.search(r"^some avg10=([\d.]+) avg60=([\d.]+) avg300=([\d.]+)", text, re.MULTILINE)
    return [float(value) for value in found.groups()] if found else []


def asked(tool: str, *arguments: str) -> str:
    """What a tool prints; empty where it is not here, fails or takes too long."""
    program = shutil.which(tool)
    if program is None:
        return ""
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def gpus() -> list[dict[str, Any]]:
    """NVIDIA's GPUs as nvidia-smi knows them, with clocks in MHz, power in watts and memory in MiB, none elsewhere."""
    return parse_gpus(asked("nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits"))


def parse_gpus(text: str) -> list[dict[str, Any]]:
    """nvidia-smi's CSV by field; what it calls N/A or not supported is None. Lines of another form are left out."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    names = [field.replace(".", "_") for field in GPU_FIELDS]
    return [dict(zip(names, map(_value, row), strict=True)) for row in rows if len(row) == len(names)]


def power_mode(text: str) -> str | None:
    """The name of a Jetson's power mode out of `nvpmodel -q`."""
    found = _MODE.search(text)
    return found[1] if found else None


def _value(cell: str) -> str | float | None:
    if re.fullmatch(r"\[?(N/A|Not Supported|Unknown Error)\]?", cell, re.IGNORECASE):
        return None
    return float(cell) if re.fullmatch(r"-?\d+(\.\d+)?", cell) else cell


def _clocks() -> dict[str, Any]:
    """The governors in use and the kernel's limits in MHz; None where the system has no cpufreq, as in most guests."""
    folders = [_CPU / f"cpu{number}" / "cpufreq" for number in affinity()]
    governors = sorted({read_text(folder / "scaling_governor") for folder in folders} - {""})
    limits = {}
    for name in ("scaling_min_freq", "scaling_max_freq"):
        values = {read_text(folder / name) for folder in folders}
        limits[name] = sorted(int(value) // 1000 for value in values if value.isdigit())
    return {
        "governor": governors or None,
        "mhz_min": min(limits["scaling_min_freq"], default=None),
        "mhz_max": max(limits["scaling_max_freq"], default=None),
    }
