"""What this process may use of the machine: cores, processor name, instruction sets, from the system's files.

Containers matter here: the affinity mask and the cgroup quota are what a process really gets, and neither ONNX Runtime
nor `os.cpu_count` looks at the quota.
"""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

# Instruction sets that decide which convolution and matrix kernels a backend picks.
FLAGS_OF_INTEREST = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16"),
    *(
        "avx512_fp16",
        "avx_vnni",
        "amx_tile",
        "amx_int8",
        "amx_bf16",
        "asimd",
        "asimdhp",
        "asimddp",
        "i8mm",
        "bf16",
        "sve",
    ),
)

_CPU_FOLDER = Path("/sys/devices/system/cpu")
_CGROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Physical cores this process may run on: affinity mask, without hyper-threads, capped by the cgroup quota."""
    allowed = affinity()
    siblings = {_siblings(cpu) for cpu in allowed}
    quota = cpu_quota()
    cores = len(siblings) if quota is None else min(len(siblings), quota)
    return max(1, cores)


def cpu_model() -> str:
    """The processor's name as the system tells it, or the architecture where it does not."""
    names = ("model name", "Hardware", "Model")
    found = {key: value for key, value in _cpuinfo() if key in names}
    return next((found[name] for name in names if name in found), platform.processor() or platform.machine())


def cpu_flags() -> list[str]:
    """Those of FLAGS_OF_INTEREST this processor has."""
    present: set[str] = set()
    for key, value in _cpuinfo():
        if key in ("flags", "Features"):
            present.update(value.split())
    return [flag for flag in FLAGS_OF_INTEREST if flag in present]


def load_average() -> list[float]:
    """Load averages over 1, 5 and 15 minutes; empty where the system has none."""
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except (AttributeError, OSError):
        return []


def affinity() -> set[int]:
    """The numbers of the CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _siblings(cpu: int) -> str:
    """The hyper-threads that share a core with `cpu`, as the kernel lists them; the cpu itself where it does not."""
    return read_text(_CPU_FOLDER / f"cpu{cpu}" / "topology" / "thread_siblings_list") or str(cpu)


def cpu_quota() -> int | None:
    """Whole cores of the cgroup's CPU quota (version 2, then 1), rounded up; None without a quota."""
    own = read_text(Path("/proc/self/cgroup")).partition("0::")[2].split("\n")[0].strip().lstrip("/")
    old = f"{read_text(_CGROUP / 'cpu' / 'cpu.cfs_quota_us')} {read_text(_CGROUP / 'cpu' / 'cpu.cfs_period_us')}"
    for text in (read_text(_CGROUP / own / "cpu.max"), read_text(_CGROUP / "cpu.max"), old):
        limit, _, period = text.strip().partition(" ")
        if limit.isdigit() and period.strip().isdigit() and int(period):
            return -(-int(limit) // int(period))
    return None


def read_text(path: Path) -> str:
    """One of the system's files without the white space around it; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


@functools.cache
def _cpuinfo() -> tuple[tuple[str, str], ...]:
    """Read once: on a machine of many cores the system takes its time over it."""
    pairs = (line.partition(":") for line in read_text(Path("/proc/cpuinfo")).splitlines())
    return tuple((key.strip(), value.strip()) for key, _, value in pairs)
