"""Building a bundle's engines on the device they run on, into the cache: behind `s2f prepare` and `s2f-export engines`.

One engine after the other, each written as soon as it is built, so that a build that is broken off goes on where it
stopped; the record that `generate` goes by is written last. Needs TensorRT, pycuda and onnx, and no torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from export.adaptor import Builder, BuildOptions, builder_package
from export.derive import derive
from export.presets import Preset, board, detect
from export.trial import compare, is_no_slower
from runtime.backends import cuda
from runtime.backends.tensorrt import LEAN, place_here
from runtime.bundle import STAGES, Bundle
from runtime.cache import Cache, Refused
from runtime.engines import (
    ENGINES,
    MAX_BATCH,
    PRECISIONS,
    RECORDS,
    EngineSpec,
    Place,
    Prepared,
    engine_key,
    record_key,
    write_record,
)
from runtime.errors import BackendFailed, InvalidArgument
from runtime.executor import Executor
from runtime.output import write_file

logger = logging.getLogger(__name__)

Tell = Callable[[str], None]

TIMINGS = "timings"
SHARED_WEIGHTS = 1.3  # a pipeline holds each weight once, so its engine is at most so many times the stages' together
SANE_SIZE = 8, 64 * 2**20  # an engine is at most so many times its graph, and so many bytes more


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be built. `steps`: of the whole-pipeline engines, none without that form; batch 1 is always built.

    Raises InvalidArgument for what cannot be.
    """

    batches: tuple[int, ...]
    steps: tuple[int, ...]
    precision: str
    options: BuildOptions

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InvalidArgument(f"precision is {self.precision!r}; choose {' or '.join(PRECISIONS)}")
        if not self.batches or any(not 1 <= batch <= MAX_BATCH for batch in self.batches):
            raise InvalidArgument(f"batch sizes are {self.batches}; give numbers in 1..{MAX_BATCH}")
        if not 0 <= self.options.optimisation <= 5:
            raise InvalidArgument(f"optimisation is {self.options.optimisation}; give a number in 0..5")
        if self.options.workspace_mib < 1:
            raise InvalidArgument(f"workspace is {self.options.workspace_mib} MiB; give 1 or more")

    @classmethod
    def of(cls, preset: Preset, bundle: Bundle) -> Request:
        """What a preset asks for a bundle: the whole pipeline at the bundle's default of steps."""
        steps = (bundle.manifest.default_steps,) if "pipeline" in preset.forms else ()
        half = preset.precision == "fp16"
        return cls(
            preset.batches, steps, preset.precision, BuildOptions(preset.workspace_mib, preset.optimisation, half=half)
        )

    def stages(self) -> list[EngineSpec]:
        """The stage engines, batch after batch."""
        return [EngineSpec(s, batch, 0, self.precision) for batch in sorted({1, *self.batches}) for s in STAGES]

    def pipelines(self) -> list[EngineSpec]:
        """The whole-pipeline engines, which are built for single portraits: what latency is about."""
        return [EngineSpec("pipeline", 1, steps, self.precision) for steps in self.steps]


def prepare(bundle: Bundle, tell: Tell) -> None:
    """Build what the preset of this device asks for: the function behind `s2f prepare`. Raises what `build` raises."""
    builder_package()
    gpu = cuda.describe()
    preset = detect(board(), gpu.capability, gpu.memory)
    tell(f"{gpu.name}, compute capability {gpu.capability}, {gpu.driver}: preset {preset.name}")
    build(bundle, Request.of(preset, bundle), Cache.default(), tell)


def build(bundle: Bundle, request: Request, cache: Cache, tell: Tell, *, report: Path | None = None) -> Prepared:
    """Build the engines that are missing, choose among the forms, and record what serves the bundle from now on.

    `report`: a JSON file for what TensorRT says of each layer. Raises BackendMissing, DeviceUnavailable,
    DeviceOutOfMemory, BackendFailed, StepsUnavailable, OutputUnwritable; engines finished before stay in the cache.
    """
    module = builder_package()
    here = place_here(module)
    place = dataclasses.replace(here, backend=LEAN) if request.options.lean else here
    manifest = bundle.manifest
    for steps in request.steps:
        manifest.table(steps)
    lock = cache.lock(RECORDS, record_key(manifest, place), waiting=lambda: tell("another process builds; waiting"))
    with lock:
        job = _Job(bundle, request, cache, place, Builder(module), tell)
        job.build_all()
        if report is not None:
            write_file(report, (json.dumps(job.layers(), indent=1) + "\n").encode())
        record = _choose(job, place == here)
        write_record(cache, manifest, place, record)
    shown = ", ".join(f"{steps} steps" for _, steps in record.pipelines)
    tell(f"ready: batch {', '.join(map(str, record.batches))}; one engine for {shown or 'no number of steps'}")
    return record


@dataclasses.dataclass
class _Job:
    """One run of the builder over the engines of a request."""

    bundle: Bundle
    request: Request
    cache: Cache
    place: Place
    builder: Builder
    tell: Tell
    sizes: dict[EngineSpec, int] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    built: int = 0

    def build_all(self) -> None:
        """Every engine of the request, each in the cache or built and put there."""
        specs = [*self.request.stages(), *self.request.pipelines()]
        for index, spec in enumerate(specs):
            kept = self._kept(spec)
            if kept is None:
                self.tell(f"{spec}: building, {index + 1} of {len(specs)}; {self._outlook(len(specs) - index)}")
                kept = self._build(spec)
            else:
                self.tell(f"{spec}: in the cache")
            self.sizes[spec] = len(kept)

    def pipelines(self) -> list[EngineSpec]:
        """The whole-pipeline engines worth trying: those in which TensorRT has not copied weights for every step."""
        stages = sum(self.sizes[EngineSpec(stage, 1, 0, self.request.precision)] for stage in STAGES)
        small = [s for s in self.request.pipelines() if self.sizes[s] <= SHARED_WEIGHTS * stages]
        for spec in self.request.pipelines():
            if spec not in small:
                self.tell(f"{spec}: {self.sizes[spec]} bytes, the stages have {stages}; weights are copied, not used")
        return small

    def layers(self) -> dict[str, Any]:
        """What TensorRT says of the layers of every engine."""
        return {str(spec): self.builder.layers(self._read(spec)) for spec in self.sizes}

    def _kept(self, spec: EngineSpec) -> bytes | None:
        """The engine in the cache; None, with the reason told, where it must be built."""
        if self.request.options.detailed:
            return None  # only an engine built for it tells of its layers
        key = engine_key(self.bundle.manifest, self.place, spec)
        try:
            return self.cache.read(ENGINES, key)
        except Refused as reason:
            self.tell(f"{spec}: {reason}; it is built again")
            return None

    def _read(self, spec: EngineSpec) -> bytes:
        try:
            data = self.cache.read(ENGINES, engine_key(self.bundle.manifest, self.place, spec))
        except Refused as reason:
            raise BackendFailed(
                f"{spec}: {reason}. Somebody else writes to the cache; name another in S2F_CACHE"
            ) from None
        if data is None:
            raise BackendFailed(f"{spec} has gone from the cache. Somebody else empties it; name another in S2F_CACHE")
        return data

    def _build(self, spec: EngineSpec) -> bytes:
        begin = time.monotonic()
        graph = derive(self.bundle, spec.graph, batch=spec.batch, steps=spec.steps, precision=spec.precision)
        timings_key = {"kind": TIMINGS, **dataclasses.asdict(self.place), "precision": spec.precision}
        timings = b""
        with contextlib.suppress(Refused):
            timings = self.cache.read(TIMINGS, timings_key) or b""
        plan, timings = self.builder.build(graph, self.request.options, timings=timings, progress=_log_progress)
        times, more = SANE_SIZE
        if len(plan) > times * len(graph) + more:
            raise BackendFailed(
                f"{spec}: the engine has {len(plan)} bytes for a graph of {len(graph)}, a fault some releases of "
                "TensorRT have. Use another release; docs/tensorrt.md names those that are known"
            )
        self.cache.write(ENGINES, engine_key(self.bundle.manifest, self.place, spec), plan)
        self.cache.write(TIMINGS, timings_key, timings)
        spent = time.monotonic() - begin
        self.seconds, self.built = self.seconds + spent, self.built + 1
        self.tell(f"{spec}: {len(plan) / 1e6:.1f} MB in {spent:.0f} s")
        return plan

    def _outlook(self, left: int) -> str:
        """How long it will take, from how long the engines so far took; for the first one nobody can tell."""
        if not self.built:
            return "the first tells how long it takes, from seconds on a large GPU to minutes on a small one"
        return f"about {self.seconds / self.built * left / 60:.1f} minutes left"


def _log_progress(phase: str, done: int, total: int) -> None:
    logger.info("%s: %d of %d", phase, done, total)


def _choose(job: _Job, runs_here: bool) -> Prepared:
    """The record: with the whole-pipeline engines that are no slower than the stages one after the other.

    Also holds the portraits against ONNX Runtime's, where it is installed. An engine for the lean runtime is not run
    here. Raises BackendFailed where the engines draw something else.
    """
    request = job.request
    stages = Prepared(request.precision, tuple(sorted({1, *request.batches})), ())
    if not runs_here:
        job.tell("engines for the lean runtime are neither run nor compared here; `s2f verify` there does it")
        return stages
    pipelines = tuple((spec.batch, spec.steps) for spec in job.pipelines())
    whole = dataclasses.replace(stages, pipelines=pipelines)
    with _opened(job, stages) as chained, _opened(job, whole) as fused:
        compare(job.bundle, (chained, fused), job.tell)
        chosen = tuple(one for one in pipelines if is_no_slower(job.bundle, fused, chained, one[1], job.tell))
    return dataclasses.replace(stages, pipelines=chosen)


@contextlib.contextmanager
def _opened(job: _Job, record: Prepared) -> Iterator[Executor]:
    from runtime.backends.tensorrt_executor import TensorRTExecutor

    executor = TensorRTExecutor(job.bundle, job.cache, record=record)
    try:
        yield executor
    finally:
        executor.close()
