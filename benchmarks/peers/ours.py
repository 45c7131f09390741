"""Our own arms: the runtime on one device in one precision, as a caller has it."""

from __future__ import annotations

import time

import runtime
from benchmarks.gpu.parts import JSON
from benchmarks.peers.task import Pixels, Task, check_parity


class Ours:
    """`runtime.load` and `generate`, and nothing else."""

    def __init__(self, task: Task, device: str, precision: str) -> None:
        self._task, self._device, self._precision = task, device, precision
        self._pipeline: runtime.Pipeline | None = None

    def prepare(self) -> JSON:
        """Load the bundle; in float32 also compare with ours on the CPU."""
        task, begin = self._task, time.monotonic()
        self._pipeline = runtime.load(task.folder, device=self._device, threads=task.threads, precision=self._precision)
        about: JSON = {
            "seconds": round(time.monotonic() - begin, 2),
            "threads": self._pipeline.threads,
            "precision": self._pipeline.precision,
            "prepared": self._pipeline.prepared,
        }
        return {**about, "parity_db": round(check_parity(task, self), 2)} if self._precision == "fp32" else about

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
