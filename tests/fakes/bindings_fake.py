# ruff: noqa: N802 - calls have the names they have in CUDA
"""Behaviours of cuda.bindings.driver 12.9 and 13.

Every call answers with a tuple (CUresult, results…), after an error (CUresult, None…). Handles may be given as ints.
"""

from __future__ import annotations

import functools
from typing import Any

from . import cuda_types as cuda
from .pycuda_fake import buffer_of
from .world import World


def answering(function: Any) -> Any:
    """Decorator: under the world's lock; results and errors become the tuple that the real call gives."""
    results = getattr(function, "results", 0)

    @functools.wraps(function)
    def call(world: World, *arguments: Any) -> tuple[Any, ...]:
        driver = world.modules["cuda.bindings.driver"]
        if world.no_driver:
            raise RuntimeError(
                '"cuda" is an NVIDIA driver library and can only be found via system search. Ensure the NVIDIA display '
                "driver is installed."
            )
        try:
            with world.lock:
                found = function(world, *arguments)
        except cuda.CudaError as error:
            return (driver.CUresult(error.code), *[None] * results)
        values = found if isinstance(found, tuple) else (found,)[:results]
        return (driver.CUresult.CUDA_SUCCESS, *values)

    return call


def gives(results: int) -> Any:
    """Decorator: how many values a call answers with beside the CUresult."""

    def mark(function: Any) -> Any:
        function.results = results
        return function

    return mark


class _Handle:
    """An opaque pointer: int() and equality, always true."""

    def __init__(self, init_value: int = 0, _ptr: int = 0) -> None:
        self._value = int(init_value)
        if self._value < 0:
            raise OverflowError("can't convert negative value to unsigned PY_LONG_LONG")

    def __int__(self) -> int:
        return self._value

    def __index__(self) -> int:
        return self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Handle) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._value:#x}>"

    def getPtr(self) -> int:
        raise NotImplementedError("the fake's handles have no address: add it")


def _handle_class(name: str) -> type:
    return type(name, (_Handle,), {"getPtr": _Handle.getPtr, "__init__": _Handle.__init__})


NODE_BITS = 16  # a node's handle is its graph's with its number behind
HANDLES = ("CUstream", "CUevent", "CUgraph", "CUgraphExec", "CUgraphNode", "CUcontext", "CUdevice", "CUdeviceptr")


def _number(value: Any) -> int:
    """A handle or an int; None is the null pointer."""
    return 0 if value is None else int(value)


def _host(value: Any) -> int:
    """A host address: a number, or an object with a buffer."""
    if isinstance(value, int):
        return value
    return buffer_of(value, writable=False)[0]


def _made(world: World, kind: str, handle: int) -> Any:
    return getattr(world.modules["cuda.bindings.driver"], kind)(handle)


def cuInit(world: World, flags: int) -> None:
    world.gpu.initialise()


@gives(1)
def cuDriverGetVersion(world: World) -> int:
    return world.driver_version


@gives(1)
def cuDeviceGetCount(world: World) -> int:
    world.gpu.require_driver()
    return world.device_count


@gives(1)
def cuDeviceGet(world: World, ordinal: int) -> Any:
    world.gpu.require_driver()
    if not 0 <= ordinal < world.device_count:
        raise cuda.CudaError(cuda.INVALID_DEVICE)
    return _made(world, "CUdevice", ordinal)


@gives(1)
def cuCtxGetCurrent(world: World) -> Any:
    world.gpu.require_driver()
    return _made(world, "CUcontext", world.gpu.stack[-1].handle if world.gpu.stack else 0)


@gives(1)
def cuGetErrorName(world: World, error: Any) -> bytes:
    return bytes(error.name, "ascii")


@gives(1)
def cuGetErrorString(world: World, error: Any) -> bytes:
    return bytes(cuda.TEXTS.get(int(error), "unknown error"), "ascii")


@gives(1)
def cuMemAlloc(world: World, bytesize: int) -> Any:
    return _made(world, "CUdeviceptr", world.gpu.allocate(bytesize))


def cuMemFree(world: World, dptr: Any) -> None:
    world.gpu.free(_number(dptr))


@gives(1)
def cuMemHostAlloc(world: World, bytesize: int, flags: int) -> int:
    return int(world.gpu.allocate_pinned(bytesize))


def cuMemFreeHost(world: World, p: Any) -> None:
    world.gpu.free_pinned(_number(p))


@gives(2)
def cuMemGetInfo(world: World) -> tuple[int, int]:
    world.gpu.require_context()
    return world.memory - world.live_bytes, world.memory


def cuMemcpyHtoDAsync(world: World, target: Any, source: Any, size: int, stream: Any) -> None:
    world.gpu.copy("h2d", _number(target), _host(source), size, world.gpu.stream(_number(stream)))


def cuMemcpyDtoHAsync(world: World, target: Any, source: Any, size: int, stream: Any) -> None:
    world.gpu.copy("d2h", _host(target), _number(source), size, world.gpu.stream(_number(stream)))


def cuMemcpyDtoDAsync(world: World, target: Any, source: Any, size: int, stream: Any) -> None:
    world.gpu.copy("d2d", _number(target), _number(source), size, world.gpu.stream(_number(stream)))


@gives(1)
def cuStreamCreate(world: World, flags: int) -> Any:
    return _made(world, "CUstream", world.gpu.create_stream(int(flags)).handle)


def cuStreamDestroy(world: World, stream: Any) -> None:
    world.gpu.destroy_stream(world.gpu.stream(_number(stream)))


def cuStreamSynchronize(world: World, stream: Any) -> None:
    world.gpu.synchronise(world.gpu.stream(_number(stream)))


def cuStreamBeginCapture(world: World, stream: Any, mode: Any) -> None:
    world.gpu.begin_capture(world.gpu.stream(_number(stream)), int(mode))


@gives(1)
def cuStreamEndCapture(world: World, stream: Any) -> Any:
    return _made(world, "CUgraph", world.gpu.end_capture(world.gpu.stream(_number(stream))).handle)


@gives(1)
def cuStreamIsCapturing(world: World, stream: Any) -> Any:
    capture = world.gpu.stream(_number(stream)).capture
    return world.modules["cuda.bindings.driver"].CUstreamCaptureStatus(0 if capture is None else 2 - capture.valid)


@gives(2)
def cuGraphGetNodes(world: World, graph: Any, number: int = 0) -> tuple[list[Any], int]:
    found = _of(world.gpu.graphs, graph)
    first = found.handle << NODE_BITS
    nodes = [_made(world, "CUgraphNode", first + i) for i in range(min(number, len(found.kinds)))]
    return nodes, len(found.kinds)


@gives(1)
def cuGraphNodeGetType(world: World, node: Any) -> Any:
    graph, index = divmod(_number(node), 1 << NODE_BITS)
    kinds = world.modules["cuda.bindings.driver"].CUgraphNodeType
    return getattr(kinds, f"CU_GRAPH_NODE_TYPE_{_of(world.gpu.graphs, graph).kinds[index]}")


@gives(1)
def cuGraphInstantiate(world: World, graph: Any, flags: int) -> Any:
    return _made(world, "CUgraphExec", world.gpu.instantiate(_of(world.gpu.graphs, graph)).handle)


def cuGraphUpload(world: World, executable: Any, stream: Any) -> None:
    _of(world.gpu.executables, executable)
    world.gpu.stream(_number(stream))


def cuGraphLaunch(world: World, executable: Any, stream: Any) -> None:
    world.gpu.launch(_of(world.gpu.executables, executable), world.gpu.stream(_number(stream)))


def cuGraphExecDestroy(world: World, executable: Any) -> None:
    _of(world.gpu.executables, executable).alive = False
    del world.gpu.executables[_number(executable)]


def cuGraphDestroy(world: World, graph: Any) -> None:
    _of(world.gpu.graphs, graph).alive = False
    del world.gpu.graphs[_number(graph)]


def _of(graphs: dict[int, cuda.Graph], handle: Any) -> cuda.Graph:
    if _number(handle) not in graphs:
        raise cuda.CudaError(cuda.INVALID_VALUE)
    return graphs[_number(handle)]


_CALLS = (
    *(cuInit, cuDriverGetVersion, cuDeviceGetCount, cuDeviceGet, cuCtxGetCurrent, cuGetErrorName, cuGetErrorString),
    *(cuMemAlloc, cuMemFree, cuMemHostAlloc, cuMemFreeHost, cuMemGetInfo),
    *(cuMemcpyHtoDAsync, cuMemcpyDtoHAsync, cuMemcpyDtoDAsync),
    *(cuStreamCreate, cuStreamDestroy, cuStreamSynchronize),
    *(cuStreamBeginCapture, cuStreamEndCapture, cuStreamIsCapturing),
    *(cuGraphGetNodes, cuGraphNodeGetType, cuGraphInstantiate, cuGraphUpload, cuGraphLaunch),
    *(cuGraphExecDestroy, cuGraphDestroy),
)
BEHAVIOURS: dict[str, Any] = {call.__name__: answering(call) for call in _CALLS}
BEHAVIOURS |= {name: _handle_class(name) for name in HANDLES}
BEHAVIOURS |= {"CU_STREAM_LEGACY": 1, "CU_STREAM_PER_THREAD": 2}
