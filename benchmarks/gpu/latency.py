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
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.gpu import card
from benchmarks.gpu.chain import Bench, Painting, inputs_of
from benchmarks.gpu.parts import JSON, Part, timed
from benchmarks.gpu.plan import Arm, Job, built, stopwatch, warm_up, work_of
from runtime.backends.cuda import CaptureFailed, graphs_missing
from runtime.backends.tensorrt import package, place_here
from runtime.backends.tensorrt_executor import TensorRTExecutor
from runtime.bundle import STAGES, Bundle
from runtime.cache import Cache
from runtime.engines import EngineSpec, engine_key
from runtime.executor import Clock
from runtime.noise import seeded_noise

PORTRAITS, PER_STAGE, CARD = "portraits", "stages", "card"
TOGETHER = 10
SECONDS = 15.0  # what a group of arms may take, opening included: less is not begun

Kinds = dict[str, Callable[[int], list[float]]]


def measure(job: Job, part: Part) -> None:
    """The card, then group after group; only engines that are in the cache."""
    cache = Cache.default()
    place = place_here(package())

    def key(spec: EngineSpec) -> dict[str, object]:
        return engine_key(job.bundle.manifest, place, spec)

    _measure_card(job, part, cache)
    for group in groups(job.wanted.arms()):
        arms = [arm for arm in group if built(cache, key, [*arm.specs(), *_stages_of_one(arm)])]
        for arm in group:
            if arm not in arms:
                part.put(PORTRAITS, str(arm), {"error": "its engines are not built"})
        if arms:
            job.deadline.need(SECONDS, f"measuring {arms[0]} and the like")
            part.attempt("groups", str(arms[0]), lambda arms=arms: _measure_group(job, part, cache, arms))  # type: ignore[misc]


def groups(arms: list[Arm]) -> list[list[Arm]]:
    """Arms that share precision and batch size, in the order of their first."""
    found: dict[tuple[str, int], list[Arm]] = {}
    for arm in arms:
        found.setdefault((arm.precision, arm.batch), []).append(arm)
    return list(found.values())


def _stages_of_one(arm: Arm) -> list[EngineSpec]:
    """What the executor opens whatever the arm."""
    return [EngineSpec(stage, 1, 0, arm.precision) for stage in STAGES]


def _measure_card(job: Job, part: Part, cache: Cache) -> None:
    with Bench(job.bundle, cache) as bench:
        cuda = bench.cuda
        part.attempt(CARD, "free_bytes", cuda.free_memory)
        part.attempt(CARD, "launch", lambda: card.launch_floor(cuda))
        part.attempt(CARD, "memset", lambda: card.memset_floor(cuda))
        part.attempt(CARD, "copies", lambda: card.transfer(cuda, card.TRANSFER))


def _measure_group(job: Job, part: Part, cache: Cache, arms: list[Arm]) -> JSON:
    headline = job.wanted.headline()
    with Bench(job.bundle, cache) as bench, contextlib.ExitStack() as stack:
        before = bench.cuda.free_memory()
        found: dict[Arm, JSON] = {}
        kinds: dict[Arm, Kinds] = {}
        for arm in arms:
            opened = part.attempt(PORTRAITS, str(arm), lambda arm=arm: _open(job, cache, bench, stack, arm))  # type: ignore[misc]
            if opened is not None:
                found[arm], kinds[arm] = opened["about"], opened.pop("kinds")
        raw: dict[Arm, dict[str, list[float]]] = {arm: {kind: [] for kind in kinds[arm]} for arm in kinds}
        for _ in range(job.counts.rounds):
            for arm, ways in kinds.items():
                runs = job.counts.runs_of(headline=arm in headline)
                part.attempt("rounds", str(arm), lambda ways=ways, arm=arm, runs=runs: _round(raw[arm], ways, runs))  # type: ignore[misc]
                milliseconds = {kind: timed(values) for kind, values in raw[arm].items() if values}
                part.put(PORTRAITS, str(arm), {**found[arm], "ms": milliseconds})
        for spec in arms[0].specs() if arms[0].form == "stages" else ():
            part.attempt(PER_STAGE, str(spec), lambda spec=spec: _measure_stage(job, bench, spec))  # type: ignore[misc]
        return {"device_bytes": before - bench.cuda.free_memory()}


def _round(raw: dict[str, list[float]], ways: Kinds, runs: int) -> None:
    for kind, way in ways.items():
        raw[kind] += way(runs)


def _open(job: Job, cache: Cache, bench: Bench, stack: contextlib.ExitStack, arm: Arm) -> JSON:
    """What is known of an arm before it is timed, and the ways to time it."""
    painting = bench.painting(arm)
    painting.fill(_values(job.bundle, job.voices[0], arm.batch))
    executor = TensorRTExecutor(job.bundle, cache, record=arm.record())
    stack.callback(executor.close)
    about: JSON = {"arm": dataclasses.asdict(arm), **_transfers(bench, painting)}
    try:
        about["nodes"] = card.count_nodes(bench.cuda, painting.enqueue)
        about["capture"] = graphs_missing() or _captured(painting)
    except Exception as error:  # noqa: BLE001 - told in the result; the arm can still be enqueued
        about["capture"] = f"{type(error).__name__}: {error}"
    kinds = dict(_ways(job, bench, painting, executor, arm, captured=about["capture"] == "graph"))
    return {"about": about, "kinds": kinds}


def _captured(painting: Painting) -> str:
    try:
        painting.launch  # noqa: B018 - made at first use
    except CaptureFailed as reason:
        return str(reason)
    return "graph"


def _values(bundle: Bundle, pcm: Any, batch: int) -> Any:
    latent = bundle.manifest.latent
    noise = np.stack([seeded_noise(seed, (latent.channels, latent.height, latent.width)) for seed in range(batch)])
    return inputs_of(bundle, np.repeat(pcm[None], batch, axis=0), noise)


def _transfers(bench: Bench, painting: Painting) -> JSON:
    """The two copies of a portrait: bytes, and milliseconds between events."""
    timer = card.Timer(bench.cuda)
    copies = {"h2d": (painting.upload, painting.source.nbytes), "d2h": (painting.download, painting.target.nbytes)}
    return {
        name: {"bytes": size, "ms": round(float(np.median(timer.measure(copy, card.REPEATS))), 5)}
        for name, (copy, size) in copies.items()
    }


def _ways(
    job: Job, bench: Bench, painting: Painting, executor: TensorRTExecutor, arm: Arm, *, captured: bool
) -> Iterator[tuple[str, Callable[[int], list[float]]]]:
    """(kind, runs → milliseconds), each warmed up anew in every round."""
    timer, warm = card.Timer(bench.cuda), job.counts.warm
    pcm, manifest = job.voices[0], job.bundle.manifest
    seeds = iter(range(2**31))

    def paint() -> None:
        executor.paint(work_of(manifest, pcm, [next(seeds) for _ in range(arm.batch)], arm.steps), Clock())

    def wall(call: Callable[[], None], runs: int) -> list[float]:
        warm_up(call, warm)
        return stopwatch(call, runs)

    yield "end_to_end", lambda runs: wall(paint, runs)
    yield "enqueue_wall", lambda runs: wall(lambda: painting.draw(painting.enqueue), runs)
    yield "enqueue_device", lambda runs: timer.measure(painting.enqueue, runs)
    if captured:
        launch = painting.launch
        yield "graph_wall", lambda runs: wall(lambda: painting.draw(launch), runs)
        yield "graph_device", lambda runs: timer.measure(launch, runs)
        yield "graph_busy", lambda runs: timer.measure(launch, max(1, runs // TOGETHER), together=TOGETHER)


def _measure_stage(job: Job, bench: Bench, spec: EngineSpec) -> JSON:
    """One engine as a CUDA graph of its own: single launches, and the mean of several in a row."""
    single, timer = bench.single(spec), card.Timer(bench.cuda)
    latent = job.bundle.manifest.latent
    shape = (spec.batch, latent.channels, latent.height, latent.width)
    rng = np.random.default_rng(0)
    inputs, _ = bench.tensors(spec)
    values = {
        name: np.zeros(tensor.shape, tensor.dtype) if tensor.dtype == "int32" else rng.standard_normal(tensor.shape)
        for name, tensor in inputs.items()
    }
    values.update({name: rng.standard_normal(shape) for name in ("latent", "history") if name in inputs})
    if "pcm" in inputs:
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
