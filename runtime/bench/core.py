"""The measuring core: times of single calls, their statistics, and how many times faster one thing is than another.

Calls are timed in blocks of about a second. A block keeps every value and what the machine did meanwhile, so that a
disturbed one can be told from the others, and so that an interval counts blocks: neighbouring calls are no independent
samples, because a machine has fast and slow seconds.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .disturbance import between, snapshot

PERCENTILES = (50, 90, 95, 99)
DRAWS, LEVEL = 1000, 0.95

Work: TypeAlias = "Callable[[int], Mapping[str, float] | None]"
"""Takes the number of the call, so that each may have a seed of its own; may return milliseconds of its parts."""


def stopwatch(call: Callable[[], object], runs: int, seconds: float = math.inf) -> list[float]:
    """Wall milliseconds of single calls; fewer calls than asked for, but one at least, where they take too long."""
    spent: list[float] = []
    end = time.perf_counter() + seconds
    while len(spent) < runs and (not spent or time.perf_counter() < end):
        begin = time.perf_counter_ns()
        call()
        spent.append((time.perf_counter_ns() - begin) / 1e6)
    return spent


@dataclasses.dataclass(frozen=True)
class Block:
    """Milliseconds by name, and what the machine did meanwhile (`disturbance.between`)."""

    raw_ms: dict[str, list[float]]
    conditions: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Values to 0.1 µs."""
        raw = {name: [round(value, 4) for value in values] for name, values in self.raw_ms.items()}
        return {"conditions": self.conditions, "raw_ms": raw}


def block(works: Mapping[str, Work], runs: int, first: int = 0) -> Block:
    """Time `runs` calls of each work, one work after the other; calls are numbered from `first`.

    The wall time of a call stands under the work's name, what the work returns beside it under its own names.
    """
    raw: dict[str, list[float]] = {}
    before = snapshot()
    for name, work in works.items():
        for number in range(first, first + runs):
            begin = time.perf_counter_ns()
            parts = work(number)
            raw.setdefault(name, []).append((time.perf_counter_ns() - begin) / 1e6)
            for part, value in (parts or {}).items():
                raw.setdefault(part, []).append(value)
    return Block(raw, between(before, snapshot()))


def statistics(values: Sequence[float]) -> dict[str, float]:
    """p50, p90, p95, p99 (linear between samples), mean, min, max and count of milliseconds."""
    points = {f"p{q}": float(np.percentile(values, q)) for q in PERCENTILES}
    summary = {**points, "mean": float(np.mean(values)), "min": min(values), "max": max(values)}
    return {**{key: round(value, 4) for key, value in summary.items()}, "count": len(values)}


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A ratio of medians and the 95 % interval that a bootstrap gives it."""

    value: float
    low: float
    high: float


def ratio(over: Iterable[Sequence[float]], under: Iterable[Sequence[float]], *, paired: bool = False) -> Ratio:
    """Median of `over` by the median of `under`, each a list of blocks of milliseconds.

    The bootstrap draws blocks and then calls out of them, always with the same random numbers: blocks are what is
    independent, and a single block still has an interval. `paired`: block i of both was measured at about the same
    time (interleaved rounds), so both are drawn together, and slow minutes that met both do not widen the interval.
    """
    tops, bottoms = ([np.asarray(one, float) for one in side if len(one)] for side in (over, under))
    if not tops or not bottoms or (paired and len(tops) != len(bottoms)):
        raise ValueError("a ratio needs blocks on both sides, and as many on each where they are paired")
    rng = np.random.default_rng(0)
    found = np.empty(DRAWS)
    for i in range(DRAWS):
        chosen = rng.integers(len(tops), size=len(tops))
        others = chosen if paired else rng.integers(len(bottoms), size=len(bottoms))
        found[i] = _drawn_median(tops, chosen, rng) / _drawn_median(bottoms, others, rng)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    value = float(np.median(np.concatenate(tops)) / np.median(np.concatenate(bottoms)))
    return Ratio(round(value, 4), round(float(low), 4), round(float(high), 4))


def _drawn_median(
    blocks: Sequence[npt.NDArray[np.float64]], chosen: npt.NDArray[np.int64], rng: np.random.Generator
) -> float:
    pool = np.concatenate([blocks[i] for i in chosen])
    return float(np.median(pool[rng.integers(pool.size, size=pool.size)]))
