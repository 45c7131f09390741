"""What was prepared for a bundle: the keys of engines in the cache, and the record of which serve the bundle here.

`export` makes engines and writes these entries, the backends read them. A TensorRT engine runs where it was built and
nowhere else, so its key names the graphs it comes from (by their sha256), the release of TensorRT, the GPU, the driver
and everything that was chosen for it. For ONNX Runtime the "engine" is a fused ONNX graph. One record per bundle and
place says which engines `generate` is to use; no record, no engines.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from .bundle import STAGES, Manifest, TensorSpec
from .cache import Cache, Refused

ENGINES, RECORDS = "engines", "prepared"
GRAPHS = (*STAGES, "pipeline")
PRECISIONS = ("fp16", "fp32", "int8")
INT8_FAMILY = "int8-tensorrt"
"""The variant that engines in int8 are made of."""

OPTIONS = ("guidance", "prior_weight")

MAX_ENGINE_BATCH = 16
"""Portraits an engine may draw at once."""

RECIPE = 2
"""Rises when `export.derive` makes other graphs of the same bundle, so that engines of the old ones are not used."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where engines run. `backend`: its name and version; "tensorrt lean" for what any newer lean runtime may run.

    `capability`: compute capability such as "8.7"; `gpu`: the GPU's name; `driver`: CUDA's and the driver's version.
    """

    backend: str
    capability: str
    gpu: str
    driver: str


@dataclasses.dataclass(frozen=True)
class EngineSpec:
    """Which graph, and how: `graph` of GRAPHS, static `batch`, `steps` (of a pipeline; 0 for a stage), `precision`."""

    graph: str
    batch: int
    steps: int
    precision: str

    def __str__(self) -> str:
        steps = f", {self.steps} steps" if self.steps else ""
        return f"{self.graph} (batch {self.batch}{steps}, {self.precision})"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What `s2f prepare` decided for one bundle in one place.

    `batches`: the batch sizes with engines of all three stages, rising, 1 among them; none for a backend that runs the
    bundle's own stages. `pipelines`: (batch, steps) of the whole-pipeline engines that were made and measured to be no
    slower than the chain of stages. `options`: how the engines were built, which is part of their keys. `asked`: the
    numbers of steps that whole-pipeline engines were asked for, to try them again.
    """

    precision: str
    batches: tuple[int, ...]
    pipelines: tuple[tuple[int, int], ...]
    options: Mapping[str, str | int] = dataclasses.field(default_factory=dict)
    asked: tuple[int, ...] = ()

    def engines(self) -> Iterator[EngineSpec]:
        """All engines this record counts on."""
        for batch in self.batches:
            for stage in STAGES:
                yield EngineSpec(stage, batch, 0, self.precision)
        for batch, steps in self.pipelines:
            yield EngineSpec("pipeline", batch, steps, self.precision)


def engine_tensors(manifest: Manifest, spec: EngineSpec) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
    """Inputs and outputs of an engine: those of its stage with a fixed batch, and `step` int32 as TensorRT wants it.

    A pipeline takes pcm, noise float32 [batch, C, h, w] and the options of the unet, and gives the image.
    """
    stages = manifest.stages
    if spec.graph == "pipeline":
        latent = stages["decoder"].inputs[0]
        options = tuple(t for t in stages["unet"].inputs if t.name in OPTIONS)
        inputs: tuple[TensorSpec, ...] = (
            *stages["encoder"].inputs,
            dataclasses.replace(latent, name="noise"),
            *options,
        )
        outputs = stages["decoder"].outputs
    else:
        inputs, outputs = stages[spec.graph].inputs, stages[spec.graph].outputs
    return {t.name: _static(t, spec.batch) for t in inputs}, {t.name: _static(t, spec.batch) for t in outputs}


def _static(tensor: TensorSpec, batch: int) -> TensorSpec:
    shape = tuple(batch if dim == "batch" else dim for dim in tensor.shape)
    return TensorSpec(tensor.name, "int32" if tensor.dtype == "int64" else tensor.dtype, shape)


def engine_key(
    manifest: Manifest, place: Place, spec: EngineSpec, options: Mapping[str, str | int] = MappingProxyType({})
) -> dict[str, Any]:
    """The cache key of an engine; `options` as in `Prepared`."""
    stages = STAGES if spec.graph == "pipeline" else (spec.graph,)
    return {
        **_base(place),
        **dataclasses.asdict(spec),
        "options": dict(options),
        "sources": {name: _source(manifest, name, spec.precision) for name in stages},
        "first_row": manifest.step_tables[spec.steps].first_row if spec.steps else None,
    }


def _source(manifest: Manifest, stage: str, precision: str) -> str:
    """The sha256 of the file that an engine is made of."""
    variant = manifest.variants.get(INT8_FAMILY) if precision == "int8" else None
    return (
        manifest.stages[stage].sha256 if variant is None else variant.stages.get(stage, manifest.stages[stage]).sha256
    )


def record_key(manifest: Manifest, place: Place) -> dict[str, Any]:
    """The cache key of the record of a bundle. Without a variant it has another: it could not open engines in int8."""
    tables = {str(steps): table.first_row for steps, table in manifest.step_tables.items()}
    sources = {name: stage.sha256 for name, stage in manifest.stages.items()}
    eight = {"variant": INT8_FAMILY} if INT8_FAMILY in manifest.variants else {}
    return {**_base(place), "sources": sources, "tables": tables, **eight}


def read_record(cache: Cache, manifest: Manifest, place: Place) -> Prepared | None:
    """The record of a bundle in a place, None where there is none. Raises Refused."""
    data = cache.read(RECORDS, record_key(manifest, place))
    if data is None:
        return None
    try:
        value = json.loads(data)
        batches = tuple(int(batch) for batch in value["batches"])
        pipelines = tuple((int(batch), int(steps)) for batch, steps in value["pipelines"])
        record = Prepared(str(value["precision"]), batches, pipelines, dict(value["options"]), tuple(value["asked"]))
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"the record of what was prepared is not readable ({type(error).__name__})") from None
    return record


def write_record(cache: Cache, manifest: Manifest, place: Place, record: Prepared) -> None:
    """Say that these engines serve the bundle. Raises OutputUnwritable."""
    data = json.dumps(dataclasses.asdict(record), sort_keys=True).encode()
    cache.write(RECORDS, record_key(manifest, place), data)


def _base(place: Place) -> dict[str, Any]:
    return {"recipe": RECIPE, **dataclasses.asdict(place)}
