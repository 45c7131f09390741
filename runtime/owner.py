"""A thread that owns something no other thread may touch, such as a CUDA context: callers hand it work and wait."""

from __future__ import annotations

import atexit
import os
import queue
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from .errors import BackendFailed, Closed

T = TypeVar("T")


class Owner:
    """One daemon thread, one call after the other.

    It lives until `close`, or until the process ends: then what it owns is given back in order, by `at_exit`.
    """

    def __init__(self, name: str, at_exit: Callable[[], None]) -> None:
        """`at_exit`: called in the thread as its last work, however it ends."""
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._at_exit, self._process, self._closed = at_exit, os.getpid(), False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        atexit.register(self.close)

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
            self._work.put((lambda: function(*arguments), future))
        return future.result()

    def close(self) -> None:
        """Finish what was handed over, then end the thread. Closing twice is harmless."""
        with self._lock:
            if self._closed or os.getpid() != self._process:
                return
            self._closed = True
            self._work.put(None)
        self._thread.join()
        atexit.unregister(self.close)

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            work, future = item
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - it belongs to the caller, who waits for it
                traceback.clear_frames(error.__traceback__)  # whoever keeps the error must not keep the GPU's memory
                future.set_exception(error)
            del work, future, item  # nothing of a call outlives it here
        self._at_exit()
