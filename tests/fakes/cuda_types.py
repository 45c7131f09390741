"""Error codes, streams, events, captures and graphs of the fake device."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable

SUCCESS = 0
INVALID_VALUE = 1
OUT_OF_MEMORY = 2
NOT_INITIALIZED = 3
NO_DEVICE = 100
INVALID_DEVICE = 101
INVALID_CONTEXT = 201
INVALID_HANDLE = 400
NOT_READY = 600
NOT_SUPPORTED = 801
CAPTURE_UNSUPPORTED = 900
CAPTURE_INVALIDATED = 901
CAPTURE_UNMATCHED = 903
CAPTURE_IMPLICIT = 906
CAPTURED_EVENT = 907
CAPTURE_WRONG_THREAD = 908

TEXTS = {
    SUCCESS: "no error",
    INVALID_VALUE: "invalid argument",
    OUT_OF_MEMORY: "out of memory",
    NOT_INITIALIZED: "initialization error",
    NO_DEVICE: "no CUDA-capable device is detected",
    INVALID_DEVICE: "invalid device ordinal",
    INVALID_CONTEXT: "invalid device context",
    INVALID_HANDLE: "invalid resource handle",
    NOT_READY: "device not ready",
    NOT_SUPPORTED: "operation not supported",
    CAPTURE_UNSUPPORTED: "operation not permitted when stream is capturing",
    CAPTURE_INVALIDATED: "operation failed due to a previous error during capture",
    CAPTURE_UNMATCHED: "capture was not initiated in this stream",
    CAPTURE_IMPLICIT: "operation would make the legacy stream depend on a capturing blocking stream",
    CAPTURED_EVENT: "operation not permitted on an event last recorded in a capturing stream",
    CAPTURE_WRONG_THREAD: "attempt to terminate a thread-local capture sequence from another thread",
}

GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2  # CUstreamCaptureMode
NON_BLOCKING = 1  # CUstream_flags
DISABLE_TIMING = 2  # CUevent_flags


class CudaError(Exception):
    """A CUresult other than success; each API shows it in its own way."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclasses.dataclass
class Capture:
    """A capture under way: what was recorded, and whether a rule was broken."""

    mode: int
    thread: int
    work: list[Callable[[], None]] = dataclasses.field(default_factory=list)
    kinds: list[str] = dataclasses.field(default_factory=list)
    valid: bool = True


@dataclasses.dataclass
class Stream:
    """A queue of work. Handle 0 is the default stream."""

    handle: int
    blocking: bool
    queue: deque[Callable[[], None]] = dataclasses.field(default_factory=deque)
    capture: Capture | None = None
    alive: bool = True


@dataclasses.dataclass
class Event:
    """A place in a stream's order. `time`: milliseconds on the device's clock when it was passed."""

    handle: int
    timed: bool
    stream: Stream | None = None
    captured: Capture | None = None
    time: float | None = None
    recorded: bool = False


@dataclasses.dataclass
class Graph:
    """Recorded work and its kinds, CUgraphNodeType's names; the same class serves for graph and executable graph."""

    handle: int
    work: list[Callable[[], None]]
    kinds: list[str]
    alive: bool = True
