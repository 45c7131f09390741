"""Piece "latency": how long a portrait takes, as a whole and in parts, and what the card itself takes.

Per arm (form, precision, batch, steps), in milliseconds:

    end_to_end      PCM in host memory to uint8 in host memory through the executor, noise from the seed included
    graph_wall      copy in, one CUDA graph, copy out, wait: the same without the executor's thread and the noise
    enqueue_wall    the same with the engines enqueued one by one
    graph_device    between two events around one launch; graph_busy: the mean of ten in a row
    enqueue_device  between two events around the calls

Arms of one precision and batch size are measured in turn, round after round.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.gpu import card
from benchmarks.gpu.chain import Bench, Painting
from benchmarks.gpu.parts import JSON, Part, timed
from benchmarks.gpu.plan import (
    Arm,
    Job,
    groups,
    inputs_of,
    noise_of,
    warm_up,
    work_of,
)
from benchmarks.gpu.store import Store
from runtime.backends.cuda import CaptureFailed, graphs_missing
from runtime.backends.tensorrt_executor import TensorRTExecutor
from runtime.bench import stopwatch
from runtime.bundle import STAGES
from runtime.engines import EngineSpec
from runtime.executor import Clock

PORTRAITS, PER_STAGE, CARD = "portraits", "stages", "card"
TOGETHER = 10
MOST = 0.3  # seconds of one way in one round, ten times as many for the headline: slow arms are called less often
SECONDS, LEAST = 15.0, 3.0  # what a group of arms and what one arm may take: less is not begun

Way = Callable[[int, float], list[float]]
"""How many runs, in so many seconds at most → milliseconds of each."""
Ways = dict[str, Way]


def measure(job: Job, part: Part) -> None:
    """The card, then group after group; only engines that are in the cache."""
    store = Store(job)
    _measure_card(job, part, store)
    for group in groups(job.wanted.arms(), "precision", "batch"):
        arms = [arm for arm in group if store.can_draw(arm)]
        for arm in group:
            if arm not in arms and str(arm) not in part.results.get(PORTRAITS, {}):
                part.put(PORTRAITS, str(arm), {"error": "its engines are not built"})
        if arms:
            job.deadline.need(SECONDS, f"measuring {arms[0]} and the like")
            part.attempt("groups", str(arms[0]), functools.partial(_measure_group, job, part, store, arms))


def _measure_card(job: Job, part: Part, store: Store) -> None:
    with Bench(job.bundle, store) as bench:
        cuda = bench.cuda
        part.attempt(CARD, "free_bytes", cuda.free_memory)
        part.attempt(CARD, "launch", lambda: card.launch_floor(cuda))
        part.attempt(CARD, "memset", lambda: card.memset_floor(cuda))
        part.attempt(CARD, "copies", lambda: card.transfer(cuda, card.TRANSFER))


def _measure_group(job: Job, part: Part, store: Store, arms: list[Arm]) -> JSON:
    with Group(job, store, arms) as group:
        before = group.bench.cuda.free_memory()
        for arm in arms:
            part.attempt(PORTRAITS, str(arm), functools.partial(group.open, arm))
        about = {arm: part.results[PORTRAITS][str(arm)] for arm in group.ways}
        for _ in range(job.counts.rounds):
            for arm in group.ways:
                job.deadline.need(LEAST, f"timing {arm}")
                part.attempt("rounds", str(arm), functools.partial(group.run, arm))
                part.put(PORTRAITS, str(arm), {**about[arm], "ms": group.milliseconds(arm)})
        for spec in (EngineSpec(stage, arms[0].batch, 0, arms[0].precision) for stage in STAGES):
            part.attempt(PER_STAGE, str(spec), functools.partial(_measure_stage, job, group.bench, spec))
        return {"device_bytes": before - group.bench.cuda.free_memory()}


class Group:
    """Arms of one precision and batch size, open at the same time. Close it by `with`."""

    def __init__(self, job: Job, store: Store, arms: list[Arm]) -> None:
        self.ways: dict[Arm, Ways] = {}
        self._job, self._store, self._arms = job, store, arms
        self._raw: dict[Arm, dict[str, list[float]]] = {}
        self._executors: dict[str, TensorRTExecutor] = {}
        self._stack = contextlib.ExitStack()
        self.bench = self._stack.enter_context(Bench(job.bundle, store))

    def open(self, arm: Arm) -> JSON:
        """Make everything ready to time an arm; returns what is known of it before."""
        painting = self.bench.painting(arm)
        manifest, batch = self._job.bundle.manifest, arm.batch
        pcm = np.repeat(self._job.voices[0][None], batch, axis=0)
        painting.fill(inputs_of(manifest, pcm, noise_of(manifest, *range(batch))))
        about: JSON = {"arm": dataclasses.asdict(arm), **_transfers(self.bench, painting)}
        try:
            about["nodes"] = card.count_nodes(self.bench.cuda, painting.enqueue)
            about["capture"] = graphs_missing() or _captured(painting)
        except Exception as error:  # noqa: BLE001 - told in the result; the arm can still be enqueued
            about["capture"] = f"{type(error).__name__}: {error}"
        ways = self._device_ways(painting, captured=about["capture"] == "graph")
        self.ways[arm] = {"end_to_end": self._end_to_end(arm), **dict(ways)}
        return about

    def run(self, arm: Arm) -> None:
        """One round of every way, warmed up once."""
        raw, job = self._raw.setdefault(arm, {}), self._job
        headline = arm in job.wanted.headline()
        ways, runs = self.ways[arm], job.counts.runs_of(headline=headline)
        warm_up(lambda: ways["end_to_end"](1, 0), job.counts.warm)
        for kind, way in ways.items():
            way(3, 0)
            raw.setdefault(kind, []).extend(way(runs, MOST * (10 if headline else 1)))

    def milliseconds(self, arm: Arm) -> JSON:
        """All rounds so far."""
        return {kind: timed(values) for kind, values in self._raw.get(arm, {}).items()}

    def _end_to_end(self, arm: Arm) -> Way:
        executor, seeds = self._executor(arm.form), itertools.count()
        pcm, manifest = self._job.voices[0], self._job.bundle.manifest

        def paint() -> None:
            some = [next(seeds) for _ in range(arm.batch)]
            executor.paint(work_of(manifest, [pcm] * arm.batch, some, arm.steps), Clock())

        return functools.partial(stopwatch, paint)

    def _executor(self, form: str) -> TensorRTExecutor:
        """One per form, with the engines of all arms of that form."""
        if form not in self._executors:
            record = self._store.record([arm for arm in self._arms if arm.form == form])
            self._executors[form] = TensorRTExecutor(self._job.bundle, self._store.cache, record=record)
            self._stack.callback(self._executors[form].close)
        return self._executors[form]

    def _device_ways(self, painting: Painting, *, captured: bool) -> Iterator[tuple[str, Way]]:
        timer = card.Timer(self.bench.cuda)

        def on_device(enqueue: Callable[[], None]) -> Way:
            return lambda runs, most: timer.measure(enqueue, runs, seconds=most)

        yield "enqueue_wall", functools.partial(stopwatch, lambda: painting.draw(painting.enqueue))
        yield "enqueue_device", on_device(painting.enqueue)
        if captured:
            launch = painting.launch
            yield "graph_wall", functools.partial(stopwatch, lambda: painting.draw(launch))
            yield "graph_device", on_device(launch)
            yield "graph_busy", functools.partial(_in_a_row, timer, launch)

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *error: object) -> None:
        self.ways.clear()
        self._stack.close()


def _in_a_row(timer: card.Timer, launch: Callable[[], None], runs: int, most: float) -> list[float]:
    return timer.measure(launch, max(1, runs // TOGETHER), together=TOGETHER, seconds=most)


def _captured(painting: Painting) -> str:
    try:
        painting.launch  # noqa: B018 - made at first use
    except CaptureFailed as reason:
        return str(reason)
    return "graph"


def _transfers(bench: Bench, painting: Painting) -> JSON:
    """The two copies of a portrait: bytes, and milliseconds between events."""
    timer = card.Timer(bench.cuda)
    copies = {"h2d": (painting.upload, painting.source.nbytes), "d2h": (painting.download, painting.target.nbytes)}
    return {
        name: {"bytes": size, "ms": round(float(np.median(timer.measure(copy, card.REPEATS))), 5)}
        for name, (copy, size) in copies.items()
    }


def _measure_stage(job: Job, bench: Bench, spec: EngineSpec) -> JSON:
    """One engine as a CUDA graph of its own: single launches, and the mean of several in a row."""
    single, timer = bench.single(spec), card.Timer(bench.cuda)
    rng = np.random.default_rng(0)
    values: dict[str, npt.NDArray[Any]] = {}
    for name, tensor in bench.tensors(spec)[0].items():
        shape = [int(dim) for dim in tensor.shape]
        values[name] = np.zeros(shape, np.int32) if tensor.dtype == "int32" else rng.standard_normal(shape)
    if "pcm" in values:
        values["pcm"] = np.repeat(job.voices[0][None], spec.batch, axis=0)
    single.run(values)
    launch = bench.cuda.capture(single.enqueue)
    warm_up(lambda: timer.measure(launch, 1), job.counts.warm)
    runs = job.counts.runs
    return {
        "nodes": card.count_nodes(bench.cuda, single.enqueue),
        "ms": {
            "graph_device": timed(timer.measure(launch, runs)),
            "graph_busy": timed(_in_a_row(timer, launch, runs, MOST)),
        },
    }
