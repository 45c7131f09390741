"""Fused graphs for ONNX Runtime's CUDA provider: behind `s2f prepare --device cuda`. Needs onnx and no torch."""

from __future__ import annotations

import contextlib
import dataclasses

from export.derive import derive
from export.trial import is_no_slower, trials, try_out
from runtime.backends import select
from runtime.backends.base import Settings
from runtime.backends.ort_executor import OrtExecutor, place_here
from runtime.bundle import Bundle
from runtime.cache import Cache
from runtime.engines import ENGINES, RECORDS, EngineSpec, Prepared, engine_key, record_key, write_record
from runtime.errors import S2FError
from runtime.machine import usable_cores
from runtime.prepare import Tell


def prepare(bundle: Bundle, tell: Tell) -> None:
    """Make the fused graph of the bundle's default steps, and record it if it works, draws the same, and no slower.

    Raises BackendMissing, DeviceUnavailable, OutputUnwritable, and BackendFailed where the stages draw something else.
    """
    select("cuda")
    cache, manifest, place = Cache.default(), bundle.manifest, place_here()
    spec = EngineSpec("pipeline", 1, manifest.default_steps, "fp16")
    stages = Prepared(spec.precision, (), ())
    fused = dataclasses.replace(stages, pipelines=((spec.batch, spec.steps),))
    settings = Settings("cuda", usable_cores())
    with cache.lock(RECORDS, record_key(manifest, place), waiting=lambda: tell("another process prepares; waiting")):
        tell(f"{spec}: making the graph")
        data = derive(bundle, spec.graph, batch=spec.batch, steps=spec.steps, precision=spec.precision)
        cache.write(ENGINES, engine_key(manifest, place, spec), data)
        wanted = trials(bundle, (), tell)
        with contextlib.closing(OrtExecutor(bundle, settings, cache, record=stages)) as one_by_one:
            try_out("stages", one_by_one, wanted, tell)
            try:
                with contextlib.closing(OrtExecutor(bundle, settings, cache, record=fused)) as whole:
                    try_out("one graph", whole, wanted, tell)
                    good = is_no_slower(bundle, whole, one_by_one, spec.steps, tell)
            except S2FError as reason:
                tell(f"the stages stay, the fused graph cannot be used: {reason}")
                good = False
        write_record(cache, manifest, place, fused if good else stages)
    tell(f"ready: {f'{spec.steps} steps as one graph' if good else 'the stages one by one'}")
