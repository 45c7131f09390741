"""The card itself, measured through the driver's API: events, nodes of graphs, launches, copies.

All work goes to the stream of a `runtime.backends.cuda.Cuda`, from the thread that made it.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.gpu.parts import JSON
from runtime.backends.cuda import Cuda
from runtime.errors import BackendFailed

# One kernel without parameters that does nothing. Every GPU that CUDA 13 knows compiles it when it is loaded.
EMPTY_KERNEL = b""".version 6.4
.target sm_75
.address_size 64
.visible .entry nothing() { ret; }
\0"""
KERNELS = (1, 32, 128, 512)
TRANSFER = 64 << 20
REPEATS = 30


def driver_api() -> Any:
    """cuda.bindings.driver. Raises BackendFailed where it is not installed: nothing here can be measured then."""
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise BackendFailed(f"cuda-bindings cannot be imported ({error}). Install the extra trt") from error
    return driver


def ask(result: tuple[Any, ...]) -> Any:
    """The value of a call of cuda-bindings, which returns (status, value…), or the tuple of several.

    Raises BackendFailed for any status but success.
    """
    status, *values = result
    if int(status) != 0:
        raise BackendFailed(f"CUDA says {getattr(status, 'name', status)}")
    return values[0] if len(values) == 1 else tuple(values)


class Timer:
    """Milliseconds the device takes, between two events on the stream."""

    def __init__(self, cuda: Cuda) -> None:
        self._api, self._stream = driver_api(), driver_api().CUstream(cuda.stream)
        self._begin, self._end = (ask(self._api.cuEventCreate(0)) for _ in range(2))

    def measure(
        self, enqueue: Callable[[], object], runs: int, *, together: int = 1, seconds: float = math.inf
    ) -> list[float]:
        """One value per run; each is waited for before the next begins, so the launch counts.

        `together`: a run is so many in a row, of which the mean is taken: what the device is busy with, as long as the
        host launches faster than the device works. `seconds`: fewer runs, but one at least, where they take longer.
        """
        spent: list[float] = []
        end = time.perf_counter() + seconds
        while len(spent) < runs and (not spent or time.perf_counter() < end):
            spent.append(self._once(enqueue, together) / together)
        return spent

    def _once(self, enqueue: Callable[[], object], together: int) -> float:
        api = self._api
        ask(api.cuEventRecord(self._begin, self._stream))
        _repeat(enqueue, together)
        ask(api.cuEventRecord(self._end, self._stream))
        ask(api.cuEventSynchronize(self._end))
        return float(ask(api.cuEventElapsedTime(self._begin, self._end)))


def count_nodes(cuda: Cuda, enqueue: Callable[[], object]) -> dict[str, int]:
    """What `enqueue` puts on the stream, as nodes of a CUDA graph by kind ("kernel", "memcpy", …). Nothing runs.

    It must have run once before. Raises BackendFailed where it cannot be captured.
    """
    api = driver_api()
    stream = api.CUstream(cuda.stream)
    ask(api.cuStreamBeginCapture(stream, api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL))
    try:
        enqueue()
    finally:
        ended = api.cuStreamEndCapture(stream)
    graph = ask(ended)
    try:
        return dict(_kinds(api, graph))
    finally:
        api.cuGraphDestroy(graph)


def _kinds(api: Any, graph: Any) -> Counter[str]:
    found: Counter[str] = Counter()
    _, count = ask(api.cuGraphGetNodes(graph))
    nodes, _ = ask(api.cuGraphGetNodes(graph, count))
    for node in nodes:
        kind = api.CUgraphNodeType(ask(api.cuGraphNodeGetType(node)))
        if kind == api.CUgraphNodeType.CU_GRAPH_NODE_TYPE_GRAPH:
            found += _kinds(api, ask(api.cuGraphChildGraphNodeGetGraph(node)))
        else:
            found[kind.name.removeprefix("CU_GRAPH_NODE_TYPE_").lower()] += 1
    return found


def launch_floor(cuda: Cuda, counts: Sequence[int] = KERNELS) -> JSON:
    """What launches alone cost: a CUDA graph of K empty kernels, one after the other, for several K.

    `device_us`, `wall_us`: {"slope": µs per kernel, "intercept": µs per launch of a graph}; wall is launch and wait, as
    the host sees it. Raises BackendFailed.
    """
    api = driver_api()
    stream = api.CUstream(cuda.stream)
    module = ask(api.cuModuleLoadData(EMPTY_KERNEL))
    kernel = ask(api.cuModuleGetFunction(module, b"nothing"))

    def nothing() -> None:
        ask(api.cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, stream, 0, 0))

    return _graphs_of(cuda, nothing, counts)


def memset_floor(cuda: Cuda, counts: Sequence[int] = KERNELS) -> JSON:
    """The same with memsets of four bytes in place of kernels."""
    api = driver_api()
    stream, target = api.CUstream(cuda.stream), api.CUdeviceptr(cuda.allocate(256))

    def clear() -> None:
        ask(api.cuMemsetD8Async(target, 0, 4, stream))

    return _graphs_of(cuda, clear, counts)


def _graphs_of(cuda: Cuda, one: Callable[[], object], counts: Sequence[int]) -> JSON:
    timer = Timer(cuda)
    device, wall = [], []
    for count in counts:
        launch = cuda.capture(functools.partial(_repeat, one, count))
        timer.measure(launch, 10)
        device.append(statistics.median(timer.measure(launch, REPEATS)) * 1e3)
        wall.append(statistics.median(_waited(cuda, launch) for _ in range(REPEATS)))
    return {"kernels": list(counts), "device_us": _line(counts, device), "wall_us": _line(counts, wall)}


def _repeat(one: Callable[[], object], count: int) -> None:
    for _ in range(count):
        one()


def _waited(cuda: Cuda, launch: Callable[[], object]) -> float:
    begin = time.perf_counter_ns()
    launch()
    cuda.synchronize()
    return (time.perf_counter_ns() - begin) / 1e3


def _line(counts: Sequence[int], values: Sequence[float]) -> JSON:
    """Least squares, with the values it is drawn through."""
    slope, intercept = np.polyfit(counts, values, 1)
    rounded = [round(value, 3) for value in values]
    return {"slope": round(float(slope), 4), "intercept": round(float(intercept), 3), "values": rounded}


def transfer(cuda: Cuda, size: int, runs: int = REPEATS) -> JSON:
    """Milliseconds of copies of `size` bytes: from and to pinned host memory, and within the device."""
    api, timer = driver_api(), Timer(cuda)
    stream, host = api.CUstream(cuda.stream), cuda.pinned(size)
    here, there = cuda.allocate(size), cuda.allocate(size)
    copies: dict[str, Callable[[], object]] = {
        "h2d": lambda: cuda.upload(here, host),
        "d2h": lambda: cuda.download(host, here),
        "d2d": lambda: ask(api.cuMemcpyDtoDAsync(api.CUdeviceptr(there), api.CUdeviceptr(here), size, stream)),
    }
    found: JSON = {"bytes": size}
    for name, copy in copies.items():
        timer.measure(copy, 5)
        milliseconds = statistics.median(timer.measure(copy, runs))
        moved = size * (2 if name == "d2d" else 1)  # within the device every byte is read and written
        found[name] = {"ms": round(milliseconds, 5), "gb_s": round(moved / max(milliseconds, 1e-6) / 1e6, 2)}
    return found
