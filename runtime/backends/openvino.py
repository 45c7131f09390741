"""OpenVINO on the CPU.

One graph is compiled for one portrait: graphs with a free batch were slower, and each further size would be compiled
inside a call. So the items of a larger batch run one after the other. Threads are as asked for, in one stream, and not
pinned: a pinned thread waits for a neighbour on its core while another core is idle. Four steps of the demo bundle in
bfloat16, two threads on two cores, one neighbour burning a core, ms p50 / p90: free 15.3 / 19.0, pinned 15.3 / 32.3;
without the neighbour 9.9 and 9.8.

Precision lives in the graph everywhere else in this house. Here it is OpenVINO's hint: a bundle's graphs are float32,
and OpenVINO computes in bfloat16 what gains by it where the CPU has instructions for that. No file of ours has to say
so, and what it does to a portrait is measured by `s2f prepare`, which records the precision that serves a bundle here.

Compiling takes 430 ms, reading what was compiled 210 ms, so `s2f prepare` keeps that in the cache, an entry a graph.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import logging
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any, ClassVar

import numpy as np

from ..bundle import Manifest, TensorSpec, sha256_hex
from ..cache import Cache, Refused
from ..engines import ENGINES
from ..errors import BackendFailed, BackendMissing, DeviceOutOfMemory, NotPrepared, S2FError
from ..machine import cpu_flags, cpu_model, usable_cores
from ..precision import offers_int8
from ..standing import Standing, read_standing
from ..variants import computes_bf16
from . import ort
from .base import Array, Device, Session, Settings, Tensor, lacks_memory

logger = logging.getLogger(__name__)

NAME = "openvino"
TELEMETRY = "openvino_telemetry"
INSTALL = 'Run: pip install "s2f-edge[openvino]"'
PREPARE = "Run: s2f prepare BUNDLE --device openvino"

RECIPE = 2
"""Rises when graphs are compiled with other options, so that those kept before are not used."""

_HINTS = {"fp32": "f32", "bf16": "bf16"}
"""Its names of precisions. What a graph has in eight bits is computed in eight bits under either."""
_TYPES = {"f32": "float32", "i64": "int64", "u8": "uint8"}


class OpenVinoSession(Session):
    """One graph, compiled for one portrait at a time."""

    backend: ClassVar[str] = NAME

    def _open(self, data: bytes, settings: Settings) -> None:
        precision = precision_here() if settings.precision == "auto" else settings.precision
        chosen = dataclasses.replace(settings, precision=precision)
        kept = _kept(self.source or sha256_hex(data), chosen)
        self.prepared = kept is not None
        self._compiled: Any = kept or compile_graph(data, chosen, f"the {self.stage} graph")
        self._request: Any = self._compiled.create_infer_request()

    def _specs(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        inputs = [_spec(port, self.inputs) for port in self._compiled.inputs]
        return inputs, [_spec(port, self.outputs) for port in self._compiled.outputs]

    def _run(self, feeds: dict[str, Tensor], keep: bool) -> Sequence[Tensor]:
        arrays = {name: np.asarray(value) for name, value in feeds.items()}
        batched = {name for name, spec in self.inputs.items() if spec.shape[:1] == ("batch",)}
        sizes = [len(arrays[name]) for name in batched]
        items = [
            self._infer({name: value[i : i + 1] if name in batched else value for name, value in arrays.items()})
            for i in range(sizes[0] if sizes else 1)
        ]
        return items[0] if len(items) == 1 else [np.concatenate(parts) for parts in zip(*items, strict=True)]

    def _infer(self, feeds: dict[str, Array]) -> list[Array]:
        """One portrait's outputs, copied out of the request, whose next run writes over them."""
        with translated(f"OpenVINO failed in the {self.stage} graph"):
            results = self._request.infer(feeds, share_inputs=True)
            return [results[name] for name in self.outputs]

    def _close(self) -> None:
        self._request = self._compiled = None


def require() -> None:
    """Raise BackendMissing unless the package is here. Its CPU plugin is part of it."""
    package()


def probe() -> Device:
    """Whether a graph opens here; never raises for what is missing."""
    try:
        compile_graph(ort.PROBE, Settings(NAME, 1, "fp32"), "a test graph")
    except S2FError as error:
        reason, _, cure = str(error).partition(" Run: ")
        logger.info("device %s: %s", NAME, error)
        return Device(NAME, NAME, False, reason, cure or "see the reason")
    return Device(NAME, NAME, True)


def package() -> Any:
    """The package, imported on first use, without its telemetry. Raises BackendMissing naming the extra."""
    if importlib.util.find_spec(NAME) is None:
        raise BackendMissing(f"OpenVINO is not installed, the device {NAME!r} needs it. {INSTALL}")
    try:
        with _without_telemetry():
            import openvino
    except Exception as error:  # the package loads its libraries at import and raises whatever that raises
        raise BackendMissing(
            f"OpenVINO is installed but cannot be imported: {_brief(error)}. {INSTALL} --force-reinstall"
        ) from error
    if not hasattr(openvino, "Core"):
        raise BackendMissing(f"OpenVINO is damaged or too old. {INSTALL} --force-reinstall")
    return openvino


@contextlib.contextmanager
def _without_telemetry() -> Iterator[None]:
    """Imported for the first time, OpenVINO reports to Google Analytics and keeps an identifier in the user's home.

    Its own way out is a file in that home. It does neither where the package that reports cannot be imported, and that
    is the case in here. What the host has imported before, with or without OpenVINO, stays as it is.
    """
    hidden = TELEMETRY not in sys.modules
    if hidden:
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            sys.modules.pop(TELEMETRY, None)


def precision_here() -> str:
    """ "bf16" where this CPU computes in it, else "fp32"."""
    return "bf16" if computes_bf16() else "fp32"


def precisions_here() -> tuple[str, ...]:
    """What `s2f prepare` tries, the fastest first as far as one can tell beforehand."""
    return tuple(dict.fromkeys((precision_here(), "fp32")))


def place_here() -> dict[str, str]:
    """What a standing holds for, beside the bundle and the processor. Raises BackendMissing."""
    theirs = (metadata.distributions(name=name) for name in ("onnxruntime", "onnxruntime-gpu"))  # without importing it
    return {
        "OpenVINO": str(package().__version__),
        "ONNX Runtime": ", ".join(found.version for group in theirs for found in group) or "none",
        "usable cores": str(usable_cores()),
    }


def standing_here(manifest: Manifest) -> Standing | None:
    """What `s2f prepare` measured of a bundle here; None where it did not.

    Raises NotPrepared with the reason where that is refused or does not hold any more, BackendMissing.
    """
    try:
        found = read_standing(Cache.default(), manifest)
    except Refused as reason:
        raise NotPrepared(f"what was measured is refused: {reason}. {PREPARE}") from None
    if found is None:
        return None
    then, now = found.place, place_here()
    changed = [f"{name} was {then.get(name)}, is {now[name]}" for name in now if then.get(name) != now[name]]
    if changed:
        raise NotPrepared(f"what was measured is out of date: {'; '.join(changed)}. {PREPARE}")
    return found


def is_faster(manifest: Manifest, precision: str = "auto") -> bool:
    """Whether `s2f prepare` found that a bundle is drawn faster here than by ONNX Runtime, alike, and so."""
    try:
        found = standing_here(manifest)
    except S2FError as reason:
        logger.warning("openvino is passed over: %s", reason)
        return False
    if found is None:
        logger.info("openvino is passed over: not measured for the bundle %s. %s", manifest.name, PREPARE)
        return False
    if not found.wins:
        logger.info("openvino is passed over: %s", found)
    return found.wins and precision in ("auto", found.precision)


def standing_text(manifest: Manifest) -> str:
    """What is known here of OpenVINO with a bundle, for a reader."""
    try:
        found = standing_here(manifest)
    except S2FError as reason:
        return str(reason)
    if found is None:
        return f"not measured against ONNX Runtime here, so auto passes it over. {PREPARE}"
    return f"{found}: {'faster' if found.wins else 'auto passes it over'}"


def precision_for(manifest: Manifest) -> str:
    """The precision that `s2f prepare` found to serve a bundle here, else the one the CPU is made for."""
    try:
        found = standing_here(manifest)
    except S2FError as reason:
        logger.info("the precision is that of the processor: %s", reason)
        found = None
    if found is not None:
        return found.precision
    return "int8" if offers_int8(NAME, manifest) else precision_here()


def compile_graph(data: bytes, settings: Settings, what: str) -> Any:
    """A graph, compiled for one portrait. Raises BackendFailed, DeviceOutOfMemory, BackendMissing."""
    library = package()
    with translated(f"OpenVINO {library.__version__} cannot open {what}"):
        core = library.Core()
        model = core.read_model(data)
        model.reshape({port.any_name: _one_portrait(library, port) for port in model.inputs})
        return core.compile_model(model, "CPU", _options(settings))


def keep(data: bytes, settings: Settings, cache: Cache, what: str) -> int:
    """Put a compiled graph into the cache; returns its bytes. Raises as `compile_graph`, OutputUnwritable."""
    compiled = compile_graph(data, settings, what)
    with translated(f"OpenVINO cannot export {what}"):
        exported = compiled.export_model()
    content: bytes = exported.getvalue() if isinstance(exported, io.BytesIO) else exported
    cache.write(ENGINES, _key(sha256_hex(data), settings), content)
    return len(content)


def _kept(source: str, settings: Settings) -> Any:
    """The compiled graph in the cache, by its ONNX' sha256; None where none is, or, with a warning, none to use."""
    library = package()
    try:
        content = Cache.default().read(ENGINES, _key(source, settings))
        if content is None:
            return None
        with translated("OpenVINO does not take what was compiled"):
            return library.Core().import_model(content, "CPU", _options(settings))
    except (Refused, S2FError) as reason:
        logger.warning("the graph is compiled again: %s", reason)
        return None


def _key(source: str, settings: Settings) -> dict[str, Any]:
    """The cache key of a compiled graph. The number of threads is part of what was compiled."""
    return {
        "recipe": RECIPE,
        "backend": f"{NAME} {package().__version__}",
        "cpu": cpu_model(),
        "flags": cpu_flags(),
        "source": source,
        "precision": settings.precision,
        "threads": settings.threads,
    }


def _options(settings: Settings) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": settings.threads,
        "INFERENCE_PRECISION_HINT": _HINTS[precision_here() if settings.precision == "int8" else settings.precision],
        "ENABLE_CPU_PINNING": False,
        # Weights stored in eight bits are no leave to round what they are multiplied with, as it does by itself: 55 dB.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }


def _one_portrait(library: Any, port: Any) -> Any:
    """The shape of an input with a free first dimension as 1; any other free one stays, and is refused later."""
    dims = list(port.partial_shape)
    return library.PartialShape([library.Dimension(1) if i == 0 and d.is_dynamic else d for i, d in enumerate(dims)])


def _spec(port: Any, wanted: dict[str, TensorSpec]) -> TensorSpec:
    """A compiled graph's tensor in the manifest's terms: the 1 of one portrait is "batch" where that has one.

    A tensor has as many names as nodes that were folded into it.
    """
    name = next((name for name in wanted if name in port.names), port.any_name)
    dtype = port.element_type.get_type_name()
    shape: list[int | str] = ["?" if dim.is_dynamic else dim.get_length() for dim in port.partial_shape]
    if name in wanted and wanted[name].shape[:1] == ("batch",) and shape[:1] == [1]:
        shape[0] = "batch"
    return TensorSpec(name, _TYPES.get(dtype, dtype), tuple(shape))


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """OpenVINO's errors in the words of this package."""
    try:
        yield
    except Exception as error:  # RuntimeError for nearly everything, and what Python's side of it raises
        text = _brief(error)
        if lacks_memory(text) or isinstance(error, MemoryError):
            raise DeviceOutOfMemory(f"{what}: {text}. Close what else uses memory.") from error
        raise BackendFailed(f"{what}: {text}.") from error


def _brief(error: Exception) -> str:
    """One line of at most 300 characters, without the places in OpenVINO's sources that it begins with."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith("Exception from ")]
    return " ".join(" ".join(said or lines).split())[:300].rstrip(" .")
