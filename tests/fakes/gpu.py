"""The device behind both CUDA APIs: streams that work later, events, stream capture, graphs, contexts.

Work put into a stream is carried out when the host waits for it, in the stream's order. A result read before the wait,
or an input changed before it, is therefore wrong here as it would be on a device. While a stream captures, work is
recorded and not carried out; a graph carries it out with the addresses of the time of capture.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections.abc import Callable
from typing import Any

from .cuda_types import (
    CAPTURE_IMPLICIT,
    CAPTURE_INVALIDATED,
    CAPTURE_UNMATCHED,
    CAPTURE_UNSUPPORTED,
    CAPTURE_WRONG_THREAD,
    CAPTURED_EVENT,
    DISABLE_TIMING,
    GLOBAL,
    INVALID_CONTEXT,
    INVALID_HANDLE,
    INVALID_VALUE,
    NO_DEVICE,
    NON_BLOCKING,
    NOT_INITIALIZED,
    NOT_READY,
    NOT_SUPPORTED,
    OUT_OF_MEMORY,
    RELAXED,
    Capture,
    CudaError,
    Event,
    Graph,
    Stream,
)
from .memory import Heap
from .world import World


class Gpu:
    """One device with one primary context."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.device_heap = Heap("device", lambda: world.memory)
        self.pinned_heap = Heap("pinned", lambda: None)
        self.clock = 0.0
        self.initialised = False
        self.retained = 0  # holders of the primary context
        self._thread = threading.local()
        self._stacks: list[tuple[str, list[Any]]] = []
        self._handles = itertools.count(0x1000, 0x10)
        self.default = Stream(0, True)
        self.streams: dict[int, Stream] = {0: self.default}
        self.events: dict[int, Event] = {}
        self.graphs: dict[int, Graph] = {}
        self.executables: dict[int, Graph] = {}

    # Contexts: each thread has its own stack; an entry is whatever object the API pushed.

    @property
    def stack(self) -> list[Any]:
        """The contexts pushed in this thread, the current one last."""
        if not hasattr(self._thread, "stack"):
            self._thread.stack = []
            self._stacks.append((threading.current_thread().name, self._thread.stack))
        return self._thread.stack

    def pushed(self) -> dict[str, int]:
        """Threads that have, or had when they ended, contexts pushed, with how many."""
        return {name: len(stack) for name, stack in self._stacks if stack}

    def require_context(self) -> None:
        """Raise unless this thread has a current context."""
        self.require_driver()
        if not self.stack:
            raise CudaError(INVALID_CONTEXT)

    def require_driver(self) -> None:
        """Raise unless there is a driver and cuInit was called."""
        if self.world.no_driver:
            raise CudaError(NO_DEVICE)
        if not self.initialised:
            raise CudaError(NOT_INITIALIZED)

    def initialise(self) -> None:
        """cuInit."""
        if self.world.no_driver or not self.world.device_count:
            raise CudaError(NO_DEVICE)
        self.initialised = True

    # Memory

    def allocate(self, size: int) -> int:
        """cuMemAlloc."""
        self.require_context()
        self.unsafe()
        if size <= 0:
            raise CudaError(INVALID_VALUE)
        address = self.device_heap.allocate(size, "device memory")
        if address is None:
            raise CudaError(OUT_OF_MEMORY)
        self.world.counts.device_allocations += 1
        return address

    def free(self, address: int) -> None:
        """cuMemFree, which waits for all work."""
        self.require_context()
        self.unsafe()
        self.drain_all()
        if not self.device_heap.release(address):
            raise CudaError(INVALID_VALUE)
        self.world.counts.device_frees += 1

    def allocate_pinned(self, size: int) -> int:
        """cuMemHostAlloc."""
        self.require_context()
        self.unsafe()
        if size <= 0:
            raise CudaError(INVALID_VALUE)
        address = self.pinned_heap.allocate(size, "pinned memory")
        if address is None:
            raise CudaError(OUT_OF_MEMORY)
        self.world.counts.pinned_allocations += 1
        return address

    def free_pinned(self, address: int) -> None:
        """cuMemFreeHost."""
        self.require_context()
        self.unsafe()
        self.drain_all()
        if not self.pinned_heap.release(address):
            raise CudaError(INVALID_VALUE)
        self.world.counts.pinned_frees += 1

    def copy(self, kind: str, target: int, source: int, size: int, stream: Stream | None) -> None:
        """cuMemcpy*: `kind` is h2d, d2h or d2d; without a stream, carried out at once and waited for."""
        self.require_context()
        self._check_copy(kind, target, source, size, stream is not None)
        if stream is None:
            self.unsafe()
            self.synchronous()
            self._move(kind, target, source, size)
            self.world.counts.synchronisations += 1
            return

        def move() -> None:
            self._check_copy(kind, target, source, size, True)
            self._move(kind, target, source, size)

        self.submit(stream, move, "MEMCPY")

    def fill(self, target: int, value: int, size: int, stream: Stream | None) -> None:
        """cuMemsetD8."""
        self.require_context()

        def fill() -> None:
            self._check_side("fill", target, size, "d", False)
            ctypes.memset(target, value, size)

        self._check_side("fill", target, size, "d", False)
        self.submit(stream or self.default, fill, "MEMSET")

    def _check_copy(self, kind: str, target: int, source: int, size: int, asynchronous: bool) -> None:
        """What the two ends of a copy must be: when it is asked for, and again when it is carried out."""
        self._check_side(kind, target, size, kind[2], asynchronous)
        self._check_side(kind, source, size, kind[0], asynchronous)

    def _check_side(self, kind: str, address: int, size: int, side: str, asynchronous: bool) -> None:
        if side == "h" and not asynchronous:
            return
        problem = (self.device_heap if side == "d" else self.pinned_heap).problem(address, size)
        if problem:
            raise self.world.violate(f"{'asynchronous ' * asynchronous}{kind}: {problem}")

    def _move(self, kind: str, target: int, source: int, size: int) -> None:
        ctypes.memmove(target, source, size)
        self.clock += 0.01
        counts = self.world.counts
        setattr(counts, kind, getattr(counts, kind) + 1)
        setattr(counts, f"{kind}_bytes", getattr(counts, f"{kind}_bytes") + size)

    # Streams

    def create_stream(self, flags: int) -> Stream:
        """cuStreamCreate."""
        self.require_context()
        stream = Stream(next(self._handles), not flags & NON_BLOCKING)
        self.streams[stream.handle] = stream
        self.world.counts.streams += 1
        return stream

    def destroy_stream(self, stream: Stream) -> None:
        """cuStreamDestroy; work in it still runs."""
        if stream.capture is not None:
            raise self.world.violate("a stream was destroyed while it captured")
        self.drain(stream)
        stream.alive = False
        self.streams.pop(stream.handle, None)

    def stream(self, handle: int) -> Stream:
        """The stream of a handle."""
        if handle not in self.streams:
            raise CudaError(INVALID_HANDLE)
        return self.streams[handle]

    def submit(self, stream: Stream, work: Callable[[], None], kind: str) -> None:
        """Put work into a stream, or into the capture that the stream has begun."""
        if stream.capture is not None:
            self._require_valid(stream.capture)
            stream.capture.work.append(work)
            stream.capture.kinds.append(kind)
        elif stream is self.default:
            self.synchronous()
            work()
        else:
            stream.queue.append(work)

    def synchronous(self) -> None:
        """Work of the default stream: it waits for all blocking streams, so none of them may be capturing."""
        for stream in self.streams.values():
            if stream.capture is not None and stream.blocking:
                stream.capture.valid = False
                raise CudaError(CAPTURE_IMPLICIT)
            if stream.blocking:
                self.drain(stream)

    def synchronise(self, stream: Stream) -> None:
        """cuStreamSynchronize."""
        self.require_context()
        if stream.capture is not None:
            stream.capture.valid = False
            raise CudaError(CAPTURE_UNSUPPORTED)
        self.world.counts.synchronisations += 1
        if stream is self.default:
            self.synchronous()
        self.drain(stream)

    def synchronise_all(self) -> None:
        """cuCtxSynchronize."""
        self.require_context()
        for stream in self.streams.values():
            if stream.capture is not None:
                stream.capture.valid = False
                raise CudaError(CAPTURE_UNSUPPORTED)
        self.world.counts.synchronisations += 1
        self.drain_all()

    def drain(self, stream: Stream, event: Event | None = None) -> None:
        """Carry out the work of a stream, all of it or up to an event."""
        while stream.queue and (event is None or event.time is None):
            stream.queue.popleft()()

    def drain_all(self) -> None:
        """Carry out all work."""
        for stream in list(self.streams.values()):
            self.drain(stream)

    # Events

    def create_event(self, flags: int) -> Event:
        """cuEventCreate."""
        self.require_context()
        event = Event(next(self._handles), not flags & DISABLE_TIMING)
        self.events[event.handle] = event
        self.world.counts.events += 1
        return event

    def record(self, event: Event, stream: Stream) -> None:
        """cuEventRecord."""
        event.stream, event.captured, event.time, event.recorded = stream, stream.capture, None, True

        def passed() -> None:
            event.time = self.clock

        self.submit(stream, passed, "EVENT_RECORD")

    def wait_event(self, stream: Stream, event: Event) -> None:
        """cuStreamWaitEvent."""
        if event.captured is not stream.capture and event.recorded:
            raise NotImplementedError("the fake captures one stream at a time: no fork and join")
        recorder = event.stream
        if recorder is not None and recorder is not stream:
            self.submit(stream, lambda: self.drain(recorder, event), "EVENT_WAIT")

    def synchronise_event(self, event: Event) -> None:
        """cuEventSynchronize."""
        self._require_free(event)
        self.world.counts.synchronisations += 1
        if event.stream is not None:
            self.drain(event.stream, event)

    def query(self, event: Event) -> bool:
        """cuEventQuery."""
        self._require_free(event)
        return not event.recorded or event.time is not None

    def elapsed(self, start: Event, end: Event) -> float:
        """cuEventElapsedTime in milliseconds."""
        if not (start.timed and end.timed and start.recorded and end.recorded):
            raise CudaError(INVALID_HANDLE)
        if start.time is None or end.time is None:
            raise CudaError(NOT_READY)
        return end.time - start.time

    def _require_free(self, event: Event) -> None:
        if event.captured is not None:
            event.captured.valid = False
            raise CudaError(CAPTURED_EVENT)

    # Capture and graphs

    def unsafe(self) -> None:
        """A call that a capture forbids: in GLOBAL mode from any thread, in THREAD_LOCAL mode from its own."""
        for stream in self.streams.values():
            capture = stream.capture
            if capture is None or capture.mode == RELAXED:
                continue
            if capture.mode == GLOBAL or capture.thread == threading.get_ident():
                capture.valid = False
                raise CudaError(CAPTURE_UNSUPPORTED)

    def begin_capture(self, stream: Stream, mode: int) -> None:
        """cuStreamBeginCapture."""
        self.require_context()
        if self.world.refuse_capture:
            raise CudaError(NOT_SUPPORTED)
        if stream is self.default or stream.capture is not None:
            raise CudaError(CAPTURE_UNSUPPORTED if stream is self.default else INVALID_VALUE)
        stream.capture = Capture(mode, threading.get_ident())
        self.world.counts.captures += 1

    def end_capture(self, stream: Stream) -> Graph:
        """cuStreamEndCapture."""
        capture = stream.capture
        if capture is None:
            raise CudaError(CAPTURE_UNMATCHED)
        if capture.thread != threading.get_ident() and capture.mode != RELAXED:
            capture.valid = False
            raise CudaError(CAPTURE_WRONG_THREAD)
        stream.capture = None
        self._require_valid(capture)
        graph = Graph(next(self._handles), capture.work, capture.kinds)
        self.graphs[graph.handle] = graph
        return graph

    def instantiate(self, graph: Graph) -> Graph:
        """cuGraphInstantiate: a copy, which outlives the graph."""
        self.unsafe()
        executable = Graph(next(self._handles), list(graph.work), list(graph.kinds))
        self.executables[executable.handle] = executable
        self.world.counts.graph_instantiations += 1
        return executable

    def launch(self, executable: Graph, stream: Stream) -> None:
        """cuGraphLaunch."""
        self.require_context()
        if stream.capture is not None:
            raise NotImplementedError("the fake does not capture the launch of a graph")

        def run() -> None:
            if not executable.alive:
                raise self.world.violate("a graph was destroyed before its launch had run")
            for work in executable.work:
                work()

        self.submit(stream, run, "GRAPH")
        self.world.counts.graph_launches += 1

    def _require_valid(self, capture: Capture) -> None:
        if not capture.valid:
            raise CudaError(CAPTURE_INVALIDATED)
