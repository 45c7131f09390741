"""ONNX Runtime on CUDA: the bundle's stages step by step, and fused graphs in one launch where `s2f prepare` made them.

A fused graph holds encoder, all steps and decoder for one number of steps, in half precision. Its inputs and outputs
stand at fixed addresses on the device, so that ONNX Runtime can capture it as a CUDA graph in its first run and replay
it from then on. Nothing has to be prepared: without fused graphs, or for other steps, the stages run as they are.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt

from ..bundle import Bundle, Manifest
from ..cache import Cache, Refused
from ..engines import ENGINES, EngineSpec, Place, Prepared, engine_key, engine_tensors, read_record
from ..errors import NotPrepared, S2FError
from ..executor import Clock, Executor, Image, StepwiseExecutor, Work, portrait
from ..noise import seeded_noise
from . import ort
from .base import Settings

logger = logging.getLogger(__name__)

PREPARE = "Run: s2f prepare BUNDLE --device cuda"


def place_here() -> Place:
    """What fused graphs are keyed by: they are plain ONNX, so the release of ONNX Runtime is all there is to say."""
    return Place(f"{ort.NAME} {ort.version()}", "any", "any", "any")


class OrtExecutor(Executor):
    """A bundle on ONNX Runtime's CUDA provider. See `Executor`."""

    def __init__(
        self, bundle: Bundle, settings: Settings, cache: Cache | None = None, *, record: Prepared | None = None
    ) -> None:
        """`record`: these fused graphs, which must open, instead of those that were recorded, which may fail.

        Raises what `Session` raises, and NotPrepared for a graph of `record`.
        """
        cache = Cache.default() if cache is None else cache
        self._stages = StepwiseExecutor(bundle, ort.OrtSession, settings)
        self._fused: dict[int, FusedGraph] = {}
        try:
            if settings.precision != "fp32":
                self._open_fused(bundle.manifest, settings, cache, record)
        except (Refused, S2FError) as reason:
            self._fused.clear()
            if record is not None:
                self.close()
                raise
            if settings.precision == "fp16":
                self.close()
                raise NotPrepared(f"The fused graphs cannot be used: {reason} {PREPARE}") from reason
            logger.warning("the stages run one by one, the fused graphs cannot be used: %s", reason)
        except BaseException:
            self.close()
            raise
        if settings.precision == "fp16" and not self._fused:
            self.close()
            raise NotPrepared(f"Nothing is prepared in fp16 for the bundle {bundle.manifest.name} here. {PREPARE}")
        self.precision, self.prepared = ("fp16", True) if self._fused else ("fp32", False)

    def _open_fused(self, manifest: Manifest, settings: Settings, cache: Cache, record: Prepared | None) -> None:
        for spec in (_recorded(cache, manifest) if record is None else record).engines():
            data = cache.read(ENGINES, engine_key(manifest, place_here(), spec))
            if data is None:
                raise NotPrepared(f"{spec} is missing from the cache. {PREPARE}")
            self._fused[spec.steps] = FusedGraph(data, manifest, spec, settings)

    def paint(self, work: Work, clock: Clock) -> list[Image]:
        """See `Executor.paint`. A single portrait of a number of steps with a fused graph is one launch."""
        fused = self._fused.get(work.steps)
        if fused is None or len(work.seeds) > 1 or work.encoded:
            return self._stages.paint(work, clock)
        work.watch(0, work.steps)
        image = fused.run(work)
        work.watch(work.steps, work.steps)
        return [image]

    def encode(self, pcm: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """See `Executor.encode`."""
        return self._stages.encode(pcm)

    def close(self) -> None:
        """Close all sessions."""
        self._stages.close()
        self._fused.clear()


class FusedGraph:
    """One session of a whole portrait over tensors that stay where they are."""

    def __init__(self, data: bytes, manifest: Manifest, spec: EngineSpec, settings: Settings) -> None:
        """Raises BackendFailed, DeviceUnavailable, DeviceOutOfMemory."""
        self._latent = manifest.latent
        self._session = _open(data, settings, str(spec))
        library, memory = ort.package(settings.device), ort.MEMORIES[settings.device]
        inputs, outputs = engine_tensors(manifest, spec)
        self._binding = self._session.io_binding()
        self._inputs: dict[str, Any] = {}
        shape = [int(dim) for dim in outputs["image"].shape]
        with ort.translated("ONNX Runtime cannot allocate the tensors of the fused graph"):
            for name, tensor in inputs.items():
                zeros = np.zeros([int(dim) for dim in tensor.shape], tensor.dtype)
                self._inputs[name] = library.OrtValue.ortvalue_from_numpy(zeros, memory, 0)
                self._binding.bind_ortvalue_input(name, self._inputs[name])
            self._image = library.OrtValue.ortvalue_from_shape_and_type(shape, np.uint8, memory, 0)
            self._binding.bind_ortvalue_output("image", self._image)

    def run(self, work: Work) -> Image:
        """One portrait. Raises BackendFailed, DeviceOutOfMemory."""
        shape = (self._latent.channels, self._latent.height, self._latent.width)
        noise = seeded_noise(work.seeds[0], shape)[None]
        options = {name: np.array([value], np.float32) for name, value in work.options.items()}
        values: dict[str, npt.NDArray[np.float32]] = {**options, "pcm": work.voices, "noise": noise}
        with ort.translated("ONNX Runtime failed in the fused graph"):
            for name, tensor in self._inputs.items():
                tensor.update_inplace(values[name])
            self._session.run_with_iobinding(self._binding)
            pixels = self._image.numpy()[0]
        return portrait(pixels)


def _open(data: bytes, settings: Settings, what: str) -> Any:
    """With a CUDA graph, or without where ONNX Runtime cannot capture this one; the reason is logged."""
    try:
        return ort.open_session(data, settings, what, {"enable_cuda_graph": "1"})
    except S2FError as reason:
        logger.warning("no CUDA graph for %s: %s", what, reason)
        return ort.open_session(data, settings, what)


def _recorded(cache: Cache, manifest: Manifest) -> Prepared:
    """What was prepared, which may be nothing. Raises Refused."""
    record = read_record(cache, manifest, place_here())
    if record is None:
        logger.info("no fused graphs; `s2f prepare BUNDLE --device cuda` makes them")
        return Prepared("fp16", (), ())
    return record
