"""Ways to draw one portrait that are compared in one run: TensorRT, PyTorch, ONNX Runtime. All from a seed to pixels.

Which of them an interpreter can run depends on what it has installed, so several interpreters share the work (see
`benchmarks.gpu.worker`); each offers what `here` finds, by the same names.
"""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from benchmarks.gpu.parts import JSON
from benchmarks.gpu.plan import Arm, Job, work_of
from runtime.backends.base import Settings
from runtime.cache import Cache
from runtime.engines import ENGINES, Prepared, engine_key
from runtime.errors import S2FError
from runtime.executor import Clock, Executor
from runtime.machine import usable_cores
from runtime.precision import SERVED

Pixels = npt.NDArray[np.uint8]
Maker = Callable[[], "Way"]


class Way(Protocol):
    """One way to draw portraits of the first voice, batch 1, in the default number of steps."""

    def prepare(self) -> JSON:
        """What happens once; returns what is known of it."""

    def draw(self, seed: int) -> Pixels:
        """uint8 [H, W, 3], from PCM and seed in host memory to pixels in host memory."""

    def close(self) -> None:
        """Give everything back."""


class Executed:
    """An executor of the runtime."""

    def __init__(self, job: Job, open_it: Callable[[], Executor]) -> None:
        self._job, self._open = job, open_it
        self._executor: Executor | None = None

    def prepare(self) -> JSON:
        """Open, and draw a few: the first runs may capture a CUDA graph."""
        begin = time.monotonic()
        self._executor = self._open()
        for seed in range(3):
            self.draw(seed)
        return {"seconds": round(time.monotonic() - begin, 1)}

    def draw(self, seed: int) -> Pixels:
        """See `Way`."""
        if self._executor is None:
            raise RuntimeError("prepare first")
        work = work_of(self._job.bundle.manifest, [self._job.voices[0]], [seed], self._job.wanted.steps[0])
        return self._executor.paint(work, Clock())[0]

    def close(self) -> None:
        """See `Way`."""
        if self._executor is not None:
            self._executor.close()
            self._executor = None


def here(job: Job) -> tuple[dict[str, Maker], dict[str, str]]:
    """(name → maker of all that can run in this interpreter, name of a family → why it cannot)."""
    ways: dict[str, Maker] = {}
    missing: dict[str, str] = {}
    for family, find in (("tensorrt", _tensorrt), ("torch", _torch), ("onnxruntime", _onnxruntime)):
        try:
            found = find(job)
        except (S2FError, ImportError) as reason:
            missing[family] = f"{type(reason).__name__}: {reason}"[:300]
        else:
            ways.update(found)
    return ways, missing


def name_of(arm: Arm) -> str:
    """What a TensorRT arm is called among the ways."""
    return f"tensorrt {arm.form} {arm.precision}"


def _tensorrt(job: Job) -> dict[str, Maker]:
    from benchmarks.gpu.store import Store
    from runtime.backends.tensorrt_executor import TensorRTExecutor

    store = Store(job)

    def opened(arm: Arm) -> Way:
        return Executed(job, lambda: TensorRTExecutor(job.bundle, store.cache, record=store.record([arm])))

    steps = job.wanted.steps[0]
    arms = [Arm(form, precision, 1, steps) for precision in job.wanted.precisions for form in job.wanted.forms]
    return {name_of(arm): functools.partial(opened, arm) for arm in arms if store.can_draw(arm)}


def _torch(job: Job) -> dict[str, Maker]:
    if importlib.util.find_spec("torch") is None:
        raise ImportError("torch is not installed")
    from benchmarks.gpu import torch_baseline

    reason = torch_baseline.missing(job.torch_device)
    if reason:
        raise ImportError(reason)
    steps, pcm = job.wanted.steps[0], job.voices[0]

    def made(name: str) -> Way:
        return torch_baseline.TorchArm(name, job.network, steps, pcm, job.torch_device)

    return {name: functools.partial(made, name) for name in torch_baseline.WAYS}


def _onnxruntime(job: Job) -> dict[str, Maker]:
    from runtime.backends import select

    select("cuda")

    def opened(precision: str | None) -> Way:
        return Executed(job, functools.partial(_open_onnxruntime, job, precision))

    ways: dict[str, Maker] = {"onnxruntime cuda stages fp32": functools.partial(opened, None)}
    if importlib.util.find_spec("onnx") is not None:
        for precision in (one for one in job.wanted.precisions if one in SERVED["cuda"]):
            ways[f"onnxruntime cuda pipeline {precision}"] = functools.partial(opened, precision)
    return ways


def _open_onnxruntime(job: Job, precision: str | None) -> Executor:
    """The bundle's own stages, or the derived pipeline in one CUDA graph, which is put where `s2f prepare` puts it."""
    from runtime.backends.ort_executor import OrtExecutor, place_here

    cache, manifest, steps = Cache.default(), job.bundle.manifest, job.wanted.steps[0]
    record = Prepared(precision or "fp32", (), () if precision is None else ((1, steps),))
    for spec in record.engines():
        from export.derive import derive

        data = derive(job.bundle, spec.graph, batch=spec.batch, steps=spec.steps, precision=spec.precision)
        cache.write(ENGINES, engine_key(manifest, place_here(), spec), data)
    return OrtExecutor(job.bundle, Settings("cuda", usable_cores()), cache, record=record)
