"""Our own arms: the runtime on one device as a caller has it, and on OpenVINO in a precision of our choice."""

from __future__ import annotations

import dataclasses
import time

import numpy as np

import runtime
from benchmarks.gpu.parts import JSON
from benchmarks.peers.task import Pixels, Task, check_parity
from runtime.backends.openvino import NAME, OpenVinoSession, settled
from runtime.executor import Clock, StepwiseExecutor, Work
from runtime.pipeline import settings_for
from runtime.portrait import Timings


class Ours:
    """`runtime.load` and `generate`, and nothing else."""

    def __init__(self, task: Task, device: str) -> None:
        self._task, self._device = task, device
        self._pipeline: runtime.Pipeline | None = None

    def prepare(self) -> JSON:
        """Load the bundle; on OpenVINO also say in which precision, which is the processor's or `s2f prepare`'s."""
        task, begin = self._task, time.monotonic()
        self._pipeline = runtime.load(task.folder, device=self._device, threads=task.threads)
        about: JSON = {"seconds": round(time.monotonic() - begin, 2), "threads": self._pipeline.threads}
        if self._device == NAME:
            manifest = self._pipeline.manifest
            about["precision"] = settled(settings_for(manifest, NAME, task.threads), manifest).precision
        return about

    def draw(self, seed: int) -> Pixels:
        """See `Peer`."""
        if self._pipeline is None:
            raise RuntimeError("prepare first")
        return self._pipeline.generate(self._task.speech, seed=seed, steps=self._task.steps).image

    def close(self) -> None:
        """See `Peer`."""
        if self._pipeline is not None:
            self._pipeline.close()
            self._pipeline = None


class OursOnOpenVino:
    """The runtime's executor on OpenVINO in a precision that is asked for.

    A caller cannot ask: `load` takes what `s2f prepare` found to serve. So this opens the executor with
    `Settings.precision`, as `s2f prepare` does to try one. What `generate` adds to that is checking options, taking a
    lock and putting the portrait together.
    """

    def __init__(self, task: Task, precision: str) -> None:
        self._task, self._precision = task, precision
        self._executor: StepwiseExecutor | None = None

    def prepare(self) -> JSON:
        """Open the graphs; in float32 also compare with ours on the CPU."""
        task, begin = self._task, time.monotonic()
        settings = settings_for(task.bundle.manifest, NAME, task.threads)
        settings = dataclasses.replace(settings, precision=self._precision)
        self._executor = StepwiseExecutor(task.bundle, OpenVinoSession, settings)
        about: JSON = {"seconds": round(time.monotonic() - begin, 2), "threads": settings.threads}
        return {**about, "parity_db": round(check_parity(task, self), 2)} if self._precision == "fp32" else about

    def draw(self, seed: int) -> Pixels:
        """See `Peer`."""
        return self.draw_timed(seed)[0]

    def draw_timed(self, seed: int) -> tuple[Pixels, Timings]:
        """A portrait, and what its stages took."""
        if self._executor is None:
            raise RuntimeError("prepare first")
        task, clock = self._task, Clock()
        manifest = task.bundle.manifest
        with clock.measure("audio"):
            pcm = task.window()
        options = {"guidance": manifest.guidance.default, "prior_weight": manifest.prior.weight}
        with clock.measure("graphs"):
            (image,) = self._executor.paint(Work(pcm, [seed], manifest.table(task.steps), options), clock)
        return np.asarray(image), clock.timings()

    def close(self) -> None:
        """See `Peer`."""
        if self._executor is not None:
            self._executor.close()
            self._executor = None
