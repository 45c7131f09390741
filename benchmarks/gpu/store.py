"""The engines of one job in the cache: how they are built here, which of them are there, what opens them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from benchmarks.gpu.plan import Arm, Job
from export.adaptor import BuildOptions
from export.engines import Request
from export.presets import board, detect
from runtime.backends import cuda
from runtime.backends.tensorrt import package, place_here
from runtime.cache import Cache
from runtime.engines import ENGINES, EngineSpec, Prepared, engine_key


class Store:
    """Engines for the TensorRT, GPU and driver here, built as the job says, else as the device's preset does."""

    def __init__(self, job: Job) -> None:
        """Raises BackendMissing, DeviceUnavailable."""
        module, gpu = package(), cuda.describe()
        preset = detect(board(), gpu.capability, gpu.memory)
        workspace = preset.workspace_mib if job.workspace is None else job.workspace
        optimisation = preset.optimisation if job.optimisation is None else job.optimisation
        self.cache, self.place = Cache.default(), place_here(module)
        self._manifest, self.options = job.bundle.manifest, BuildOptions(workspace, optimisation)
        self._recorded = Request((1,), (), "fp16", self.options).record(str(module.__version__))
        self.key_options = self._recorded.options

    def key(self, spec: EngineSpec) -> dict[str, Any]:
        """The cache key of an engine."""
        return engine_key(self._manifest, self.place, spec, self.key_options)

    def has(self, specs: Sequence[EngineSpec]) -> bool:
        """Whether all of them are in the cache."""
        return all(self.cache.path(ENGINES, self.key(spec)).exists() for spec in specs)

    def can_draw(self, arm: Arm) -> bool:
        """Whether all is there that the arm runs, and what an executor opens besides."""
        return self.has([*arm.specs(), *self.record([arm]).engines()])

    def record(self, arms: Sequence[Arm]) -> Prepared:
        """What makes an executor draw like these arms, which share form and precision. Batch 1 is always with it."""
        pipelines = tuple((arm.batch, arm.steps) for arm in arms if arm.form == "pipeline")
        batches = tuple(sorted({1, *(arm.batch for arm in arms)}))
        return dataclasses.replace(self._recorded, precision=arms[0].precision, batches=batches, pipelines=pipelines)
