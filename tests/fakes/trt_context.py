"""Behaviours of TensorRT's execution contexts: the plan's graph runs on ONNX Runtime, when its stream comes to it."""

from __future__ import annotations

import ctypes
import functools
import hashlib
from typing import Any

import numpy as np

from .cuda_types import CudaError
from .trt_common import ALIGNMENT, NUMPY, SIZES, report


class IExecutionContext:
    """trt.IExecutionContext: addresses and shapes stay from call to call."""

    def _setup(self, engine: Any, memory: int | None) -> None:
        self._engine = engine
        self._own_memory = self._memory = memory
        self._memory_size = 0 if memory is None else engine._activations
        self._addresses: dict[str, int] = {}
        self._shapes = {tensor.name: tensor.shape for tensor in engine._inputs}
        self._warm = False
        self._name = ""

    def __del__(self) -> None:
        if getattr(self, "_own_memory", None) is not None:
            with self._world.lock:
                self._world.gpu.drain_all()
                self._world.gpu.device_heap.release(self._own_memory)

    @property
    def engine(self) -> Any:
        return self._engine

    @property
    def name(self) -> str:
        return self._name

    @name.setter
    def name(self, value: str) -> None:
        self._name = str(value)

    def _write_only(self) -> Any:
        raise AttributeError("unreadable attribute 'device_memory'")

    def _set_memory(self, address: Any) -> None:
        self._use(int(address), self._engine._activations)

    device_memory = property(_write_only, _set_memory)

    def set_device_memory(self, memory: Any, size: Any) -> None:
        self._use(int(memory), int(size))

    def _use(self, address: int, size: int) -> None:
        problem = self._world.gpu.device_heap.problem(address, size)
        if problem or address % ALIGNMENT:
            raise self._world.violate(f"device memory of a context: {problem or f'{address:#x} is not aligned to 256'}")
        self._memory, self._memory_size = address, size

    def set_tensor_address(self, name: str, memory: Any) -> bool:
        if name not in self._engine._tensors:
            self._report(f"API Usage Error (Given invalid tensor name: {name})")
            return False
        address = int(memory)
        if address % ALIGNMENT:
            raise self._world.violate(f"address {address:#x} of {name} is not aligned to {ALIGNMENT} bytes")
        self._addresses[name] = address
        return True

    def get_tensor_address(self, name: str) -> int:
        return self._addresses.get(name, 0)

    def set_input_shape(self, name: str, shape: Any) -> bool:
        if name not in self._shapes:
            self._report(f"API Usage Error (Given invalid tensor name: {name})")
            return False
        wanted, declared = tuple(int(size) for size in shape), self._engine._tensors[name].shape
        if len(wanted) != len(declared) or any(d not in (-1, w) for w, d in zip(wanted, declared, strict=True)):
            self._report(f"API Usage Error (Static dimension mismatch while setting input shape for {name})")
            return False
        self._warm = self._warm and wanted == self._shapes[name]
        self._shapes[name] = wanted
        return True

    def get_tensor_shape(self, name: str) -> Any:
        return self._api.Dims(self._shapes.get(name, self._engine._tensors[name].shape))

    def infer_shapes(self) -> list[str]:
        return self._unspecified()

    @property
    def all_binding_shapes_specified(self) -> bool:
        return not self._unspecified()

    def _unspecified(self) -> list[str]:
        return [name for name, shape in self._shapes.items() if -1 in shape]

    def execute_async_v3(self, stream_handle: Any) -> bool:
        """Enqueue the engine; False, after a word to the logger, where something is missing."""
        with self._world.lock:
            problem = self._missing() or self._enqueue(int(stream_handle))
            if problem:
                self._report(problem)
            return not problem

    def _missing(self) -> str:
        if self._world.fail_execution:
            return "Cuda Runtime (unspecified launch failure)"
        needed = self._engine._activations
        if self._memory_size < needed:
            return f"API Usage Error ({self._memory_size} bytes of device memory were set, {needed} are needed)"
        if self._unspecified():
            return f"API Usage Error (Not all shapes are specified: {', '.join(self._unspecified())})"
        missing = [name for name in self._engine._tensors if not self._addresses.get(name)]
        return f"API Usage Error (Address is not set for tensor {missing[0]})" if missing else ""

    def _enqueue(self, handle: int) -> str:
        """What went wrong, if anything."""
        world, gpu = self._world, self._world.gpu
        stream = gpu.streams.get(handle)
        if stream is None:
            raise world.violate(f"execute_async_v3 on {handle:#x}, which is no stream")
        captured = stream.capture is not None
        if captured and (world.break_capture or not self._warm):
            stream.capture.valid = False
            return "Cuda Runtime (operation not permitted when stream is capturing): run once before the capture"
        addresses, shapes, memory = dict(self._addresses), dict(self._shapes), self._memory
        self._check(addresses, shapes, memory)
        try:
            gpu.submit(stream, lambda: self._run(addresses, shapes, memory), "KERNEL")
        except CudaError as error:
            return f"Cuda Runtime (error {error.code})"
        self._warm = True
        world.counts.captured_enqueues += captured
        world.counts.enqueues += not captured
        return ""

    def _check(self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]], memory: int | None) -> None:
        """All memory must be there: when the work is asked for, and again when it is carried out."""
        batch = next(iter(shapes.values()), (1,))[0]
        needed = {} if memory is None else {"activations": (memory, self._engine._activations)}
        for name, tensor in self._engine._tensors.items():
            shape = shapes.get(name) or tuple(batch if size < 0 else size for size in tensor.shape)
            size = int(np.prod(shape, dtype=np.int64)) * SIZES[self._engine._dtype(name)]
            needed[name] = (addresses[name], size)
        for name, (address, size) in needed.items():
            problem = self._world.gpu.device_heap.problem(address, size)
            if problem:
                raise self._world.violate(f"tensor {name} of an engine: {problem}")

    def _run(self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]], memory: int | None) -> None:
        """Carry out one run: read, compute, write at the addresses of the time when it was asked for."""
        self._check(addresses, shapes, memory)
        engine = self._engine
        feeds = {}
        for tensor in engine._inputs:
            stored = NUMPY[engine._dtype(tensor.name)]
            feeds[tensor.name] = _at(addresses[tensor.name], shapes[tensor.name], stored).astype(NUMPY[tensor.dtype])
        results = session(engine._plan.onnx).run([tensor.name for tensor in engine._outputs], feeds)
        for tensor, result in zip(engine._outputs, results, strict=True):
            _at(addresses[tensor.name], result.shape, NUMPY[engine._dtype(tensor.name)])[...] = result
        self._world.gpu.clock += self._world.kernel_milliseconds
        self._world.counts.executions += 1

    def _report(self, text: str) -> None:
        report(self, self._engine._logger, "ERROR", f"IExecutionContext: Error Code 3: {text}")


def _at(address: int, shape: tuple[int, ...], dtype: Any) -> Any:
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    raw = (ctypes.c_char * size).from_address(address)
    return np.frombuffer(raw, dtype).reshape(shape)


class _Graph:
    """A graph's bytes, known by their digest."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.digest = hashlib.sha256(data).digest()

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Graph) and self.digest == other.digest


@functools.lru_cache(maxsize=32)
def _session(graph: _Graph) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(graph.data, options, providers=["CPUExecutionProvider"])


def session(data: bytes) -> Any:
    """An ONNX Runtime session of a graph, opened once per process."""
    return _session(_Graph(data))


CONTEXT: dict[str, Any] = {"IExecutionContext": IExecutionContext}
