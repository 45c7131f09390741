"""Trying what was prepared, on the machine it was prepared for: does it draw the same, and is it faster?"""

from __future__ import annotations

import contextlib
import functools
import statistics
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from runtime.backends.base import Settings
from runtime.bench import collect, flat, synthetic_speech, together, values
from runtime.bundle import Bundle
from runtime.errors import BackendFailed, S2FError
from runtime.executor import Clock, Executor, Image, StepwiseExecutor, Work
from runtime.machine import usable_cores
from runtime.portrait import alike_db, psnr
from runtime.prepare import Tell

RUNS, IN_A_ROW = 30, 5
"""Portraits timed of each arm, and how many of them one after the other: then it is the next arm's turn."""

PATIENCE = 6.0
"""Seconds to wait, and to measure on, for a quiet machine. What it does not give is measured all the same, and told."""

ENOUGH = 10
"""Undisturbed portraits of every arm, from which on the disturbed ones are left out."""

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
    worst, least = min(alike), alike_db(executor.precision)
    tell(f"{name}: PSNR to ONNX Runtime on the CPU at least {worst:.1f} dB")
    if worst < least:
        raise BackendFailed(
            f"What was prepared ({name}) draws something else than ONNX Runtime on the CPU: {worst:.1f} dB PSNR, "
            f"{least:g} are needed; it is not used. For tensorrt there is `s2f-export engines BUNDLE --precision "
            f"{'fp16' if executor.precision == 'int8' else 'fp32'}`. Please report it"
        )


def is_no_slower(bundle: Bundle, fused: Executor, chained: Executor, steps: int, tell: Tell) -> bool:
    """Whether one graph draws a portrait as fast as the stages do, or faster."""
    one, three = medians({"one graph": fused, "stages": chained}, work(bundle, steps), tell).values()
    tell(f"{steps} steps: {one:.2f} ms as one graph, {three:.2f} ms as a chain of stages")
    return one <= three


def medians(arms: Mapping[str, Executor], task: Work, tell: Tell) -> dict[str, float]:
    """Milliseconds of a portrait by arm, measured in turn by the core of `s2f bench`: of the calls that nothing
    disturbed, where there are enough of them, else of all, and then that is told.
    """
    calls = {name: functools.partial(_drawn, arm, task) for name, arm in arms.items()}
    for call in calls.values():
        call(0)  # the first one allocates
    blocks = collect(calls, RUNS, IN_A_ROW, PATIENCE)
    every, quiet = ({name: flat(found) for name, found in values(blocks, quiet=q).items()} for q in (False, True))
    if all(len(quiet.get(name, ())) >= ENOUGH for name in arms):
        return {name: statistics.median(quiet[name]) for name in arms}
    reasons = together([one.conditions for one in blocks])["dirty"] or ["single calls had to wait for a CPU"]
    tell(f"measured on a busy machine, so the times may be off: {'; '.join(reasons)}")
    return {name: statistics.median(every[name]) for name in arms}


def _drawn(arm: Executor, task: Work, _: int) -> None:
    draw(arm, task)


def draw(executor: Executor, task: Work) -> list[Image]:
    """The portraits of a work."""
    return executor.paint(task, Clock())


def work(bundle: Bundle, steps: int, batch: int = 1) -> Work:
    """A synthetic voice with as many seeds, all options at their defaults."""
    manifest = bundle.manifest
    options = {"guidance": manifest.guidance.default, "prior_weight": manifest.prior.weight}
    return Work(synthetic_speech()[None], list(range(batch)), manifest.table(steps), options)
