"""OpenVINO beside ONNX Runtime on this CPU: behind `s2f prepare --device openvino`. Needs neither onnx nor torch."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypeAlias

from export.forms import record_forms
from export.trial import draw, work
from runtime.backends import Settings, select
from runtime.backends.openvino import NAME, OpenVinoSession, keep, place_here, precisions_here
from runtime.backends.ort import OrtSession
from runtime.bundle import Bundle
from runtime.cache import Cache
from runtime.engines import RECORDS
from runtime.errors import BackendMissing
from runtime.executor import Executor, StepwiseExecutor
from runtime.machine import usable_cores
from runtime.portrait import psnr
from runtime.prepare import Tell
from runtime.standing import ENOUGH_DB, Standing, standing_key, write_standing

SEEDS = 6
ROUNDS, CALLS = 16, 2
"""Portraits are timed in turn, each arm CALLS in a row after one that is not: the machine's moods fall on all."""

YARDSTICK = "ONNX Runtime"

Clock: TypeAlias = "Callable[[], float]"


def prepare(bundle: Bundle, tell: Tell, *, clock: Clock = time.perf_counter) -> None:
    """Measure whether OpenVINO draws the bundle faster here, and alike; keep its compiled graphs.

    Raises BackendMissing, BackendFailed, DeviceOutOfMemory, OutputUnwritable.
    """
    select(NAME)
    cache, manifest = Cache.default(), bundle.manifest
    key = standing_key(manifest)
    with cache.lock(RECORDS, key, waiting=lambda: tell("another process prepares; waiting")):
        try:
            select("cpu")
        except BackendMissing as reason:
            tell(f"not measured against ONNX Runtime, so auto does not take openvino: {reason}")
            precision = precisions_here()[0]
        else:
            found = compare(bundle, tell, clock)
            write_standing(cache, manifest, found)
            precision = found.precision
            tell(f"{found}: {'auto takes openvino' if found.wins else 'auto does not take openvino'}")
        counts, size = thread_counts(), 0
        for threads in counts:  # which are part of what is compiled
            settings = Settings(NAME, threads, precision)
            size += sum(keep(bundle.files[name], settings, cache, f"the {name} graph") for name in manifest.stages)
        told = " and ".join(map(str, counts))
        tell(f"ready: compiled graphs in {precision} for {told} threads, {size / 1e6:.1f} MB in the cache")
        record_forms(bundle, OpenVinoSession, Settings(NAME, max(counts), precision), tell)


def thread_counts() -> list[int]:
    """What a portrait is measured with, and graphs are kept for."""
    return sorted({1, usable_cores()})


def compare(bundle: Bundle, tell: Tell, clock: Clock = time.perf_counter) -> Standing:
    """OpenVINO in the precisions of this CPU against ONNX Runtime, with one thread and with all usable cores.

    The precision is the fastest with all cores of those that draw the same, else the one that comes nearest.
    """
    times: dict[int, dict[str, float]] = {}
    alike: dict[str, float] = {}
    for threads in thread_counts():
        with contextlib.ExitStack() as stack:
            yardstick: Executor = StepwiseExecutor(bundle, OrtSession, Settings("cpu", threads))
            arms = {YARDSTICK: stack.enter_context(contextlib.closing(yardstick))}
            for precision in precisions_here():
                arm = StepwiseExecutor(bundle, OpenVinoSession, Settings(NAME, threads, precision))
                arms[precision] = stack.enter_context(contextlib.closing(arm))
            alike = likeness(bundle, arms)
            times[threads] = medians(bundle, arms, clock)
        told = ", ".join(f"{name} {value:.1f} ms" for name, value in times[threads].items())
        tell(f"{bundle.manifest.default_steps} steps with {threads} thread{'s' if threads > 1 else ''}: {told}")
    tell("PSNR to ONNX Runtime at least " + ", ".join(f"{value:.1f} dB in {name}" for name, value in alike.items()))
    same = [precision for precision, value in alike.items() if value >= ENOUGH_DB]
    fastest = times[max(times)]
    chosen = min(same, key=lambda name: fastest[name]) if same else max(alike, key=lambda name: alike[name])
    pairs = {threads: (values[chosen], values[YARDSTICK]) for threads, values in times.items()}
    return Standing(chosen, alike[chosen], pairs, place_here())


def likeness(bundle: Bundle, arms: Mapping[str, Executor]) -> dict[str, float]:
    """PSNR to the yardstick's portraits of each other arm, the lowest of SEEDS seeds at the default steps, in dB."""
    task = work(bundle, bundle.manifest.default_steps, SEEDS)
    wanted = draw(arms[YARDSTICK], task)
    return {
        name: min(psnr(*pair) for pair in zip(draw(arm, task), wanted, strict=True))
        for name, arm in arms.items()
        if name != YARDSTICK
    }


def medians(bundle: Bundle, arms: Mapping[str, Executor], clock: Clock) -> dict[str, float]:
    """Milliseconds of a portrait at the default steps by arm, taken in turn."""
    task = work(bundle, bundle.manifest.default_steps)
    spent: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(ROUNDS):
        for name, arm in arms.items():
            draw(arm, task)
            for _ in range(CALLS):
                begin = clock()
                draw(arm, task)
                spent[name].append((clock() - begin) * 1e3)
    return {name: statistics.median(values) for name, values in spent.items()}
