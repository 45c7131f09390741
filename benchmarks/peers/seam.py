"""The seam to the measuring core of `s2f bench`: `snapshot`, `between`, `wait_for_quiet`, `ratio` and `environment`.

The arena and the floor need no more of it than these, under the core's names and in its shapes, so that they can come
from there instead.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.gpu.parts import JSON
from runtime.machine import cpu_flags, cpu_model, load_average, usable_cores

OTHERS, STEAL, SLACK = 0.05, 0.02, 0.02
"""Shares of the CPU time there was above which a span is dirty; SLACK seconds per core are the counters' coarseness."""
DRAWS, LEVEL = 1000, 0.95
PAUSE = 0.25
"""Seconds of one look for quiet."""

_STAT = Path("/proc/stat")


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Counters at one moment, in seconds; None where this system does not tell."""

    wall: float
    own: float
    busy: float | None
    steal: float | None


def snapshot() -> Snapshot:
    """The counters now; `own` is the CPU time of this process, `busy` and `steal` those of all cores."""
    try:
        fields = [int(word) for word in _STAT.read_text().split("\n", 1)[0].split()[1:9]]
        hertz = float(os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, AttributeError):
        return Snapshot(time.monotonic(), time.process_time(), None, None)
    user, nice, system, _, _, irq, softirq, steal = fields
    busy = user + nice + system + irq + softirq
    return Snapshot(time.monotonic(), time.process_time(), busy / hertz, steal / hertz)


def between(before: Snapshot, after: Snapshot) -> JSON:
    """What happened between two looks: seconds, shares (0..1) of the CPU time there was, and `dirty`: why not to trust
    it, one reason a line; empty is clean, None where the system does not tell."""
    wall = max(after.wall - before.wall, 1e-9)
    cores = os.cpu_count() or 1
    own = (after.own - before.own) / wall / cores
    if before.busy is None or after.busy is None or before.steal is None or after.steal is None:
        return {"seconds": round(wall, 4), "own": round(own, 4), "others": None, "steal": None, "dirty": None}
    others = max(0.0, (after.busy - before.busy) / wall / cores - own)
    steal = (after.steal - before.steal) / wall / cores
    seen = (
        ("other programs", others, OTHERS + SLACK / wall),
        ("other guests of the host", steal, STEAL + SLACK / wall),
    )
    dirty = [f"{who} took {share:.0%} of the CPU time" for who, share, most in seen if share > most]
    found = {"seconds": wall, "own": own, "others": others, "steal": steal}
    return {**{name: round(value, 4) for name, value in found.items()}, "dirty": dirty}


def wait_for_quiet(end: float) -> None:
    """Sleep until nothing else uses the CPUs to speak of, or `end` (monotonic) has come."""
    while time.monotonic() < end:
        before = snapshot()
        time.sleep(PAUSE)
        if not between(before, snapshot())["dirty"]:
            return


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A ratio of medians and the 95 % interval that a bootstrap gives it."""

    value: float
    low: float
    high: float


def ratio(over: Iterable[Sequence[float]], under: Iterable[Sequence[float]], *, paired: bool = False) -> Ratio:
    """Median of `over` by the median of `under`, each a list of rounds of milliseconds.

    The bootstrap draws rounds and then calls out of them, always with the same random numbers. `paired`: round i of
    both was measured at about the same time, so both are drawn together.
    """
    tops, bottoms = ([np.asarray(one, float) for one in side if len(one)] for side in (over, under))
    if not tops or not bottoms or (paired and len(tops) != len(bottoms)):
        raise ValueError("a ratio needs rounds on both sides, and as many on each where they are paired")
    rng = np.random.default_rng(0)
    found = np.empty(DRAWS)
    for i in range(DRAWS):
        chosen = rng.integers(len(tops), size=len(tops))
        others = chosen if paired else rng.integers(len(bottoms), size=len(bottoms))
        found[i] = _drawn_median(tops, chosen, rng) / _drawn_median(bottoms, others, rng)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    value = float(np.median(np.concatenate(tops)) / np.median(np.concatenate(bottoms)))
    return Ratio(round(value, 4), round(float(low), 4), round(float(high), 4))


def _drawn_median(rounds: Sequence[np.ndarray], chosen: np.ndarray, rng: np.random.Generator) -> float:
    pool = np.concatenate([rounds[i] for i in chosen])
    return float(np.median(pool[rng.integers(pool.size, size=pool.size)]))


def environment() -> JSON:
    """The machine and its load now, and nothing that tells whose it is."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "cpu_flags": cpu_flags(),
        "usable_cores": usable_cores(),
        "load": load_average(),
    }
