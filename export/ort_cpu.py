"""Graphs optimised for this CPU by ONNX Runtime: behind `s2f prepare --device cpu`. Needs neither onnx nor torch."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from export.forms import record_forms
from export.trial import draw, work
from runtime.backends.base import Settings
from runtime.backends.ort import OrtSession, keep, package
from runtime.backends.ort_kept import forget, key_of
from runtime.bundle import Bundle
from runtime.cache import Cache
from runtime.engines import RECORDS
from runtime.errors import BackendFailed
from runtime.executor import Image, StepwiseExecutor
from runtime.machine import usable_cores
from runtime.pipeline import read_for, settings_for
from runtime.prepare import Tell

NAME = "cpu"
SEEDS = 2


class AsShipped(OrtSession):
    """The bundle's own graph, whatever is kept."""

    def _kept(self, settings: Settings, what: str) -> Any:
        return None


class AsKept(OrtSession):
    """What is kept of a graph, or an error."""

    def _kept(self, settings: Settings, what: str) -> Any:
        found = super()._kept(settings, what)
        if found is None:
            raise BackendFailed(f"What was kept of {what} cannot be opened")
        return found


def prepare(bundle: Bundle, tell: Tell) -> None:
    """Keep the graphs that "auto" draws with as they are optimised, if they open and draw the same, byte for byte; then
    measure the forms, of which a variant has but one.

    Raises BackendMissing, BackendFailed, DeviceOutOfMemory, OutputUnwritable.
    """
    settings = settings_for(bundle.manifest, NAME)
    bundle = read_for(bundle.path, settings)
    cache, version = Cache.default(), str(package(NAME).__version__)
    sources = {stage: bundle.sha256_of(stage) for stage in bundle.files}
    key = {**key_of("", version), "source": sources}
    with cache.lock(RECORDS, key, waiting=lambda: tell("another process prepares; waiting")):
        wanted = drawn(bundle, AsShipped)
        size = 0
        try:
            for stage, source in sources.items():
                size += keep(bundle.files[stage], source, cache, f"the {stage} graph")
            found = drawn(bundle, AsKept)
            if not all(map(np.array_equal, found, wanted)):
                raise BackendFailed("The graphs that were kept draw something else")
        except BaseException as reason:
            for source in sources.values():
                forget(cache, source, version)
            if not isinstance(reason, BackendFailed):
                raise
            tell(f"nothing is kept, the graphs are optimised at each start: {reason}")
        else:
            what = f"optimised graphs in {settings.precision}"
            tell(f"ready: {what}, {size / 1e6:.1f} MB in the cache, which draw the same")
        if bundle.variant is not None:
            tell("stages one by one: a variant is not made into one graph")
        else:
            record_forms(bundle, OrtSession, settings, tell)


def drawn(bundle: Bundle, opener: type[OrtSession]) -> list[Image]:
    """Some portraits, with one thread and with all usable cores, by sessions of one kind."""
    images: list[Image] = []
    for threads in sorted({1, usable_cores()}):
        with contextlib.closing(StepwiseExecutor(bundle, opener, Settings(NAME, threads))) as executor:
            images += draw(executor, work(bundle, bundle.manifest.default_steps, SEEDS))
    return images
