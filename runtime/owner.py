"""A thread that owns something no other thread may touch, such as a CUDA context: callers hand it work and wait."""

from __future__ import annotations

import functools
import os
import queue
import threading
import traceback
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeAlias, TypeVar

from .errors import BackendFailed, Closed, S2FError

T = TypeVar("T")

Work: TypeAlias = "queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None]"


class Owner:
    """One daemon thread, one call after the other.

    It lives until `close`, until nobody holds this object any more, or until the process ends: in each case what it
    owns is given back first, in the thread, by `at_exit`.
    """

    def __init__(self, name: str, at_exit: Callable[[], None]) -> None:
        """`at_exit`: called in the thread as its last work. It must not hold whoever holds this object."""
        self._work: Work = queue.SimpleQueue()
        self._process, self._closed, self._lock = os.getpid(), False, threading.Lock()
        thread = threading.Thread(target=_run, args=(self._work, at_exit), name=name, daemon=True)
        thread.start()
        self._end = weakref.finalize(self, _end, self._work, thread, self._process)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """What `function(*arguments)` returns or raises in the thread. Raises Closed, BackendFailed (after a fork)."""
        if os.getpid() != self._process:
            raise BackendFailed(
                "The pipeline was opened before this process was forked off, and its GPU work does not exist here. "
                "Load the bundle in this process."
            )
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise Closed("The pipeline is closed. Load the bundle again.")
            self._work.put((functools.partial(function, *arguments), future))
        try:
            return future.result()
        finally:
            del future, function, arguments  # an error would keep them, and so itself, in a cycle with this frame

    def close(self) -> None:
        """Finish what was handed over, then end the thread. Closing twice is harmless, also after an interrupt."""
        with self._lock:
            self._closed = True
        alive = self._end.peek()
        if alive is not None:
            _end(*alive[2])
            self._end.detach()  # not before: interrupted while it waits, the end is still to come


def _run(work: Work, at_exit: Callable[[], None]) -> None:
    while (item := work.get()) is not None:
        function, future = item
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - it belongs to the caller, who waits for it
            _let_go(error)
            future.set_exception(error)
        del function, future, item  # nothing of a call outlives it here
    at_exit()


def _end(work: Work, thread: threading.Thread, process: int) -> None:
    if os.getpid() != process:
        return
    work.put(None)
    if thread is not threading.current_thread():
        thread.join()


def _let_go(error: BaseException | None) -> None:
    """Whoever keeps an error must not keep the GPU's memory by its frames. Foreseen errors say all without them."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        if isinstance(error, S2FError):
            error.__traceback__ = None
        error = error.__cause__ or error.__context__
