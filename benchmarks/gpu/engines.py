"""Piece "engines": what is missing is built, one engine at a time: seconds, sizes, memory; then the record is written.

The engines lie in the cache that `s2f generate` reads. Those the goals speak of come first, and no build is begun that
is not expected to end in time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.parts import JSON, Part
from benchmarks.gpu.plan import Job
from benchmarks.gpu.store import Store
from export.adaptor import Builder, BuildOptions, builder_package
from export.derive import derive
from export.engines import TIMINGS, Request, build
from runtime.backends import cuda
from runtime.cache import Cache, Refused
from runtime.engines import ENGINES, EngineSpec, Place

logger = logging.getLogger(__name__)

BUILT = "built"
RATIO_LIMIT = 1.3  # weights of an unrolled pipeline are not copied per step


def measure(job: Job, part: Part) -> None:
    """Build every engine of the selection that is not in the cache, in the order of the goals."""
    works = Works(job)
    try:
        for spec in job.wanted.engines():
            part.attempt(BUILT, str(spec), functools.partial(works.make, spec, part.results.get(BUILT, {})))
    finally:
        part.put("sizes", "pipelines", growth(part.results.get(BUILT, {})))
        if all(works.store.can_draw(arm) for arm in job.wanted.headline()):
            part.attempt("record", "prepared", functools.partial(_record, job, works.store.options))


class Works:
    """Builder and cache of one run."""

    def __init__(self, job: Job) -> None:
        """Raises BackendMissing, DeviceUnavailable."""
        self._builder = Builder(builder_package())
        self._job, self.store = job, Store(job)

    def make(self, spec: EngineSpec, known: JSON) -> JSON | None:
        """What building the engine took; None where it is in the cache and what it took is known. Raises OutOfTime."""
        kept = None
        with contextlib.suppress(Refused):
            kept = self.store.cache.read(ENGINES, self.store.key(spec))
        if kept is not None:
            about = {"in_cache": True, "plan_bytes": len(kept)}
            return None if known.get(str(spec), {}).get("plan_bytes") == len(kept) else about
        self._job.deadline.need(expected(spec, known), f"building {spec}")
        return self._build(spec)

    def _build(self, spec: EngineSpec) -> JSON:
        begin, cache, options = time.monotonic(), self.store.cache, self.store.options
        source = self._job.source(spec.precision)
        graph = derive(source, spec.graph, batch=spec.batch, steps=spec.steps, precision=spec.precision)
        derived = time.monotonic() - begin
        timings_key = _timings_key(self.store.place, spec)
        timings = b""
        with contextlib.suppress(Refused):
            timings = cache.read(TIMINGS, timings_key) or b""
        with _lowest_memory() as memory:
            plan, timings = self._builder.build(graph, options, timings=timings)
        cache.write(ENGINES, self.store.key(spec), plan)
        cache.write(TIMINGS, timings_key, timings)
        return {
            "seconds": round(time.monotonic() - begin, 2),
            "derive_seconds": round(derived, 2),
            "graph_bytes": len(graph),
            "plan_bytes": len(plan),
            "peak_device_bytes": memory.used,
            "options": dataclasses.asdict(options),
        }


def expected(spec: EngineSpec, known: JSON) -> float:
    """Seconds a build may take: the longest so far of its graph; of a pipeline as long as all of its stages."""

    def longest(graph: str) -> float:
        return max((v.get("seconds", 0) for name, v in known.items() if name.startswith(f"{graph} ")), default=0.0)

    if spec.graph != "pipeline":
        return longest(spec.graph)
    return longest("encoder") + spec.steps * longest("unet") + longest("decoder")


def growth(built: JSON) -> JSON:
    """Size of every pipeline's plan by that of the one with the fewest steps, same batch and precision."""
    found: dict[str, dict[int, int]] = {}
    for name, value in built.items():
        graph, _, rest = name.partition(" ")
        if graph == "pipeline" and "plan_bytes" in value:
            batch, steps, precision = rest.strip("()").split(", ")
            found.setdefault(f"{batch}, {precision}", {})[int(steps.split()[0])] = value["plan_bytes"]
    return {
        name: {str(n): round(size / sizes[min(sizes)], 3) for n, size in sorted(sizes.items())}
        for name, sizes in found.items()
    }


def complete(job: Job, built: JSON) -> bool:
    """Whether every engine of the selection was built."""
    return all("plan_bytes" in built.get(str(spec), {}) for spec in job.wanted.engines())


def _record(job: Job, options: BuildOptions) -> JSON:
    """Let `export.engines.build` compare forms and portraits and write the record, as `s2f prepare` does."""
    selection, told = job.wanted, list[str]()
    steps = selection.steps[:1] if "pipeline" in selection.forms else ()
    request = Request(selection.batches[:1], steps, selection.precisions[0], options)
    record = build(job.bundle, request, Cache.default(), told.append)
    return {"record": dataclasses.asdict(record), "told": told}


def _timings_key(place: Place, spec: EngineSpec) -> dict[str, Any]:
    """That of `export.engines`, so that a later `s2f prepare` profits."""
    return {"kind": TIMINGS, **dataclasses.asdict(place), "precision": spec.precision}


@dataclasses.dataclass
class _Memory:
    """`used`: bytes by which free memory fell at its lowest; None where it could not be seen."""

    used: int | None = None


@contextlib.contextmanager
def _lowest_memory() -> Iterator[_Memory]:
    """Watch the device's free memory from a thread meanwhile, twenty times a second."""
    seen, over = _Memory(), threading.Event()

    def watch() -> None:
        try:
            with contextlib.closing(cuda.Cuda()) as device:
                before = device.free_memory()
                while not over.wait(0.05):
                    seen.used = max(seen.used or 0, before - device.free_memory())
        except Exception:
            logger.exception("device memory is not watched")

    thread = threading.Thread(target=watch, name="s2f-memory", daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join(5)
