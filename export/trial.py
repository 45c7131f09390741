"""Trying what was prepared, on the machine it was prepared for: does it draw the same, and is it faster?"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Sequence
from typing import TypeAlias

from runtime.backends.base import Settings
from runtime.bench import synthetic_speech
from runtime.bundle import Bundle
from runtime.errors import BackendFailed, S2FError
from runtime.executor import Clock, Executor, Image, StepwiseExecutor, Work
from runtime.machine import usable_cores
from runtime.portrait import ALIKE_DB, ALIKE_INT8_DB, psnr
from runtime.prepare import Tell

RUNS = 20


Trials: TypeAlias = "list[tuple[Work, list[Image] | None]]"


def trials(bundle: Bundle, batches: Sequence[int], tell: Tell) -> Trials:
    """What to draw: every number of steps, and every batch size at the default. With it ONNX Runtime's portraits on the
    CPU; None, and the reason told, where it is not installed.
    """
    manifest = bundle.manifest
    works = [work(bundle, steps) for steps in manifest.step_tables]
    works += [work(bundle, manifest.default_steps, batch) for batch in batches if batch > 1]
    try:
        from runtime.backends.ort import OrtSession

        executor = StepwiseExecutor(bundle, OrtSession, Settings("cpu", usable_cores()))
    except S2FError as reason:
        tell(f"not compared with the CPU: {reason}")
        return [(one, None) for one in works]
    with contextlib.closing(executor):
        return [(one, draw(executor, one)) for one in works]


def try_out(name: str, executor: Executor, wanted: Trials, tell: Tell) -> None:
    """Draw the trials and hold them against the CPU's portraits in float32, at the limit of the executor's precision.

    Raises BackendFailed where they are others.
    """
    alike: list[float] = []
    for one, references in wanted:
        drawn = draw(executor, one)
        alike += [psnr(*pair) for pair in zip(drawn, references or (), strict=references is not None)]
    if not alike:
        return
    worst = min(alike)
    tell(f"{name}: PSNR to ONNX Runtime on the CPU at least {worst:.1f} dB")
    limit, wider = (ALIKE_INT8_DB, "fp16") if executor.precision == "int8" else (ALIKE_DB, "fp32")
    if worst < limit:
        raise BackendFailed(
            f"What was prepared ({name}) draws something else than ONNX Runtime on the CPU: {worst:.1f} dB PSNR, "
            f"{limit:g} are needed; it is not used. For tensorrt there is `s2f-export engines BUNDLE --precision "
            f"{wider}`. Please report it"
        )


def is_no_slower(bundle: Bundle, fused: Executor, chained: Executor, steps: int, tell: Tell) -> bool:
    """Whether one graph draws a portrait as fast as the stages do, or faster: medians of runs taken in turn."""
    task = work(bundle, steps)
    spent: dict[Executor, list[float]] = {fused: [], chained: []}
    for _ in range(RUNS):
        for executor, times in spent.items():
            begin = time.perf_counter()
            draw(executor, task)
            times.append((time.perf_counter() - begin) * 1e3)
    one, three = statistics.median(spent[fused]), statistics.median(spent[chained])
    tell(f"{steps} steps: {one:.2f} ms as one graph, {three:.2f} ms as a chain of stages")
    return one <= three


def draw(executor: Executor, task: Work) -> list[Image]:
    """The portraits of a work."""
    return executor.paint(task, Clock())


def work(bundle: Bundle, steps: int, batch: int = 1) -> Work:
    """A synthetic voice with as many seeds, all options at their defaults."""
    manifest = bundle.manifest
    options = {"guidance": manifest.guidance.default, "prior_weight": manifest.prior.weight}
    return Work(synthetic_speech()[None], list(range(batch)), manifest.table(steps), options)
