"""The machine that a test imagines: a device, its library versions, what goes wrong, and what was done on it."""

from __future__ import annotations

import dataclasses
import gc
import threading
import types
from collections.abc import Sequence
from typing import Any, Literal

MIB = 1 << 20


class Violation(AssertionError):  # noqa: N818 - what a test report should say
    """The code under test did what on a real device is undefined, corrupts memory or ends the process."""


@dataclasses.dataclass
class Counts:
    """What was done since the start. Copies count when they are carried out, those inside CUDA graphs too."""

    device_allocations: int = 0
    device_frees: int = 0
    pinned_allocations: int = 0
    pinned_frees: int = 0
    engine_allocations: int = 0  # device memory that TensorRT took for an engine's weights
    context_allocations: int = 0  # and for an execution context
    h2d: int = 0
    h2d_bytes: int = 0
    d2h: int = 0
    d2h_bytes: int = 0
    d2d: int = 0
    d2d_bytes: int = 0
    enqueues: int = 0  # engines enqueued outside of capture
    captured_enqueues: int = 0
    graph_launches: int = 0
    executions: int = 0  # engines that really ran, from a stream or inside a graph
    synchronisations: int = 0  # waits of the host: stream, event, context, or a copy that is not asynchronous
    captures: int = 0
    graph_instantiations: int = 0
    streams: int = 0
    events: int = 0
    deserialisations: int = 0
    builds: int = 0

    @property
    def launches(self) -> int:
        """What the host asked the device to run: engines outside of graphs, and graphs."""
        return self.enqueues + self.graph_launches

    @property
    def allocations(self) -> int:
        """All memory taken, of every kind."""
        tensorrt = self.engine_allocations + self.context_allocations
        return self.device_allocations + self.pinned_allocations + tensorrt

    def __sub__(self, before: Counts) -> Counts:
        names = [field.name for field in dataclasses.fields(self)]
        return Counts(**{name: getattr(self, name) - getattr(before, name) for name in names})

    def copy(self) -> Counts:
        """As it stands now: `world.counts - before` is then what one call did."""
        return dataclasses.replace(self)


@dataclasses.dataclass
class World:
    """Settings a test may change at any time, and what it may ask afterwards.

    As a context manager it ends with `check()`: no violation, every context popped, nothing left allocated.
    """

    version: str
    capability: tuple[int, int] = (8, 7)
    memory: int = 8 << 30  # bytes of the device
    cuda: str = "12.9"
    lean: bool = False
    device_name: str = "Fake Orin"
    device_count: int = 1
    driver_version: int = 12060
    integrated: bool = True

    no_driver: bool = False  # no libcuda, or none that works: pycuda.driver.init raises
    refuse_capture: bool = False  # cuStreamBeginCapture answers CUDA_ERROR_NOT_SUPPORTED
    break_capture: bool = False  # an engine that cannot be captured: the capture ends invalidated
    fail_execution: bool = False  # execute_async_v3 returns False
    kernel_milliseconds: float = 1.0  # how long an engine takes on the device's clock (events)

    build_seconds: float = 0.0
    build_failure: Literal["", "none", "memory", "raise"] = ""
    build_memory: int = 0  # bytes of free device memory that a build needs
    workspace_needed: int = 0  # bytes of workspace below which no tactic fits
    plan_padding: int = 0  # bytes of zeros in every plan: the fault of TensorRT 11.2
    activation_bytes: int | None = None  # device memory of a context; None: from the graph's tensors
    on_build: Any = None  # called with the build's network and config, before anything else
    unsupported: Sequence[str] = ()  # operators that the parser refuses beside those of the version

    counts: Counts = dataclasses.field(default_factory=Counts)
    violations: list[str] = dataclasses.field(default_factory=list)
    log: list[str] = dataclasses.field(default_factory=list)  # what TensorRT told its logger, "ERROR: ..."
    modules: dict[str, types.ModuleType] = dataclasses.field(default_factory=dict)
    host_code: bool = False  # somebody has let engines run code of the host
    builds: list[Any] = dataclasses.field(default_factory=list)  # one Build for each build that began
    lock: Any = dataclasses.field(default_factory=threading.RLock, repr=False)
    gpu: Any = dataclasses.field(default=None, repr=False)

    @property
    def release(self) -> tuple[int, int]:
        """(10, 3)"""
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)

    @property
    def live_bytes(self) -> int:
        """Device memory in use: by the code under test and by TensorRT for its contexts and engines."""
        return int(self.gpu.device_heap.used)

    @property
    def peak_bytes(self) -> int:
        """The most device memory that was in use at once."""
        return int(self.gpu.device_heap.peak)

    @property
    def live_pinned_bytes(self) -> int:
        """Page-locked host memory in use."""
        return int(self.gpu.pinned_heap.used)

    def violate(self, what: str) -> Violation:
        """Note a violation; the caller raises what is returned. Noted first, so that `except Exception` hides none."""
        self.violations.append(what)
        return Violation(what)

    def check(self, *, freed: bool = True) -> None:
        """Raise Violation unless everything was done by the rules and, with `freed`, all memory was given back."""
        gc.collect()
        problems = list(self.violations)
        problems += [f"thread {name} ends with {depth} contexts pushed" for name, depth in self.gpu.pushed().items()]
        held = {**self.gpu.device_heap.live(), **self.gpu.pinned_heap.live()} if freed else {}
        problems += [f"{size} bytes of {purpose} not given back" for purpose, size in held.items()]
        if problems:
            raise Violation("; ".join(problems))

    def __enter__(self) -> World:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.check()
