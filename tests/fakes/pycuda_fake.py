"""Functions of pycuda.driver 2026.1, and all its behaviours together."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import pycuda_errors, pycuda_objects
from .pycuda_errors import integer, translated
from .pycuda_objects import stream_of
from .surface import make
from .world import World


def address_of(call: str, value: object) -> int:
    """A device address: an int or an allocation."""
    if type(value).__name__ == "DeviceAllocation":
        return int(value)
    return integer(call, value)


def buffer_of(value: Any, *, writable: bool) -> tuple[int, int]:
    """(address, bytes) of an object with a contiguous buffer."""
    view = memoryview(value)
    if not view.contiguous:
        raise ValueError("ndarray is not contiguous")
    if writable and view.readonly:
        raise BufferError("Object is not writable.")
    array = value if isinstance(value, np.ndarray) else np.frombuffer(value, np.uint8)
    return int(array.__array_interface__["data"][0]), int(view.nbytes)


@translated("cuInit")
def init(world: World, flags: int = 0) -> None:
    world.gpu.initialise()


def get_version(world: World) -> tuple[int, int, int]:
    major, minor = world.cuda.split(".")[:2]
    return int(major), int(minor), 0


@translated("cuDriverGetVersion")
def get_driver_version(world: World) -> int:
    world.gpu.require_driver()
    return world.driver_version


@translated("cuMemGetInfo")
def mem_get_info(world: World) -> tuple[int, int]:
    world.gpu.require_context()
    return world.memory - world.live_bytes, world.memory


@translated("cuMemAlloc")
def mem_alloc(world: World, bytes: int) -> Any:  # noqa: A002
    return make(world.modules["pycuda.driver"].DeviceAllocation, world.gpu.allocate(integer("mem_alloc", bytes)))


@translated("cuMemHostAlloc")
def pagelocked_empty(world: World, shape: Any, dtype: Any, order: str = "C", mem_flags: int = 0) -> npt.NDArray[Any]:
    model = np.empty(shape, dtype, order)
    owner = make(world.modules["pycuda.driver"].PagelockedHostAllocation, world.gpu.allocate_pinned(model.nbytes))
    described = {"version": 3, "typestr": model.dtype.str, "shape": model.shape, "strides": model.strides}
    owner._interface = {**described, "data": (owner._address, False)}
    return np.asarray(owner)  # a plain array whose base is the owner, as pycuda's


def pagelocked_zeros(world: World, shape: Any, dtype: Any, order: str = "C", mem_flags: int = 0) -> npt.NDArray[Any]:
    array = pagelocked_empty(world, shape, dtype, order, mem_flags)
    array[...] = 0
    return array


@translated("cuMemcpyHtoDAsync")
def memcpy_htod_async(world: World, dest: Any, src: Any, stream: Any = None) -> None:
    address, size = buffer_of(src, writable=False)
    world.gpu.copy("h2d", address_of("memcpy_htod_async", dest), address, size, stream_of(world, stream))


@translated("cuMemcpyHtoD")
def memcpy_htod(world: World, dest: Any, src: Any) -> None:
    address, size = buffer_of(src, writable=False)
    world.gpu.copy("h2d", address_of("memcpy_htod", dest), address, size, None)


@translated("cuMemcpyDtoHAsync")
def memcpy_dtoh_async(world: World, dest: Any, src: Any, stream: Any = None) -> None:
    address, size = buffer_of(dest, writable=True)
    world.gpu.copy("d2h", address, address_of("memcpy_dtoh_async", src), size, stream_of(world, stream))


@translated("cuMemcpyDtoH")
def memcpy_dtoh(world: World, dest: Any, src: Any) -> None:
    address, size = buffer_of(dest, writable=True)
    world.gpu.copy("d2h", address, address_of("memcpy_dtoh", src), size, None)


@translated("cuMemcpyDtoDAsync")
def memcpy_dtod_async(world: World, dest: Any, src: Any, size: int, stream: Any = None) -> None:
    target, source = address_of("memcpy_dtod_async", dest), address_of("memcpy_dtod_async", src)
    world.gpu.copy("d2d", target, source, integer("memcpy_dtod_async", size), stream_of(world, stream))


@translated("cuMemcpyDtoD")
def memcpy_dtod(world: World, dest: Any, src: Any, size: int) -> None:
    target, source = address_of("memcpy_dtod", dest), address_of("memcpy_dtod", src)
    world.gpu.copy("d2d", target, source, integer("memcpy_dtod", size), None)


@translated("cuMemsetD8")
def memset_d8(world: World, dest: Any, data: int, size: int) -> None:
    world.gpu.fill(address_of("memset_d8", dest), data, integer("memset_d8", size), None)


@translated("cuMemsetD8Async")
def memset_d8_async(world: World, dest: Any, data: int, size: int, stream: Any = None) -> None:
    world.gpu.fill(
        address_of("memset_d8_async", dest), data, integer("memset_d8_async", size), stream_of(world, stream)
    )


_CLASSES = (
    *(getattr(pycuda_errors, name) for name in ("Error", "MemoryError", "LogicError", "RuntimeError", "LaunchError")),
    *(getattr(pycuda_objects, name) for name in ("Device", "Context", "Stream", "Event", "host_alloc_flags")),
    *(getattr(pycuda_objects, name) for name in ("DeviceAllocation", "PagelockedHostAllocation")),
)
_FUNCTIONS = (
    *(init, get_version, get_driver_version, mem_get_info, mem_alloc, pagelocked_empty, pagelocked_zeros),
    *(memcpy_htod, memcpy_htod_async, memcpy_dtoh, memcpy_dtoh_async, memcpy_dtod, memcpy_dtod_async),
    *(memset_d8, memset_d8_async),
)
BEHAVIOURS: dict[str, Any] = {item.__name__: item for item in (*_CLASSES, *_FUNCTIONS)}
