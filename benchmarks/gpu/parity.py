"""Piece "parity": every engine against ONNX Runtime on the CPU, fed with what it meets when portraits are drawn.

The reference runs the bundle's own graphs in float32, one portrait at a time, and keeps what goes into each graph and
what comes out. An engine is given the same inputs, so that its own error is seen and not that of the stages before it.
Portraits go through the executor from end to end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.gpu.chain import Bench
from benchmarks.gpu.parts import JSON, Part
from benchmarks.gpu.plan import Arm, Job, Pcm, groups, noise_of, options_of, work_of
from benchmarks.gpu.store import Store
from runtime.backends.base import Settings
from runtime.backends.ort import OrtSession
from runtime.backends.tensorrt_executor import TensorRTExecutor
from runtime.bundle import STAGES, Bundle
from runtime.engines import EngineSpec
from runtime.executor import Clock, Executor, Image
from runtime.machine import usable_cores
from runtime.portrait import ALIKE_DB, ALIKE_INT8_DB, psnr

GRAPHS, PORTRAITS = "graphs", "portraits"
COSINE = {"fp32": 0.9999, "fp16": 0.999}
PSNR_DB = {"fp32": ALIKE_DB, "fp16": ALIKE_DB, "int8": ALIKE_INT8_DB}
ENCODED, DRAWN = "condition", "image"
STEPWISE = 16  # so many portraits give the inputs of single graphs; all of them are drawn
SECONDS = 5.0

Arrays = dict[str, npt.NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class Case:
    """One run of one graph of the reference: what went in and came out."""

    stage: str
    inputs: Mapping[str, npt.NDArray[Any]]
    outputs: Mapping[str, npt.NDArray[Any]]


class Reference:
    """The bundle's graphs on ONNX Runtime's CPU provider. Close it."""

    def __init__(self, bundle: Bundle) -> None:
        """Raises BackendMissing, BackendFailed."""
        self._manifest = bundle.manifest
        settings = Settings("cpu", usable_cores())
        self._sessions = {
            name: OrtSession(name, bundle.files[name], stage.inputs, stage.outputs, settings)
            for name, stage in bundle.manifest.stages.items()
        }

    def portrait(self, pcm: Pcm, seed: int, steps: int) -> Iterator[Case]:
        """Every run that one portrait takes, in order; the last gives the image."""
        manifest = self._manifest
        noise = noise_of(manifest, seed)
        encoded = self._case("encoder", {"pcm": pcm[None]})
        yield encoded
        fixed = {name: np.array([value], np.float32) for name, value in options_of(manifest).items()}
        fixed[ENCODED] = encoded.outputs[ENCODED]
        state = {"latent": noise, "history": np.zeros_like(noise)} if manifest.history else {"latent": noise}
        table = manifest.table(steps)
        for row in range(table.first_row, table.first_row + steps):
            case = self._case("unet", {**fixed, **state, "step": np.array([row], np.int64)})
            yield case
            state = {name: case.outputs[f"{name}_next"] for name in state}
        yield self._case("decoder", {"latent": state["latent"]})

    def draw(self, job: Job) -> tuple[list[Case], dict[int, list[Image]]]:
        """The runs of the first portraits, and the images of all pairs by number of steps."""
        cases: list[Case] = []
        images: dict[int, list[Image]] = {steps: [] for steps in job.wanted.steps}
        for index, (pcm, seed) in enumerate(job.pairs()):
            for steps, drawn in images.items():
                runs = list(self.portrait(pcm, seed, steps))
                drawn.append(runs[-1].outputs[DRAWN][0])
                cases += runs if index < STEPWISE else []
        return cases, images

    def _case(self, stage: str, values: Arrays) -> Case:
        session = self._sessions[stage]
        inputs = {name: values[name] for name in session.inputs}
        outputs = {name: np.asarray(value) for name, value in session.run(inputs).items()}
        return Case(stage, inputs, outputs)

    def close(self) -> None:
        """Give memory and threads back."""
        for session in self._sessions.values():
            session.close()


def measure(job: Job, part: Part) -> None:
    """Single engines first, then whole portraits of every form, batch size and number of steps."""
    store = Store(job)
    with contextlib.closing(Reference(job.bundle)) as reference:
        cases, images = reference.draw(job)
    for precision in job.wanted.precisions:
        specs = [spec for spec in job.wanted.engines() if spec.precision == precision and spec.graph in STAGES]
        _compare_graphs(job, part, store, [spec for spec in specs if store.has([spec])], cases)
        arms = [arm for arm in job.wanted.arms() if arm.precision == precision and store.can_draw(arm)]
        _compare_portraits(job, part, store, arms, images)


def _compare_graphs(job: Job, part: Part, store: Store, specs: list[EngineSpec], cases: list[Case]) -> None:
    for spec in specs:
        job.deadline.need(SECONDS, f"comparing {spec}")
        with Bench(job.bundle, store) as bench:
            part.attempt(GRAPHS, str(spec), functools.partial(compare_graph, bench, spec, cases))


def compare_graph(bench: Bench, spec: EngineSpec, cases: list[Case]) -> JSON:
    """Errors of every output of a stage's engine over all cases of that stage, each row of a batch for itself."""
    mine = [case for case in cases if case.stage == spec.graph]
    errors: dict[str, list[JSON]] = {}
    for begin in range(0, len(mine), spec.batch):
        some = _batch(mine, begin, spec.batch)
        found = bench.single(spec).run(_stacked(some))
        for index, case in enumerate(some):
            for name, wanted in case.outputs.items():
                errors.setdefault(name, []).append(difference(found[name][index], wanted[0]))
    count = max(len(values) for values in errors.values())
    return {"inputs": count, "outputs": {name: worst(values) for name, values in errors.items()}}


def _batch(cases: list[Case], begin: int, size: int) -> list[Case]:
    """`size` cases of one row of the step table, the last repeated where there are not so many."""
    first = cases[begin]
    row = first.inputs.get("step")
    alike = [case for case in cases[begin:] if row is None or np.array_equal(case.inputs["step"], row)]
    return [alike[min(index, len(alike) - 1)] for index in range(size)]


def _stacked(cases: list[Case]) -> Arrays:
    """Inputs of single runs as one batch; what has no batch (step, options) is taken once."""
    inputs = cases[0].inputs
    single = ("step", "guidance", "prior_weight")
    return {
        name: value if name in single else np.concatenate([case.inputs[name] for case in cases])
        for name, value in inputs.items()
    }


def difference(found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> JSON:
    """Cosine, relative error (2-norm of the difference by that of what is wanted), largest difference; images: PSNR."""
    a, b = found.astype(np.float64).reshape(-1), wanted.astype(np.float64).reshape(-1)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    result = {
        "cosine": float(a @ b) / norms if norms else float(not (a - b).any()),
        "relative": float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(b)), 1e-12),
        "largest": float(np.abs(a - b).max()),
    }
    return result | ({"psnr_db": psnr(found, wanted)} if wanted.dtype == np.uint8 else {})


def worst(values: list[JSON]) -> JSON:
    """Over many inputs: the lowest cosine and PSNR, the largest errors; a NaN among them stays one."""
    picks = {"cosine": min, "psnr_db": min, "relative": max, "largest": max}
    found = {}
    for name, pick in picks.items():
        seen = [value[name] for value in values if name in value]
        if seen:
            found[name] = math.nan if any(math.isnan(value) for value in seen) else pick(seen)
    return found


def _compare_portraits(job: Job, part: Part, store: Store, arms: list[Arm], images: dict[int, list[Image]]) -> None:
    for some in groups(arms, "form", "batch"):
        job.deadline.need(SECONDS, f"comparing portraits of {some[0]}")
        executor = TensorRTExecutor(job.bundle, store.cache, record=store.record(some))
        with contextlib.closing(executor):
            for arm in some:
                work = functools.partial(compare_portraits, job, arm, executor, images[arm.steps])
                part.attempt(PORTRAITS, str(arm), work)


def compare_portraits(job: Job, arm: Arm, executor: Executor, wanted: list[Image]) -> JSON:
    """PSNR and grey levels of all pairs drawn by the executor, and whether the first comes out the same again."""
    manifest, pairs = job.bundle.manifest, job.pairs()

    def draw(begin: int) -> list[Image]:
        voices, seeds = zip(*(pairs[index % len(pairs)] for index in range(begin, begin + arm.batch)), strict=True)
        return executor.paint(work_of(manifest, voices, seeds, arm.steps), Clock())

    found = [image for begin in range(0, len(pairs), arm.batch) for image in draw(begin)][: len(pairs)]
    levels = [np.abs(a.astype(np.int16) - b) for a, b in zip(found, wanted, strict=True)]
    ratios = [psnr(a, b) for a, b in zip(found, wanted, strict=True)]
    return {
        "pairs": len(pairs),
        "recordings": job.speech is not None,
        "psnr_db": {
            "min": round(min(ratios), 2),
            "median": round(float(np.median(ratios)), 2),
            "raw": [round(ratio, 2) for ratio in ratios],
        },
        "max_levels": max(int(one.max()) for one in levels),
        "mean_levels": round(float(np.mean([one.mean() for one in levels])), 4),
        "repeats": all(np.array_equal(a, b) for a, b in zip(found, draw(0), strict=False)),
    }
