"""CUDA through pycuda, and CUDA graphs through cuda-bindings: the one file that knows either.

All calls of a `Cuda` come from the thread that made it, which holds the device's primary context (the one torch and
ONNX Runtime share) from beginning to end; no `pycuda.autoinit`. pycuda has no stream capture, so capture and launch of
graphs go through cuda-bindings on pycuda's own stream; without that package work is enqueued call by call.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BackendFailed, BackendMissing, DeviceOutOfMemory, DeviceUnavailable, S2FError

logger = logging.getLogger(__name__)

ALIGNMENT = 256
"""Bytes: what TensorRT asks of a tensor's address, and what every allocation of CUDA has."""

NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: what the host program does on the default stream neither waits for us nor ends a capture."""

_TEGRA_FILE = Path("/etc/nv_tegra_release")
_DRIVER_FILE = Path("/proc/driver/nvidia/version")


@dataclasses.dataclass(frozen=True)
class Gpu:
    """The device CUDA lists first (CUDA_VISIBLE_DEVICES decides which that is).

    `processors`: multiprocessors, by which modules and power modes of a Jetson family differ; `memory`: bytes in all.
    """

    name: str
    processors: int
    capability: str
    driver: str
    memory: int


def describe() -> Gpu:
    """The GPU here, without making a context. Raises BackendMissing, DeviceUnavailable."""
    driver = _pycuda()
    device = _first(driver)
    major, minor = device.compute_capability()
    processors = int(device.get_attribute(driver.device_attribute.MULTIPROCESSOR_COUNT))
    return Gpu(device.name(), processors, f"{major}.{minor}", _driver_version(driver), int(device.total_memory()))


class CaptureFailed(Exception):  # noqa: N818 - says what happened
    """This work cannot be captured as a CUDA graph here; the message says why."""


class Cuda:
    """The first GPU, held by the calling thread: memory, copies, one stream, graphs."""

    def __init__(self) -> None:
        """Raises BackendMissing, DeviceUnavailable, DeviceOutOfMemory."""
        self._driver = _pycuda()
        device = _first(self._driver)
        with self._translated("making a context"):
            self._context = device.retain_primary_context()
            self._context.push()
        self._allocations: list[Any] = []
        self._graphs: list[Any] = []
        try:
            with self._translated("making a stream"):
                self._stream = self._driver.Stream(NON_BLOCKING)
        except BaseException:
            self.close()
            raise

    @property
    def stream(self) -> int:
        """The handle of the stream all work goes to."""
        return int(self._stream.handle)

    def allocate(self, size: int) -> int:
        """The address of `size` new bytes on the device. Raises DeviceOutOfMemory."""
        with self._translated(f"allocating {size} bytes"):
            block = self._driver.mem_alloc(size)
        self._allocations.append(block)
        return int(block)

    def pinned(self, size: int) -> npt.NDArray[np.uint8]:
        """`size` zero bytes of page-locked host memory, to copy from and to. Raises DeviceOutOfMemory."""
        with self._translated(f"pinning {size} bytes of host memory"):
            block: npt.NDArray[np.uint8] = self._driver.pagelocked_zeros(size, np.uint8)
        return block

    def upload(self, address: int, source: npt.NDArray[np.uint8]) -> None:
        """Enqueue a copy of a pinned array to the device."""
        with self._translated("copying to the device"):
            self._driver.memcpy_htod_async(address, source, self._stream)

    def download(self, target: npt.NDArray[np.uint8], address: int) -> None:
        """Enqueue a copy from the device into a pinned array."""
        with self._translated("copying from the device"):
            self._driver.memcpy_dtoh_async(target, address, self._stream)

    def synchronize(self) -> None:
        """Wait for all that was enqueued. Raises BackendFailed where it failed."""
        with self._translated("waiting for the device"):
            self._stream.synchronize()

    def free_memory(self) -> int:
        """Bytes free on the device now."""
        with self._translated("asking for free memory"):
            return int(self._driver.mem_get_info()[0])

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """What `enqueue` puts on the stream as a CUDA graph; calling the result enqueues it with one launch.

        Nothing runs during the capture. Raises CaptureFailed; whatever `enqueue` raises counts as that.
        """
        api = _graph_api()
        stream = api.CUstream(self.stream)
        # THREAD_LOCAL: what other threads of the host program do with CUDA meanwhile is none of our business.
        _ok(api, api.cuStreamBeginCapture(stream, api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL))
        problem = ""
        try:
            enqueue()
        except S2FError as error:
            problem = str(error)  # the error itself would keep this frame, and with it the GPU's memory, in a cycle
        finally:
            ended = api.cuStreamEndCapture(stream)
        if problem:
            if ended[0] == api.CUresult.CUDA_SUCCESS:
                api.cuGraphDestroy(ended[1])
            raise CaptureFailed(problem)
        graph = _ok(api, ended)
        try:
            executable = _ok(api, api.cuGraphInstantiate(graph, 0))
        finally:
            api.cuGraphDestroy(graph)
        self._graphs.append(executable)

        def launch() -> None:
            status = api.cuGraphLaunch(executable, stream)[0]
            if status != api.CUresult.CUDA_SUCCESS:
                raise BackendFailed(f"CUDA cannot launch the graph: {_name(status)}. {_RESTART}")

        return launch

    def close(self) -> None:
        """Give everything back, the context last. Closing twice is harmless."""
        if self._context is None:
            return
        # A device that failed before fails in each of these too, and the context goes anyway.
        for executable in self._graphs:
            with contextlib.suppress(Exception):
                _graph_api().cuGraphExecDestroy(executable)
        for block in self._allocations:
            with contextlib.suppress(Exception):
                block.free()
        self._graphs, self._allocations, self._stream = [], [], None
        with contextlib.suppress(Exception):
            self._context.pop()
        with contextlib.suppress(Exception):
            self._context.detach()
        self._context = None

    @contextlib.contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        """pycuda's errors in the words of this package."""
        try:
            yield
        except self._driver.MemoryError as error:
            raise DeviceOutOfMemory(
                f"The GPU has not enough memory for {doing}: {error}. Close what else uses it, or prepare smaller "
                "batches."
            ) from error
        except self._driver.Error as error:
            raise BackendFailed(f"CUDA failed in {doing}: {error}. {_RESTART}") from error


_RESTART = "Start the process again, and run `s2f doctor` if it comes back"


def install_cure() -> str:
    """What to run where TensorRT or pycuda is missing."""
    if _TEGRA_FILE.exists():
        return "Run: step 2 of docs/jetson.md, since a Jetson has TensorRT from JetPack and never from pip"
    return 'Run: pip install "s2f-edge[trt]"'


def graphs_missing() -> str:
    """Why no CUDA graphs can be used here, empty if they can."""
    try:
        _graph_api()
    except CaptureFailed as reason:
        return str(reason)
    return ""


def _pycuda() -> Any:
    if importlib.util.find_spec("pycuda") is None:
        raise BackendMissing(f"pycuda is not installed. {install_cure()}")
    try:
        import pycuda.driver
    except ImportError as error:
        raise BackendMissing(
            f"pycuda is installed but cannot be imported: {error}. It needs the driver's libcuda.so.1. "
            "Run: nvidia-smi, to see whether the driver is there"
        ) from error
    return pycuda.driver


def _first(driver: Any) -> Any:
    """The first device. Raises DeviceUnavailable."""
    try:
        driver.init()
        if driver.Device.count():
            return driver.Device(0)
        problem = "there is none"
    except driver.Error as error:
        problem = str(error)
    raise DeviceUnavailable(
        f"No GPU can be used: {problem}. Run: nvidia-smi, and look at CUDA_VISIBLE_DEVICES and the rights of "
        "/dev/nvidia*"
    )


def _driver_version(driver: Any) -> str:
    """CUDA's version as the driver has it, and the driver's own where the system tells it."""
    version = int(driver.get_driver_version())
    cuda = f"CUDA {version // 1000}.{version % 1000 // 10}"
    try:
        found = re.search(r"\b\d{3,}\.\d+(?:\.\d+)*\b", _DRIVER_FILE.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        found = None
    return f"{cuda}, driver {found[0]}" if found else cuda


def _graph_api() -> Any:
    """cuda.bindings.driver. Raises CaptureFailed."""
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise CaptureFailed(f"cuda-bindings cannot be imported ({error})") from error
    return driver


def _ok(api: Any, result: tuple[Any, ...]) -> Any:
    """The value of a call of cuda-bindings, which returns (status, value…). Raises CaptureFailed."""
    status = result[0]
    if status != api.CUresult.CUDA_SUCCESS:
        raise CaptureFailed(f"CUDA says {_name(status)}")
    return result[1] if len(result) > 1 else None


def _name(status: Any) -> str:
    return str(getattr(status, "name", status))
