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


PATIENCE = 10.0
"""Seconds that the garbage collector waits for the thread's end: it may run where the thread cannot go on."""


class Owner:
    """One daemon thread, one call after the other.

    It lives until `close`, until nobody holds this object any more, or until the process ends: in each case what it
    owns is given back first, in the thread, by `at_exit`.
    """

    def __init__(self, name: str, at_exit: Callable[[], None]) -> None:
        """`at_exit`: called in the thread as its last work. It must not hold whoever holds this object."""
        self._work: Work = queue.SimpleQueue()
        self._process, self._ended = os.getpid(), threading.Event()
        self._thread = threading.Thread(target=_run, args=(self._work, at_exit, self._ended), name=name, daemon=True)
        self._thread.start()
        self._end = weakref.finalize(self, _end, self._work, self._thread, self._process)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """What `function(*arguments)` returns or raises in the thread. Raises Closed, BackendFailed (after a fork)."""
        if os.getpid() != self._process:
            raise BackendFailed(
                "The pipeline was opened before this process was forked off, and its GPU work does not exist here. "
                "Load the bundle in this process."
            )
        future: Future[T] = Future()
        self._work.put((functools.partial(function, *arguments), future))
        if self._ended.is_set():  # nobody reads the queue any more, or not for long
            _refuse(self._work)
        try:
            return future.result()
        finally:
            del future, function, arguments  # an error would keep them, and so itself, in a cycle with this frame

    def close(self) -> None:
        """Finish what was handed over, then end the thread. Closing twice is harmless, also after an interrupt."""
        _end(self._work, self._thread, self._process, patience=None)
        self._end.detach()  # not before: interrupted while it waits, the end is still to come


def _run(work: Work, at_exit: Callable[[], None], ended: threading.Event) -> None:
    while (item := work.get()) is not None:
        function, future = item
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - it belongs to the caller, who waits for it
            let_go(error)
            future.set_exception(error)
        del function, future, item  # nothing of a call outlives it here
    ended.set()
    _refuse(work)
    at_exit()


def _refuse(work: Work) -> None:
    """Tell whoever waits for something that came too late."""
    while True:
        try:
            item = work.get_nowait()
        except queue.Empty:
            return
        if item is not None:
            item[1].set_exception(Closed("The pipeline is closed. Load the bundle again."))


def _end(work: Work, thread: threading.Thread, process: int, patience: float | None = PATIENCE) -> None:
    if os.getpid() != process:
        return
    work.put(None)
    if thread is not threading.current_thread():
        thread.join(patience)


def let_go(error: BaseException) -> None:
    """Whoever keeps an error must not keep the GPU's memory by its frames. Foreseen errors say all without them."""
    todo, seen = [error], set[int]()
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        traceback.clear_frames(one.__traceback__)
        if isinstance(one, S2FError):
            one.__traceback__ = None
        todo += [other for other in (one.__cause__, one.__context__) if other is not None]
