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
import itertools
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.gpu import card
from benchmarks.gpu.chain import Bench, Painting
from benchmarks.gpu.parts import JSON, Part, timed
from benchmarks.gpu.plan import (
    Arm,
    Job,
    Ready,
    groups,
    inputs_of,
    noise_of,
    record_of,
    stopwatch,
    warm_up,
    work_of,
)
from runtime.backends.cuda import CaptureFailed, graphs_missing
from runtime.backends.tensorrt_executor import TensorRTExecutor
from runtime.bundle import STAGES
from runtime.cache import Cache
from runtime.engines import EngineSpec
from runtime.executor import Clock

PORTRAITS, PER_STAGE, CARD = "portraits", "stages", "card"
TOGETHER = 10
SECONDS = 15.0  # what a group of arms may take, opening included: less is not begun

Way = Callable[[int], list[float]]
"""How many runs → milliseconds of each."""
Ways = dict[str, Way]


def measure(job: Job, part: Part) -> None:
    """The card, then group after group; only engines that are in the cache."""
    cache = Cache.default()
    ready = Ready(job.bundle.manifest, cache)
    _measure_card(job, part, cache)
    for group in groups(job.wanted.arms(), "precision", "batch"):
        arms = [arm for arm in group if ready.has([*arm.specs(), *arm.opened()])]
        for arm in group:
            if arm not in arms and str(arm) not in part.results.get(PORTRAITS, {}):
                part.put(PORTRAITS, str(arm), {"error": "its engines are not built"})
        if arms:
            job.deadline.need(SECONDS, f"measuring {arms[0]} and the like")
            part.attempt("groups", str(arms[0]), lambda arms=arms: _measure_group(job, part, cache, arms))  # type: ignore[misc]


def _measure_card(job: Job, part: Part, cache: Cache) -> None:
    with Bench(job.bundle, cache) as bench:
        cuda = bench.cuda
        part.attempt(CARD, "free_bytes", cuda.free_memory)
        part.attempt(CARD, "launch", lambda: card.launch_floor(cuda))
        part.attempt(CARD, "memset", lambda: card.memset_floor(cuda))
        part.attempt(CARD, "copies", lambda: card.transfer(cuda, card.TRANSFER))


def _measure_group(job: Job, part: Part, cache: Cache, arms: list[Arm]) -> JSON:
    with Group(job, cache, arms) as group:
        before = group.bench.cuda.free_memory()
        for arm in arms:
            part.attempt(PORTRAITS, str(arm), lambda arm=arm: group.open(arm))  # type: ignore[misc]
        about = {arm: part.results[PORTRAITS][str(arm)] for arm in group.ways}
        for _ in range(job.counts.rounds):
            for arm in group.ways:
                part.attempt("rounds", str(arm), lambda arm=arm: group.run(arm))  # type: ignore[misc]
                part.put(PORTRAITS, str(arm), {**about[arm], "ms": group.milliseconds(arm)})
        for spec in (EngineSpec(stage, arms[0].batch, 0, arms[0].precision) for stage in STAGES):
            part.attempt(PER_STAGE, str(spec), lambda spec=spec: _measure_stage(job, group.bench, spec))  # type: ignore[misc]
        return {"device_bytes": before - group.bench.cuda.free_memory()}


class Group:
    """Arms of one precision and batch size, open at the same time. Close it by `with`."""

    def __init__(self, job: Job, cache: Cache, arms: list[Arm]) -> None:
        self.ways: dict[Arm, Ways] = {}
        self._job, self._cache, self._arms = job, cache, arms
        self._raw: dict[Arm, dict[str, list[float]]] = {}
        self._executors: dict[str, TensorRTExecutor] = {}
        self._stack = contextlib.ExitStack()
        self.bench = self._stack.enter_context(Bench(job.bundle, cache))

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
        """One round of every way."""
        raw = self._raw.setdefault(arm, {})
        runs = self._job.counts.runs_of(headline=arm in self._job.wanted.headline())
        for kind, way in self.ways[arm].items():
            raw.setdefault(kind, []).extend(way(runs))

    def milliseconds(self, arm: Arm) -> JSON:
        """All rounds so far."""
        return {kind: timed(values) for kind, values in self._raw.get(arm, {}).items()}

    def _end_to_end(self, arm: Arm) -> Way:
        executor, seeds = self._executor(arm.form), itertools.count()
        pcm, manifest = self._job.voices[0], self._job.bundle.manifest

        def paint() -> None:
            some = [next(seeds) for _ in range(arm.batch)]
            executor.paint(work_of(manifest, [pcm] * arm.batch, some, arm.steps), Clock())

        return self._wall(paint)

    def _executor(self, form: str) -> TensorRTExecutor:
        """One per form, with the engines of all arms of that form."""
        if form not in self._executors:
            record = record_of([arm for arm in self._arms if arm.form == form])
            self._executors[form] = TensorRTExecutor(self._job.bundle, self._cache, record=record)
            self._stack.callback(self._executors[form].close)
        return self._executors[form]

    def _device_ways(self, painting: Painting, *, captured: bool) -> Iterator[tuple[str, Way]]:
        timer = card.Timer(self.bench.cuda)
        yield "enqueue_wall", self._wall(lambda: painting.draw(painting.enqueue))
        yield "enqueue_device", lambda runs: timer.measure(painting.enqueue, runs)
        if captured:
            launch = painting.launch
            yield "graph_wall", self._wall(lambda: painting.draw(launch))
            yield "graph_device", lambda runs: timer.measure(launch, runs)
            yield "graph_busy", lambda runs: timer.measure(launch, max(1, runs // TOGETHER), together=TOGETHER)

    def _wall(self, call: Callable[[], None]) -> Way:
        """Wall times of calls, warmed up anew in every round."""

        def way(runs: int) -> list[float]:
            warm_up(call, self._job.counts.warm)
            return stopwatch(call, runs)

        return way

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *error: object) -> None:
        self.ways.clear()
        self._stack.close()


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
    values = {}
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
            "graph_busy": timed(timer.measure(launch, max(1, runs // TOGETHER), together=TOGETHER)),
        },
    }
