"""Joules of a call, where the machine tells: RAPL's counters, nvidia-smi, a Jetson's tegrastats. Nothing is guessed.

Measured over calls of their own, after the timed ones: the tools that are asked for the power of a GPU or of a Jetson
run beside, and that costs time. What was drawn while idle is part of the joules, as it is of a battery's.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..machine import read_text

SECONDS = 3.0
POWERCAP = Path("/sys/class/powercap")
INTERVAL_MS = 100
SAMPLERS = {
    "gpu": ("nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits", f"--loop-ms={INTERVAL_MS}"),
    "board": ("tegrastats", "--interval", str(INTERVAL_MS)),
}
_PACKAGE = re.compile(r"intel-rapl:\d+")
_RAIL = re.compile(r"\b(?:VDD_IN|POM_5V_IN|VIN_SYS_5V0|VIN) (\d+)mW/\d+mW")


def joules_per_call(call: Callable[[int], object], seconds: float = SECONDS) -> dict[str, Any] | None:
    """Joules per call of the processor's packages, the GPU and the whole board, None for each that is not told; None
    for all where nothing is.
    """
    if not rapl(POWERCAP) and not any(shutil.which(tool[0]) for tool in SAMPLERS.values()):
        return None
    with _watts() as watts:
        before, begin = rapl(POWERCAP), time.monotonic()
        calls = 0
        while time.monotonic() - begin < seconds:
            call(calls)
            calls += 1
        spent, after = time.monotonic() - begin, rapl(POWERCAP)
    found = {"cpu_package": used(before, after), **{name: _times(value, spent) for name, value in watts.items()}}
    return {"calls": calls, **{f"{name}_j": _per(value, calls) for name, value in found.items()}}


def rapl(root: Path) -> dict[str, tuple[int, int]]:
    """Package → (µJ counted, µJ at which the counter starts anew); those that may be read: often root's alone."""
    found = {}
    for folder in sorted(root.glob("intel-rapl:*")):
        count, limit = read_text(folder / "energy_uj"), read_text(folder / "max_energy_range_uj")
        if _PACKAGE.fullmatch(folder.name) and count.isdigit():
            found[folder.name] = int(count), int(limit) if limit.isdigit() else 0
    return found


def used(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> float | None:
    """Joules of all packages between two readings, of which each may have gone over the counter's end once."""
    if not before or before.keys() != after.keys():
        return None
    total = 0
    for name, (count, limit) in after.items():
        gone = count - before[name][0]
        total += gone if gone >= 0 else gone + limit
    return total / 1e6 if total > 0 else None


def watts_of(kind: str, text: str) -> float | None:
    """Mean power out of a sampler's output: nvidia-smi's lines of watts, tegrastats' input rail in mW."""
    if kind == "board":
        values = [int(found) / 1e3 for found in _RAIL.findall(text)]
    else:
        lines = [line.strip() for line in text.splitlines()]
        values = [float(line) for line in lines if re.fullmatch(r"\d+(\.\d+)?", line)]
    return sum(values) / len(values) if values else None


@contextlib.contextmanager
def _watts() -> Iterator[dict[str, float | None]]:
    """Watts by kind, there after the `with` block: every sampler of this machine runs meanwhile."""
    watts: dict[str, float | None] = dict.fromkeys(SAMPLERS)
    with contextlib.ExitStack() as stack:
        running = {}
        for kind, (tool, *arguments) in SAMPLERS.items():
            program, output = shutil.which(tool), stack.enter_context(tempfile.TemporaryFile("w+"))
            with contextlib.suppress(OSError):
                if program is not None:
                    process = subprocess.Popen([program, *arguments], stdout=output, stderr=subprocess.DEVNULL)
                    running[kind] = process, output
        try:
            yield watts
        finally:
            for process, _ in running.values():
                process.terminate()
                process.wait()
        for kind, (_, output) in running.items():
            output.seek(0)
            watts[kind] = watts_of(kind, output.read())


def _times(watts: float | None, seconds: float) -> float | None:
    return None if watts is None else watts * seconds


def _per(joules: float | None, calls: int) -> float | None:
    return None if joules is None else round(joules / calls, 4)
