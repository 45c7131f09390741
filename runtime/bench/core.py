"""The measuring core: times of single calls, their statistics, and how many times as long one thing takes as another.

Calls are timed in blocks of about a second. A block keeps every value, how long each call had to wait for a CPU, and
what the machine did meanwhile: so what was disturbed can be told from the rest, and intervals count blocks, because
neighbouring calls are no independent samples: a machine has fast and slow seconds.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .disturbance import STEAL, WAITED, between, snapshot, waited_ms

PERCENTILES = (50, 90, 95, 99)
DRAWS, LEVEL = 1000, 0.95
Floats: TypeAlias = npt.NDArray[np.float64]
Work: TypeAlias = Callable[[int], object]
"""Takes the number of the call, so that each may have a seed of its own; may return milliseconds of its parts by name,
and whatever else it returns is let go."""


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
class Timed:
    """Calls of one work in order: milliseconds by name, the whole call's under the work's own name, and milliseconds
    its threads waited for a CPU, None where this system does not tell.
    """

    raw_ms: dict[str, list[float]]
    waited_ms: list[float] | None


@dataclasses.dataclass(frozen=True)
class Block:
    """The calls of a block by work, and what the machine did meanwhile (`disturbance.between`)."""

    works: dict[str, Timed]
    conditions: dict[str, Any]

    def quiet(self, work: str) -> list[bool]:
        """Which calls of a work count as undisturbed: their threads hardly had to wait for a CPU, and the host took
        none away. Where nobody else used the CPUs, what waited did so for its own threads, and all calls count if none
        would.
        """
        timed = self.works[work]
        walls, dirty = timed.raw_ms[work], bool(self.conditions["dirty"])
        if timed.waited_ms is None or (self.conditions["steal"] or 0) > STEAL:
            return [not dirty] * len(walls)
        calm = [waited <= WAITED * wall for waited, wall in zip(timed.waited_ms, walls, strict=True)]
        return calm if dirty or any(calm) else [True] * len(walls)

    def to_json(self) -> dict[str, Any]:
        """Plain values, milliseconds to 0.1 µs."""
        return {
            "conditions": self.conditions,
            "works": {
                work: {
                    "raw_ms": {name: [round(value, 4) for value in values] for name, values in timed.raw_ms.items()},
                    "waited_ms": None if timed.waited_ms is None else [round(value, 4) for value in timed.waited_ms],
                }
                for work, timed in self.works.items()
            },
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Block:
        """What `to_json` made. KeyError, TypeError, AttributeError or ValueError for anything else."""
        works = {}
        for work, found in value["works"].items():
            raw = {name: numbers(values) for name, values in found["raw_ms"].items()}
            waited = None if found["waited_ms"] is None else numbers(found["waited_ms"])
            if {len(values) for values in (*raw.values(), waited or raw[work])} != {len(raw[work])}:
                raise ValueError("lists of different lengths")
            works[work] = Timed(raw, waited)
        conditions = dict(value["conditions"])
        if not isinstance(conditions["dirty"], (list, type(None))) or not all(
            value is None or 0 <= value <= math.inf for name, value in conditions.items() if name != "dirty"
        ):
            raise TypeError("conditions")
        return cls(works, conditions)


def numbers(values: Any) -> list[float]:
    """A list of finite times. TypeError or ValueError for anything else."""
    if not isinstance(values, list) or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        raise TypeError("no list of numbers")
    if not all(0 <= value < math.inf for value in values):
        raise ValueError("no times")
    return values


def block(works: Mapping[str, Work], runs: int, first: int = 0) -> Block:
    """Time `runs` calls of each work, one work after the other; calls are numbered from `first`."""
    timed: dict[str, Timed] = {}
    before = snapshot()
    for name, work in works.items():
        raw: dict[str, list[float]] = {}
        waits: list[float] = []
        for number in range(first, first + runs):
            waited, begin = waited_ms(), time.perf_counter_ns()
            parts = work(number)
            spent, after = (time.perf_counter_ns() - begin) / 1e6, waited_ms()
            told = parts if isinstance(parts, Mapping) else {}
            for part, value in {name: spent, **told}.items():
                raw.setdefault(part, []).append(value)
            if waited is not None and after is not None:
                waits.append(max(0.0, after - waited))
        timed[name] = Timed(raw, waits if len(waits) == runs else None)
    return Block(timed, between(before, snapshot()))


def values(blocks: Iterable[Block], *, quiet: bool = False) -> dict[str, list[list[float]]]:
    """Milliseconds by name, a list per block in which there are any; with `quiet` those of undisturbed calls only
    (`Block.quiet`).

    "step" holds those of all steps.
    """
    found: dict[str, list[list[float]]] = {}
    for one in blocks:
        mine: dict[str, list[float]] = {}
        for work, timed in one.works.items():
            chosen = one.quiet(work) if quiet else [True] * len(timed.raw_ms[work])
            for name, raw in timed.raw_ms.items():
                mine[name] = [value for value, there in zip(raw, chosen, strict=True) if there]
        mine["step"] = [value for name, kept in mine.items() if name.startswith("step_") for value in kept]
        for name, kept in mine.items():
            if kept:
                found.setdefault(name, []).append(kept)
    return found


def flat(blocks: Iterable[Sequence[float]]) -> list[float]:
    """All values of all blocks."""
    return [value for one in blocks for value in one]


def statistics(values: Sequence[float]) -> dict[str, float]:
    """p50, p90, p95, p99 (linear between samples), mean, min, max and count of milliseconds."""
    points = {f"p{q}": float(np.percentile(values, q)) for q in PERCENTILES}
    summary = {**points, "mean": float(np.mean(values)), "min": min(values), "max": max(values)}
    return {**{key: round(value, 4) for key, value in summary.items()}, "count": len(values)}


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A ratio of two percentiles and the 95 % interval that a bootstrap gives it."""

    value: float
    low: float
    high: float


def ratio(
    over: Iterable[Sequence[float]], under: Iterable[Sequence[float]], *, paired: bool = False, percentile: float = 50
) -> Ratio:
    """Median (or another percentile) of `over` by that of `under`, each a list of blocks of milliseconds.

    The bootstrap draws blocks and then calls out of them, always with the same random numbers: blocks are what is
    independent, and a single block still has an interval. So the interval covers how calls scatter within a block and
    how blocks, a machine's fast and slow seconds, scatter within a run; not how one run differs from the next, which
    would take several runs of each. `paired`: block i of both was measured at about the same
    time (interleaved rounds); then it is the median of the blocks' own ratios, and slow minutes that met both arms do
    not count. ValueError for no values, or pairs that are none.
    """
    tops, bottoms = ([np.asarray(one, float) for one in side if len(one)] for side in (over, under))
    if not tops or not bottoms or (paired and len(tops) != len(bottoms)):
        raise ValueError("a ratio needs blocks on both sides, and as many on each where they are paired")
    rng = np.random.default_rng(0)

    def level(values: Floats) -> float:
        return float(np.percentile(values, percentile))

    def across(pairs: Iterable[Sequence[Floats]]) -> float:
        return float(np.median([level(top) / level(bottom) for top, bottom in pairs]))

    if paired:
        pairs = list(zip(tops, bottoms, strict=True))
        value = across(pairs)
        found = [across([_redrawn(pairs[i], rng) for i in _choice(pairs, rng)]) for _ in range(DRAWS)]
    else:
        value = level(np.concatenate(tops)) / level(np.concatenate(bottoms))
        found = [level(_drawn(tops, rng)) / level(_drawn(bottoms, rng)) for _ in range(DRAWS)]
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Ratio(round(value, 4), round(float(low), 4), round(float(high), 4))


def _choice(items: Sequence[Any], rng: np.random.Generator) -> list[int]:
    chosen: list[int] = rng.integers(len(items), size=len(items)).tolist()
    return chosen


def _drawn(blocks: Sequence[Floats], rng: np.random.Generator) -> Floats:
    (pool,) = _redrawn([np.concatenate([blocks[i] for i in _choice(blocks, rng)])], rng)
    return pool


def _redrawn(samples: Iterable[Floats], rng: np.random.Generator) -> list[Floats]:
    return [one[rng.integers(one.size, size=one.size)] for one in samples]
