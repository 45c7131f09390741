"""Trying what was prepared, on the machine it was prepared for: does it draw the same, and is it faster?"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from runtime.backends.base import Settings
from runtime.bench import synthetic_speech
from runtime.bundle import Bundle
from runtime.errors import BackendFailed, S2FError
from runtime.executor import Clock, Executor, Image, StepwiseExecutor, Work
from runtime.machine import usable_cores

Tell = Callable[[str], None]

ALIKE_DB = 30.0  # PSNR of a portrait to ONNX Runtime's on the CPU, under which something else is computed
RUNS = 20


def is_no_slower(bundle: Bundle, fused: Executor, chained: Executor, steps: int, tell: Tell) -> bool:
    """Whether one graph draws a portrait as fast as the stages do, or faster: medians of runs taken in turn."""
    work = _work(bundle, steps)
    spent: dict[Executor, list[float]] = {fused: [], chained: []}
    for _ in range(RUNS):
        for executor, times in spent.items():
            begin = time.perf_counter()
            executor.paint(work, Clock())
            times.append((time.perf_counter() - begin) * 1e3)
    one, three = statistics.median(spent[fused]), statistics.median(spent[chained])
    tell(f"{steps} steps: {one:.2f} ms as one graph, {three:.2f} ms as a chain of stages")
    return one <= three


def compare(bundle: Bundle, executors: Sequence[Executor], tell: Tell) -> None:
    """Hold portraits of every number of steps against ONNX Runtime's on the CPU, where it is. Raises BackendFailed."""
    try:
        from runtime.backends.ort import OrtSession

        reference = StepwiseExecutor(bundle, OrtSession, Settings("cpu", usable_cores()))
    except S2FError as reason:
        tell(f"not compared with the CPU: {reason}")
        return
    with contextlib.closing(reference):
        for steps in bundle.manifest.step_tables:
            work = _work(bundle, steps)
            wanted = reference.paint(work, Clock())[0]
            worst = min(psnr(executor.paint(work, Clock())[0], wanted) for executor in executors)
            tell(f"{steps} steps: PSNR to ONNX Runtime on the CPU {worst:.1f} dB")
            if worst < ALIKE_DB:
                raise BackendFailed(
                    f"What was prepared draws something else than ONNX Runtime on the CPU: {worst:.1f} dB PSNR at "
                    f"{steps} steps, {ALIKE_DB:g} are needed; nothing was recorded. Use --precision fp32 "
                    "(s2f-export engines), and please report it"
                )


def _work(bundle: Bundle, steps: int) -> Work:
    """One portrait of a synthetic voice, all options at their defaults."""
    manifest = bundle.manifest
    options = {"guidance": manifest.guidance.default, "prior_weight": manifest.prior.weight}
    return Work(synthetic_speech()[None], [0], manifest.table(steps), options)


def psnr(image: Image, reference: Image) -> float:
    """Peak signal-to-noise ratio in dB of two images uint8 of one shape; 100 where they are equal."""
    error = float(np.mean((image.astype(np.float64) - reference) ** 2))
    return 100.0 if error == 0 else 10 * math.log10(255**2 / error)
