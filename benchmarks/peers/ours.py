"""Our own arms: `runtime.load` on one device, and nothing else."""

from __future__ import annotations

import time

import runtime
from benchmarks.gpu.parts import JSON
from benchmarks.peers.task import Pixels, Task


class Ours:
    """The runtime as a caller has it."""

    def __init__(self, task: Task, device: str) -> None:
        self._task, self._device = task, device
        self._pipeline: runtime.Pipeline | None = None

    def prepare(self) -> JSON:
        """Load the bundle."""
        begin = time.monotonic()
        self._pipeline = runtime.load(self._task.folder, device=self._device, threads=self._task.threads)
        return {"seconds": round(time.monotonic() - begin, 2), "threads": self._pipeline.threads}

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
