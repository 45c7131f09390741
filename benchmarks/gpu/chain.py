"""Engines outside of the executor, so that they can be measured apart: one at a time, and as a portrait is drawn.

What a portrait does here is what `runtime.backends.tensorrt_executor` does, over buffers of its own: one block in, the
engines, one image out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.gpu.plan import Arm
from benchmarks.gpu.store import Store
from runtime.backends.cuda import ALIGNMENT, Cuda
from runtime.backends.tensorrt import Engine, Runtime, package
from runtime.bundle import Bundle, TensorSpec
from runtime.engines import EngineSpec, engine_tensors

Arrays = Mapping[str, npt.NDArray[Any]]
Bytes = npt.NDArray[np.uint8]


class Bench:
    """The GPU with engines of one bundle, for the thread that made it. Close it, or use it in `with`."""

    def __init__(self, bundle: Bundle, store: Store) -> None:
        """Raises BackendMissing, DeviceUnavailable, DeviceOutOfMemory."""
        self.manifest, self._store = bundle.manifest, store
        self.cuda = Cuda()
        self._engines: dict[EngineSpec, Engine] = {}
        self._singles: dict[EngineSpec, Single] = {}
        self._paintings: dict[Arm, Painting] = {}
        try:
            self._runtime = Runtime(package(), store.cache, bundle.manifest, store.place)
        except BaseException:
            self.cuda.close()
            raise

    def engine(self, spec: EngineSpec) -> Engine:
        """An engine from the cache, with working memory of its own. Raises NotPrepared, BackendFailed."""
        if spec not in self._engines:
            engine = self._runtime.load(spec, self._store.key_options)
            engine.use_scratch(self.cuda.allocate(max(engine.scratch, ALIGNMENT)), engine.scratch)
            self._engines[spec] = engine
        return self._engines[spec]

    def tensors(self, spec: EngineSpec) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
        """Inputs and outputs of an engine."""
        return engine_tensors(self.manifest, spec)

    def single(self, spec: EngineSpec) -> Single:
        """An engine with buffers for all its tensors."""
        if spec not in self._singles:
            self._singles[spec] = Single(self, spec)
        return self._singles[spec]

    def painting(self, arm: Arm) -> Painting:
        """An arm with its engines and buffers. Raises NotPrepared, BackendFailed, DeviceOutOfMemory."""
        if arm not in self._paintings:
            self._paintings[arm] = Painting(self, arm)
        return self._paintings[arm]

    def close(self) -> None:
        """Give everything back: engines and pinned memory before the context they live in, whoever still holds them."""
        for single in self._singles.values():
            single.let_go()
        for painting in self._paintings.values():
            painting.let_go()
        self._singles.clear()
        self._paintings.clear()
        self._engines.clear()
        del self._runtime
        self.cuda.close()

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Single:
    """One engine, its inputs and outputs each in a buffer of its own; see `Bench.single`."""

    def __init__(self, bench: Bench, spec: EngineSpec) -> None:
        self._cuda, self._engine = bench.cuda, bench.engine(spec)
        self._inputs, self._outputs = bench.tensors(spec)
        both = {**self._inputs, **self._outputs}
        self._device = {name: bench.cuda.allocate(size_of(tensor)) for name, tensor in both.items()}
        self._host = {name: bench.cuda.pinned(size_of(tensor)) for name, tensor in both.items()}

    def run(self, values: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Outputs for inputs of the engine's shapes; int64 is narrowed. What it has no input for is left out."""
        for name, tensor in self._inputs.items():
            value = np.ascontiguousarray(values[name], dtype=tensor.dtype)
            self._host[name][:] = value.reshape(-1).view(np.uint8)
            self._cuda.upload(self._device[name], self._host[name])
        self.enqueue()
        for name in self._outputs:
            self._cuda.download(self._host[name], self._device[name])
        self._cuda.synchronize()
        return {
            name: self._host[name].view(tensor.dtype).reshape([int(dim) for dim in tensor.shape]).copy()
            for name, tensor in self._outputs.items()
        }

    def enqueue(self) -> None:
        """Put one execution on the stream, with what lies in the inputs."""
        self._engine.enqueue(self._device, self._cuda.stream)

    def let_go(self) -> None:
        """Of engine and pinned memory."""
        self._host.clear()
        del self._engine


class Painting:
    """One arm: buffers, and what draws a batch of portraits from them; see `Bench.painting`."""

    def __init__(self, bench: Bench, arm: Arm) -> None:
        self._bench, self._arm, cuda = bench, arm, bench.cuda
        inputs, outputs = bench.tensors(EngineSpec("pipeline", arm.batch, 0, arm.precision))
        self._slots, size = _block(inputs)
        self.source, self._input = cuda.pinned(size), cuda.allocate(size)
        image = size_of(outputs["image"])
        self.target, self._image = cuda.pinned(image), cuda.allocate(image)
        self._shape = [int(dim) for dim in outputs["image"].shape]
        calls = list(self._one_engine() if arm.form == "pipeline" else self._chain())
        self._calls = [(bench.engine(spec), addresses) for spec, addresses in calls]
        self.enqueue()  # TensorRT may load kernels in its first execution, which a capture forbids
        cuda.synchronize()

    def fill(self, values: Arrays) -> None:
        """Lay pcm, noise and options out in host memory."""
        for name, (offset, size) in self._slots.items():
            self.source[offset : offset + size] = (
                np.ascontiguousarray(values[name], np.float32).reshape(-1).view(np.uint8)
            )

    def enqueue(self) -> None:
        """The engines, one after the other."""
        for engine, addresses in self._calls:
            engine.enqueue(addresses, self._bench.cuda.stream)

    @functools.cached_property
    def launch(self) -> Callable[[], None]:
        """The same as one CUDA graph. Raises CaptureFailed."""
        return self._bench.cuda.capture(self.enqueue)

    def draw(self, program: Callable[[], None]) -> None:
        """From host memory to host memory: copy, `program`, copy, wait."""
        cuda = self._bench.cuda
        cuda.upload(self._input, self.source)
        program()
        cuda.download(self.target, self._image)
        cuda.synchronize()

    def upload(self) -> None:
        """The copy in alone."""
        self._bench.cuda.upload(self._input, self.source)

    def download(self) -> None:
        """The copy out alone."""
        self._bench.cuda.download(self.target, self._image)

    def let_go(self) -> None:
        """Of engines and pinned memory."""
        self._calls.clear()
        del self.source, self.target

    def images(self) -> npt.NDArray[np.uint8]:
        """What was drawn last, uint8 [batch, H, W, 3]."""
        drawn: Bytes = self.target.reshape(self._shape).copy()
        return drawn

    def _one_engine(self) -> Iterator[tuple[EngineSpec, dict[str, int]]]:
        (spec,) = self._arm.specs()
        yield spec, {**self._given(), "image": self._image}

    def _chain(self) -> Iterator[tuple[EngineSpec, dict[str, int]]]:
        cuda, manifest = self._bench.cuda, self._bench.manifest
        given, table = self._given(), manifest.table(self._arm.steps)
        encoder, unet, decoder = self._arm.specs()
        inputs, _ = self._bench.tensors(unet)
        condition = cuda.allocate(size_of(inputs["condition"]))
        yield encoder, {"pcm": given["pcm"], "condition": condition}
        states = [{"latent": given["noise"]}]
        if manifest.history:
            states[0]["history"] = _constant(cuda, np.zeros(size_of(inputs["history"]), np.uint8))
        places = [{name: cuda.allocate(size_of(inputs[name])) for name in states[0]} for _ in range(2)]
        states += [places[step % 2] for step in range(self._arm.steps)]
        options = {name: address for name, address in given.items() if name not in ("pcm", "noise")}
        for row, (before, after) in enumerate(pairwise(states), start=table.first_row):
            step = _constant(cuda, np.array([row], np.int32).view(np.uint8))
            result = {f"{name}_next": address for name, address in after.items()}
            yield unet, {**before, **result, **options, "condition": condition, "step": step}
        yield decoder, {"latent": states[-1]["latent"], "image": self._image}

    def _given(self) -> dict[str, int]:
        return {name: self._input + offset for name, (offset, _) in self._slots.items()}


def size_of(tensor: TensorSpec) -> int:
    """Bytes of a tensor whose dimensions are numbers."""
    return int(np.dtype(tensor.dtype).itemsize * np.prod([int(dim) for dim in tensor.shape], dtype=np.int64))


def _block(tensors: Mapping[str, TensorSpec]) -> tuple[dict[str, tuple[int, int]], int]:
    """(offset, size) of tensors side by side, each where TensorRT takes it, and the size of it all."""
    slots, offset = {}, 0
    for name, tensor in tensors.items():
        slots[name] = offset, size_of(tensor)
        offset += -(-size_of(tensor) // ALIGNMENT) * ALIGNMENT
    return slots, offset


def _constant(cuda: Cuda, values: Bytes) -> int:
    """The address of a copy on the device."""
    source, address = cuda.pinned(values.size), cuda.allocate(values.size)
    source[:] = values
    cuda.upload(address, source)
    cuda.synchronize()
    return address
