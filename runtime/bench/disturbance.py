"""Whether something else had the processor while we measured: two looks at the system's counters, and a rule.

The counters are those of the CPUs this process may run on. What they were busy with, less what this process and its
ended children used, went to other programs; steal went to other guests of the same host. Both slow a measurement, and
neither shows in its numbers.
"""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..machine import affinity, read_text

OTHERS, STEAL, THROTTLED = 0.05, 0.02, 0.01
"""Shares of the CPU time there was above which a span is dirty."""
WAITED = 0.02
"""Share of its own time that a call may wait for a CPU and count as undisturbed."""
PAUSE = 0.2
TICKS = 2
"""The kernel counts in ticks of about 10 ms per CPU: so many are given away before anybody is blamed."""

_TASKS = "/proc/self/task"
_FIELDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
_CPU = re.compile(r"^cpu(\d+)((?: \d+){4,})", re.MULTILINE)
_STALLED = re.compile(r"^some .*total=(\d+)", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Counters at one moment, in seconds; None where this system does not tell.

    `wall`: monotonic. `own`: CPU time of this process and of its children that have ended. `busy`, `steal`: of `cpus`
    CPUs. `stalled`: time in which some task of the machine waited for a CPU. `throttled`: time in which the cgroup's
    quota held this process back.
    """

    wall: float
    own: float
    cpus: int
    busy: float | None = None
    steal: float | None = None
    stalled: float | None = None
    throttled: float | None = None


def snapshot() -> Snapshot:
    """The counters now."""
    cpus = affinity()
    busy, steal = cpu_seconds(read_text(Path("/proc/stat")), cpus, _hertz()) or (None, None)
    return Snapshot(
        wall=time.monotonic(),
        own=time.process_time() + _children(),
        cpus=len(cpus),
        busy=busy,
        steal=steal,
        stalled=stalled_seconds(read_text(Path("/proc/pressure/cpu"))),
        throttled=_throttled(),
    )


def between(before: Snapshot, after: Snapshot) -> dict[str, Any]:
    """What happened between two looks: seconds, shares (0..1) of the CPU time there was, and `dirty`: why not to trust
    it, one reason a line; empty is clean, None where the system does not tell.
    """
    wall = max(after.wall - before.wall, 1e-9)
    there = wall * after.cpus

    def share(name: str, of: float) -> float | None:
        old, new = getattr(before, name), getattr(after, name)
        return None if old is None or new is None else round(max(0.0, new - old) / of, 4)

    own, busy = (after.own - before.own) / there, share("busy", there)
    found = {
        "seconds": round(wall, 4),
        "own": round(own, 4),
        "others": None if busy is None else round(max(0.0, busy - own), 4),
        "steal": share("steal", there),
        "stalled": share("stalled", wall),
        "throttled": share("throttled", wall),
    }
    return {**found, "dirty": _reasons(found, TICKS / _hertz() / wall)}


def together(spans: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What `between` says of several spans as if they were one, without what lay between them."""
    seconds = sum(one["seconds"] for one in spans)
    found = {"seconds": round(seconds, 4)}
    for name in ("own", "others", "steal", "stalled", "throttled"):
        told = [one[name] * one["seconds"] for one in spans if one[name] is not None]
        found[name] = round(sum(told) / max(seconds, 1e-9), 4) if len(told) == len(spans) else None
    return {**found, "dirty": _reasons(found, TICKS / _hertz() / max(seconds, 1e-9))}


def wait_for_quiet(end: float) -> None:
    """Sleep until nothing else uses the CPUs to speak of, or `end` (monotonic) has come."""
    while time.monotonic() < end:
        before = snapshot()
        time.sleep(PAUSE)
        if not between(before, snapshot())["dirty"]:
            return


def _reasons(found: dict[str, Any], slack: float) -> list[str] | None:
    rules = (
        ("others", OTHERS + slack, OTHERS, "other programs took {0} of the CPU time, {1} is the limit"),
        ("steal", STEAL + slack, STEAL, "the host gave {0} of the CPU time to other guests, {1} is the limit"),
        ("throttled", THROTTLED, THROTTLED, "the cgroup's CPU quota held this process back {0} of the time"),
    )
    if found["others"] is None and not found["throttled"]:
        return None
    return [
        text.format(f"{found[name]:.0%}", f"{limit:.0%}")
        for name, allowed, limit, text in rules
        if found[name] is not None and found[name] > allowed
    ]


def cpu_seconds(text: str, cpus: set[int], hertz: int) -> tuple[float, float] | None:
    """Busy and stolen CPU seconds of some CPUs since boot out of /proc/stat; None where it does not tell of them."""
    busy = steal = 0
    seen = 0
    for number, ticks in _CPU.findall(text):
        if int(number) in cpus:
            row = dict(zip(_FIELDS, map(int, ticks.split()), strict=False))
            seen += 1
            steal += row.get("steal", 0)
            busy += sum(row.get(name, 0) for name in ("user", "nice", "system", "irq", "softirq"))
    return (busy / hertz, steal / hertz) if seen else None


def stalled_seconds(text: str) -> float | None:
    """Seconds since boot in which some task waited for a CPU out of /proc/pressure/cpu; None where it is not told."""
    found = _STALLED.search(text)
    return int(found[1]) / 1e6 if found else None


def throttled_seconds(text: str) -> float | None:
    """Seconds out of a cgroup's cpu.stat (version 2 counts µs, version 1 ns); None where there is no quota."""
    found = dict(line.split()[:2] for line in text.splitlines() if len(line.split()) == 2)
    for name, unit in (("throttled_usec", 1e6), ("throttled_time", 1e9)):
        if found.get(name, "").isdigit():
            return int(found[name]) / unit
    return None


def waited_ms() -> float | None:
    """Milliseconds that this process's threads have been ready to run and waited for a CPU; None where it is not told.

    Counted by the scheduler to the nanosecond, so that it tells of single calls.
    """
    try:
        with os.scandir(_TASKS) as threads:
            return sum(int(_read(f"{thread.path}/schedstat").split()[1]) for thread in threads) / 1e6
    except (OSError, ValueError, IndexError):
        return None


def _throttled() -> float | None:
    root = Path("/sys/fs/cgroup")
    own = read_text(Path("/proc/self/cgroup")).partition("0::")[2].split("\n")[0].strip().lstrip("/")
    places = (root / own / "cpu.stat", root / "cpu.stat", root / "cpu" / "cpu.stat")
    return next((found for place in places if (found := throttled_seconds(read_text(place))) is not None), None)


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a third of the time, and it is called beside every call
        return file.read()


def _children() -> float:
    times = os.times()
    try:
        import resource
    except ImportError:
        return times.children_user + times.children_system
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _hertz() -> int:
    try:
        return os.sysconf("SC_CLK_TCK")
    except (AttributeError, ValueError, OSError):
        return 100
