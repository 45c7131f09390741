"""Classes of pycuda.driver 2026.1: devices, contexts, and what belongs to a context.

Each thread has its stack of contexts. An object remembers the context it was made in, and wants it back when it is
given up: current in that thread, or made by that thread.
"""

from __future__ import annotations

import threading
from typing import Any

from . import cuda_types
from .cuda_types import CAPTURE_UNSUPPORTED, INVALID_CONTEXT, INVALID_DEVICE, INVALID_HANDLE, CudaError
from .pycuda_errors import LogicError, integer, no_context, static, translated
from .surface import make
from .world import World


class Device:
    """pycuda.driver.Device."""

    @translated("cuDeviceGet")
    def __init__(self, ordinal: int) -> None:
        self._world.gpu.require_driver()
        if not 0 <= integer("Device", ordinal) < self._world.device_count:
            raise CudaError(INVALID_DEVICE)
        self._ordinal = ordinal

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self._ordinal == other._ordinal

    def __hash__(self) -> int:
        return int(self._ordinal)

    @static
    def count(world: World) -> int:  # noqa: N805 - static
        return world.device_count

    def name(self) -> str:
        return str(self._world.device_name)

    def compute_capability(self) -> tuple[int, int]:
        return tuple(self._world.capability)

    def total_memory(self) -> int:
        return int(self._world.memory)

    def pci_bus_id(self) -> str:
        return f"0000:{self._ordinal + 1:02x}:00.0"

    def get_attribute(self, attribute: Any) -> int:
        major, minor = self._world.capability
        known = {
            "COMPUTE_CAPABILITY_MAJOR": major,
            "COMPUTE_CAPABILITY_MINOR": minor,
            "INTEGRATED": int(self._world.integrated),
            "MULTIPROCESSOR_COUNT": 8,
            "CLOCK_RATE": 918_000,
            "MEMORY_CLOCK_RATE": 3_199_000,
            "GLOBAL_MEMORY_BUS_WIDTH": 128,
            "L2_CACHE_SIZE": 2 << 20,
        }
        if attribute.name not in known:
            raise NotImplementedError(f"the fake device has no attribute {attribute.name}: add it")
        return known[attribute.name]

    @translated("cuDevicePrimaryCtxRetain")
    def retain_primary_context(self) -> Any:
        self._world.gpu.require_driver()
        self._world.gpu.retained += 1
        return make(self._api.Context, self)

    @translated("cuCtxCreate")
    def make_context(self, flags: int = 0) -> Any:
        raise self._world.violate(
            "make_context gives TensorRT another context than its own: use retain_primary_context"
        )


class Context:
    """pycuda.driver.Context of the primary context."""

    def _setup(self, device: Device) -> None:
        self._device = device
        self._thread = threading.get_ident()
        self._valid = True

    @translated("cuCtxPushCurrent")
    def push(self) -> None:
        if not self._valid:
            raise CudaError(INVALID_CONTEXT)
        self._world.gpu.stack.append(self)

    @translated("cuDevicePrimaryCtxRelease")
    def detach(self) -> None:
        """As pycuda does: neither popped nor, from a thread other than its own while not current, released."""
        gpu = self._world.gpu
        if not self._valid:
            raise LogicError("context::detach failed: invalid device context - cannot detach from invalid context")
        if self in gpu.stack:
            raise self._world.violate("detach of a context that is still pushed: the driver keeps it current")
        if threading.get_ident() == self._thread:
            gpu.retained -= 1
        self._valid = False

    @property
    def handle(self) -> int:
        return 0xC0DE0 + int(self._device._ordinal)

    @static
    @translated("context::pop")
    def pop(world: World) -> None:  # noqa: N805 - static
        if not world.gpu.stack:
            raise LogicError("context::pop failed: invalid device context - cannot pop non-current context")
        world.gpu.stack.pop()

    @static
    def get_current(world: World) -> Any:  # noqa: N805 - static
        return _current(world)

    @static
    @translated("cuCtxGetDevice")
    def get_device(world: World) -> Any:  # noqa: N805 - static
        world.gpu.require_context()
        return _current(world)._device

    @static
    @translated("cuCtxSynchronize")
    def synchronize(world: World) -> None:  # noqa: N805 - static
        world.gpu.synchronise_all()


def _current(world: World) -> Any:
    stack = world.gpu.stack
    while stack and not stack[-1]._valid:
        stack.pop()
    return stack[-1] if stack else None


class _Owned:
    """An object of a context: its end wants that context, current in this thread or made by it."""

    def _own(self) -> None:
        self._context = _current(self._world)
        if self._context is None:
            raise no_context()

    def _end(self, what: str, release: Any) -> None:
        """Carry out `release` the way pycuda's destructors do; Violation where pycuda would leak with a warning."""
        context, world = self._context, self._world
        if not context._valid:
            raise world.violate(f"{what} was given back after its context was detached: it leaks")
        if _current(world) is context:
            release()
            return
        if threading.get_ident() != context._thread:
            raise world.violate(f"{what} was given back in a thread where its context is not current: it leaks")
        world.gpu.stack.append(context)
        try:
            release()
        finally:
            world.gpu.stack.remove(context)


class Stream(_Owned):
    """pycuda.driver.Stream."""

    @translated("cuStreamCreate")
    def __init__(self, flags: int = 0) -> None:
        self._own()
        self._stream = self._world.gpu.create_stream(integer("Stream", flags))

    def __del__(self) -> None:
        if hasattr(self, "_stream") and self._stream.alive:
            with self._world.lock:
                self._end("a stream", lambda: self._world.gpu.destroy_stream(self._stream))

    @property
    def handle(self) -> int:
        return int(self._stream.handle)

    @translated("cuStreamSynchronize")
    def synchronize(self) -> None:
        self._world.gpu.synchronise(self._stream)

    @translated("cuStreamQuery")
    def is_done(self) -> bool:
        if self._stream.capture is not None:
            self._stream.capture.valid = False
            raise CudaError(CAPTURE_UNSUPPORTED)
        return not self._stream.queue

    @translated("cuStreamWaitEvent")
    def wait_for_event(self, evt: Event) -> None:
        self._world.gpu.wait_event(self._stream, evt._event)


class Event(_Owned):
    """pycuda.driver.Event."""

    @translated("cuEventCreate")
    def __init__(self, flags: int = 0) -> None:
        self._own()
        self._event = self._world.gpu.create_event(int(flags))

    @translated("cuEventRecord")
    def record(self, stream: Stream | None = None) -> Event:
        self._world.gpu.record(self._event, stream_of(self._world, stream))
        return self

    @translated("cuEventSynchronize")
    def synchronize(self) -> Event:
        self._world.gpu.synchronise_event(self._event)
        return self

    @translated("cuEventQuery")
    def query(self) -> bool:
        return bool(self._world.gpu.query(self._event))

    @translated("cuEventElapsedTime")
    def time_since(self, start: Event) -> float:
        """Milliseconds from `start` to this event."""
        return float(self._world.gpu.elapsed(start._event, self._event))

    @translated("cuEventElapsedTime")
    def time_till(self, end: Event) -> float:
        """Milliseconds from this event to `end`."""
        return float(self._world.gpu.elapsed(self._event, end._event))


class DeviceAllocation(_Owned):
    """pycuda.driver.DeviceAllocation: an address that frees itself."""

    def _setup(self, address: int) -> None:
        self._own()
        self._address = address
        self._live = True

    def __int__(self) -> int:
        return int(self._address)

    def __index__(self) -> int:
        return int(self._address)

    @translated("device_allocation::free")
    def free(self) -> None:
        if not self._live:
            raise CudaError(INVALID_HANDLE)
        self._end("device memory", lambda: self._world.gpu.free(self._address))
        self._live = False

    def __del__(self) -> None:
        if getattr(self, "_live", False):
            self.free()


class PagelockedHostAllocation(_Owned):
    """Base object of the arrays that pagelocked_empty makes."""

    def _setup(self, address: int) -> None:
        self._own()
        self._address = address
        self._live = True

    @translated("pagelocked_host_allocation::free")
    def free(self) -> None:
        if not self._live:
            raise CudaError(INVALID_HANDLE)
        self._end("pinned memory", lambda: self._world.gpu.free_pinned(self._address))
        self._live = False

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self._interface

    @translated("cuMemHostGetDevicePointer")
    def get_device_pointer(self) -> int:
        raise NotImplementedError("the fake has no mapped host memory: add it")

    def __del__(self) -> None:
        if getattr(self, "_live", False):
            self.free()


def stream_of(world: World, stream: Any) -> cuda_types.Stream:
    """The stream of the device behind pycuda's; None is the default stream."""
    if stream is None:
        return world.gpu.default
    if not hasattr(stream, "_stream"):
        raise TypeError(
            "No registered converter was able to extract a C++ reference to type pycuda::stream from this Python "
            f"object of type {type(stream).__name__}"
        )
    return stream._stream


class host_alloc_flags:  # noqa: N801 - its name in pycuda
    """Numbers, not an enum, in pycuda."""

    PORTABLE = 1
    DEVICEMAP = 2
    WRITECOMBINED = 4
