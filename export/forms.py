"""One graph of all steps, or the stages one by one: which is faster on a CPU backend, measured by `s2f prepare`.

On the CPUs measured so far the one graph has never won by what is asked of it here, so the runtime draws stage by stage
and the record is for a reader. Where one graph wins it is told, and worth a report.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import Any

import numpy as np
import numpy.typing as npt

from export.trial import medians, work
from runtime.backends.base import Session, Settings
from runtime.bundle import Bundle, Manifest
from runtime.cache import Cache
from runtime.doctor import package_versions
from runtime.engines import RECORDS, EngineSpec, engine_tensors
from runtime.errors import BackendFailed
from runtime.executor import Clock, Executor, Image, StepwiseExecutor, Work
from runtime.machine import cpu_flags, cpu_model
from runtime.noise import seeded_noise
from runtime.prepare import Tell

GAIN = 0.95
"""One graph wins where it needs at most this part of the stages' time: less is within what a machine wavers."""


class OneGraph(Executor):
    """All of a portrait in one graph, on the session of any backend. Needs onnx."""

    def __init__(self, bundle: Bundle, opener: type[Session], settings: Settings) -> None:
        """Raises what `derive` and `Session` raise, ModuleNotFoundError without onnx."""
        from export.derive import derive

        steps, self._latent = bundle.manifest.default_steps, bundle.manifest.latent
        data = derive(bundle, "pipeline", batch=1, steps=steps, precision="fp32")
        tensors = engine_tensors(bundle.manifest, EngineSpec("pipeline", 1, steps, "fp32"))
        inputs, outputs = (list(side.values()) for side in tensors)
        self._session = opener("pipeline", data, inputs, outputs, settings)

    def paint(self, work: Work, clock: Clock) -> list[Image]:
        """See `Executor.paint`; for one seed."""
        noise = seeded_noise(work.seeds[0], (self._latent.channels, self._latent.height, self._latent.width))[None]
        options = {name: np.array([value], np.float32) for name, value in work.options.items()}
        feeds = {"pcm": work.voices, "noise": noise, **options}
        with clock.measure("graphs"):
            found = self._session.run({name: feeds[name] for name in self._session.inputs})
        return [np.asarray(found["image"])[0]]

    def encode(self, pcm: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """There is no condition to be had. Raises BackendFailed."""
        raise BackendFailed("The graph of all steps gives no condition.")

    def close(self) -> None:
        """Close the session."""
        self._session.close()


@dataclasses.dataclass(frozen=True)
class Forms:
    """Milliseconds of a portrait at the default steps, medians of calls in turn."""

    stages: float
    one_graph: float

    @property
    def one_graph_wins(self) -> bool:
        """Whether it would be worth drawing with."""
        return self.one_graph <= GAIN * self.stages


def record_forms(bundle: Bundle, opener: type[Session], settings: Settings, tell: Tell) -> None:
    """Measure both forms, write them down and tell. Without onnx, or where the one graph cannot be made, only tell.

    Raises BackendFailed, DeviceOutOfMemory, OutputUnwritable.
    """
    with contextlib.ExitStack() as stack:
        try:
            one = stack.enter_context(contextlib.closing(OneGraph(bundle, opener, settings)))
        except ModuleNotFoundError as error:
            if error.name != "onnx":
                raise
            tell("stages one by one; one graph of all steps is not measured, the package onnx is not here")
            return
        except BackendFailed as reason:
            tell(f"stages one by one; no graph of all steps: {reason}")
            return
        stages = stack.enter_context(contextlib.closing(StepwiseExecutor(bundle, opener, settings)))
        task = work(bundle, bundle.manifest.default_steps)
        found = Forms(*medians({"stages": stages, "one graph": one}, task, tell).values())
    write_forms(Cache.default(), bundle.manifest, settings, found)
    told = f"{found.stages:.1f} ms stage by stage, {found.one_graph:.1f} ms as one graph"
    good = "which this release does not draw with; please report it" if found.one_graph_wins else "the stages are taken"
    tell(f"{told}: {good}")


def forms_key(manifest: Manifest, settings: Settings) -> dict[str, Any]:
    """The cache key: bundle, processor, and what it was measured with."""
    return {
        "forms": [settings.device, settings.precision, settings.threads],
        "cpu": cpu_model(),
        "flags": cpu_flags(),
        "sources": {name: stage.sha256 for name, stage in manifest.stages.items()},
        "steps": manifest.default_steps,
        "versions": {name: package_versions().get(name) for name in ("onnxruntime", "openvino")},
    }


def write_forms(cache: Cache, manifest: Manifest, settings: Settings, found: Forms) -> None:
    """Remember both times, and that the stages are taken, which is all this release does. Raises OutputUnwritable."""
    value = {"taken": "stages", "milliseconds": dataclasses.asdict(found)}
    cache.write(RECORDS, forms_key(manifest, settings), json.dumps(value).encode())
