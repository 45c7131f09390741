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
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from export.adaptor import Builder, BuildOptions, builder_package
from export.derive import derive
from export.presets import Preset, board, detect
from export.trial import is_no_slower, trials, try_out
from runtime.backends import cuda
from runtime.backends.tensorrt import LEAN, Runtime, place_here
from runtime.bundle import STAGES, Bundle, read_bundle
from runtime.cache import Cache, Refused
from runtime.engines import (
    ENGINES,
    INT8_FAMILY,
    MAX_ENGINE_BATCH,
    PRECISIONS,
    RECORDS,
    EngineSpec,
    Place,
    Prepared,
    engine_key,
    read_record,
    record_key,
    write_record,
)
from runtime.errors import BackendFailed, InvalidArgument, NotPrepared, OutputUnwritable, S2FError
from runtime.executor import Executor
from runtime.output import write_file
from runtime.prepare import Tell

logger = logging.getLogger(__name__)

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
        if not self.batches or any(not 1 <= batch <= MAX_ENGINE_BATCH for batch in self.batches):
            raise InvalidArgument(f"batch sizes are {self.batches}; give numbers in 1..{MAX_ENGINE_BATCH}")
        if not 0 <= self.options.optimisation <= 5:
            raise InvalidArgument(f"optimisation is {self.options.optimisation}; give a number in 0..5")
        if self.options.workspace_mib < 1:
            raise InvalidArgument(f"workspace is {self.options.workspace_mib} MiB; give 1 or more")

    @classmethod
    def of(cls, preset: Preset, bundle: Bundle) -> Request:
        """What a preset asks for a bundle: the whole pipeline at the bundle's default of steps."""
        steps = (bundle.manifest.default_steps,) if "pipeline" in preset.forms else ()
        return cls(preset.batches, steps, preset.precision, BuildOptions(preset.workspace_mib, preset.optimisation))

    @classmethod
    def again(cls, record: Prepared) -> Request:
        """What led to a record."""
        options = BuildOptions(
            int(record.options["workspace_mib"]),
            int(record.options["optimisation"]),
            detailed=bool(record.options["detailed"]),
        )
        return cls(record.batches, record.asked, record.precision, options)

    def stages(self) -> list[EngineSpec]:
        """The stage engines, batch after batch."""
        return [EngineSpec(s, batch, 0, self.precision) for batch in sorted({1, *self.batches}) for s in STAGES]

    def pipelines(self) -> list[EngineSpec]:
        """The whole-pipeline engines, which are built for single portraits: what latency is about."""
        return [EngineSpec("pipeline", 1, steps, self.precision) for steps in self.steps]

    def record(self, release: str) -> Prepared:
        """What is recorded of the stages. The keys of lean engines, which any release may run, hold the builder's."""
        options: dict[str, str | int] = {
            "workspace_mib": self.options.workspace_mib,
            "optimisation": self.options.optimisation,
            "detailed": int(self.options.detailed),
        }
        if self.options.lean:
            options["builder"] = release
        return Prepared(self.precision, tuple(sorted({1, *self.batches})), (), options, self.steps)


def prepare(bundle: Bundle, tell: Tell) -> None:
    """Build what the preset of this device asks for: the function behind `s2f prepare`. Raises what `build` raises.

    What is prepared and opens stays as it is, also if somebody chose it with `s2f-export engines`.
    """
    place, cache = place_here(builder_package()), Cache.default()
    gpu = cuda.describe()
    preset = detect(board(), gpu.capability, gpu.memory)
    tell(f"{gpu.name}, compute capability {gpu.capability}, {gpu.driver}: preset {preset.name}")
    with _locked(bundle, cache, place, tell):
        record = None
        try:
            record = read_record(cache, bundle.manifest, place)
            if record is not None:
                _open(bundle, cache, record).close()
                tell(f"prepared before, in {record.precision}; `s2f-export engines` changes it")
                return
        except (Refused, NotPrepared, BackendFailed) as reason:
            tell(f"what was prepared before is not used: {_without_cure(reason)}")
        request = Request.of(preset, bundle) if record is None else Request.again(record)
        _build(_Job(bundle, request, cache, tell))


def build(bundle: Bundle, request: Request, cache: Cache, tell: Tell, *, report: Path | None = None) -> Prepared:
    """Build the engines that are missing, choose among the forms, and record what serves the bundle from now on.

    `report`: a JSON file for what TensorRT says of each layer. Raises BackendMissing, DeviceUnavailable,
    DeviceOutOfMemory, BackendFailed, StepsUnavailable, OutputUnwritable; engines finished before stay in the cache.
    """
    for steps in request.steps:
        bundle.manifest.table(steps)
    job = _Job(bundle, request, cache, tell)
    with _locked(bundle, cache, job.place, tell):
        return _build(job, report)


def _locked(bundle: Bundle, cache: Cache, place: Place, tell: Tell) -> AbstractContextManager[None]:
    key = record_key(bundle.manifest, place)
    return cache.lock(RECORDS, key, waiting=lambda: tell("another process builds; waiting"))


def _build(job: _Job, report: Path | None = None) -> Prepared:
    """See `build`; under the lock."""
    job.build_all()
    if report is not None:
        write_file(report, (json.dumps(job.layers(), indent=1) + "\n").encode())
    if job.request.options.lean:
        job.tell("engines for the lean runtime are neither run nor compared here; `s2f verify` there does it")
        record = job.stages
    else:
        record = _choose(job)
    write_record(job.cache, job.bundle.manifest, job.place, record)
    shown = ", ".join(f"{steps} steps" for _, steps in record.pipelines)
    job.tell(f"ready: batch {', '.join(map(str, record.batches))}; one engine for {shown or 'no number of steps'}")
    return record


class _Job:
    """One run of the builder over the engines of a request."""

    def __init__(self, bundle: Bundle, request: Request, cache: Cache, tell: Tell) -> None:
        """Raises BackendMissing, DeviceUnavailable, BundleInvalid where the variant that int8 is made of is missing."""
        module = builder_package()
        self.bundle, self.request, self.cache, self.tell = bundle, request, cache, tell
        self._source = bundle if request.precision != "int8" else read_bundle(bundle.path, INT8_FAMILY)
        self.stages = request.record(str(module.__version__))
        self._here = place_here(module)
        self.place = dataclasses.replace(self._here, backend=LEAN) if request.options.lean else self._here
        self._builder = Builder(module)
        self._runtime = Runtime(module, cache, bundle.manifest, self._here)
        self._plans: dict[EngineSpec, int] = {}
        self._seconds: list[float] = []

    def build_all(self) -> None:
        """Every engine of the request, each in the cache or built and put there."""
        specs = [*self.request.stages(), *self.request.pipelines()]
        for index, spec in enumerate(specs):
            plan = self._kept(spec)
            if plan is None:
                self.tell(f"{spec}: building, {index + 1} of {len(specs)}; {self._outlook(len(specs) - index)}")
                plan = self._build(spec)
            else:
                self.tell(f"{spec}: in the cache")
            self._plans[spec] = len(plan)

    def pipelines(self) -> tuple[tuple[int, int], ...]:
        """(batch, steps) of the whole-pipeline engines worth trying: those whose weights TensorRT has not copied for
        every step.
        """
        stages = sum(self._plans[EngineSpec(stage, 1, 0, self.request.precision)] for stage in STAGES)
        small = []
        for spec in self.request.pipelines():
            if self._plans[spec] <= SHARED_WEIGHTS * stages:
                small.append((spec.batch, spec.steps))
            else:
                self.tell(f"{spec}: {self._plans[spec]} bytes, the stages have {stages}; weights are copied, not used")
        return tuple(small)

    def layers(self) -> dict[str, Any]:
        """What TensorRT says of the layers of every engine."""
        return {str(spec): self._builder.layers(self._kept(spec) or self._build(spec)) for spec in self._plans}

    def _key(self, spec: EngineSpec) -> dict[str, Any]:
        return engine_key(self.bundle.manifest, self.place, spec, self.stages.options)

    def _kept(self, spec: EngineSpec) -> bytes | None:
        """The engine in the cache; None, with the reason told, where there is none that TensorRT takes."""
        try:
            plan = self.cache.read(ENGINES, self._key(spec))
            if plan is not None and not self.request.options.lean:  # which the full runtime does not load
                self._runtime.deserialise(plan, spec)
        except (Refused, NotPrepared, BackendFailed) as reason:
            self.tell(f"{spec}: {_without_cure(reason)}; it is built again")
            return None
        return plan

    def _build(self, spec: EngineSpec) -> bytes:
        begin = time.monotonic()
        graph = derive(self._source, spec.graph, batch=spec.batch, steps=spec.steps, precision=spec.precision)
        timings_key = {"kind": TIMINGS, **dataclasses.asdict(self._here), "precision": spec.precision}
        timings = b""
        with contextlib.suppress(Refused):
            timings = self.cache.read(TIMINGS, timings_key) or b""
        plan, timings = self._builder.build(graph, self.request.options, timings=timings, progress=_log_progress)
        times, more = SANE_SIZE
        if len(plan) > times * len(graph) + more:
            raise BackendFailed(
                f"{spec}: the engine has {len(plan)} bytes for a graph of {len(graph)}, a fault some releases of "
                "TensorRT have. Use another release; docs/tensorrt.md names those that are known"
            )
        self.cache.write(ENGINES, self._key(spec), plan)
        try:
            self.cache.write(TIMINGS, timings_key, timings)
        except OutputUnwritable as reason:
            logger.info("the timing cache is not kept: %s", reason)
        self._seconds.append(time.monotonic() - begin)
        self.tell(f"{spec}: {len(plan) / 1e6:.1f} MB in {self._seconds[-1]:.0f} s")
        return plan

    def _outlook(self, left: int) -> str:
        """How long it will take, from how long the engines so far took; for the first one nobody can tell."""
        if not self._seconds:
            return "how long it takes is known after the first"
        return f"about {sum(self._seconds) / len(self._seconds) * left / 60:.1f} minutes left"


def _log_progress(phase: str, done: int, total: int) -> None:
    logger.info("%s: %d of %d", phase, done, total)


def _choose(job: _Job) -> Prepared:
    """The record: with the whole-pipeline engines that are no slower than the stages one after the other.

    Holds the portraits of every form, number of steps and batch size against ONNX Runtime's, where it is installed.
    Raises BackendFailed where the stages draw something else.
    """
    wanted = trials(job.bundle, job.stages.batches, job.tell)
    pipelines = job.pipelines()
    with contextlib.closing(_open(job.bundle, job.cache, job.stages)) as chained:
        try_out("stages", chained, wanted, job.tell)
        if not pipelines:
            return job.stages
        whole = dataclasses.replace(job.stages, pipelines=pipelines)
        try:
            with contextlib.closing(_open(job.bundle, job.cache, whole)) as fused:
                try_out("one engine", fused, wanted, job.tell)
                chosen = [one for one in pipelines if is_no_slower(job.bundle, fused, chained, one[1], job.tell)]
        except S2FError as reason:
            job.tell(f"the stages stay, one engine cannot be used: {_without_cure(reason)}")
            return job.stages
    return dataclasses.replace(whole, pipelines=tuple(chosen))


def _open(bundle: Bundle, cache: Cache, record: Prepared) -> Executor:
    from runtime.backends.tensorrt_executor import TensorRTExecutor

    return TensorRTExecutor(bundle, cache, record=record)


def _without_cure(reason: Exception) -> str:
    """What a message says before it tells to run the very command that is running."""
    return str(reason).partition(" Run: ")[0].rstrip(".")
