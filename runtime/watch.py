"""Who watches a call: told of its progress, able to cancel it, and with a limit to its time. All between two steps."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .errors import Cancelled, InvalidArgument, TimedOut

Progress = Callable[[int, int], object]

ending = threading.Event()
"""Set when the process ends: what runs is given up between two steps, and nothing begins."""


class Watch:
    """Called with (steps done, steps in all) by whatever runs; raises Cancelled or TimedOut to end it."""

    def __init__(self, progress: Progress | None = None, timeout: Any = None) -> None:
        """`progress`: called with the same two numbers; a true answer cancels. `timeout`: seconds, None for no limit.

        Raises InvalidArgument for a timeout that is no positive number.
        """
        self._progress, self._deadline = progress, math.inf
        if timeout is not None:
            if isinstance(timeout, (bool, str, bytes)) or not isinstance(timeout, (int, float)) or not timeout > 0:
                raise InvalidArgument(f"timeout must be a number of seconds above 0, not {timeout!r:.40}.")
            self._deadline = time.monotonic() + float(timeout)

    def __call__(self, done: int, total: int) -> None:
        """Raises Cancelled, TimedOut, and whatever the progress function raises."""
        if ending.is_set():
            raise Cancelled("The process is ending. Nothing was drawn.")
        if self._progress is not None and self._progress(done, total):
            raise Cancelled(f"Cancelled by the caller after {done} of {total} steps. Nothing was drawn.")
        if time.monotonic() > self._deadline:
            raise TimedOut(
                f"The time was up after {done} of {total} steps. Nothing was drawn. Give more time, or fewer steps."
            )

    @contextmanager
    def turn(self, lock: threading.Lock) -> Iterator[None]:
        """Hold the lock, within the time there is. Raises TimedOut, also where none is left to begin with."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimedOut("The time was up before anything was drawn. Give more time, or shorter recordings.")
        if not lock.acquire(timeout=-1 if math.isinf(left) else left):
            raise TimedOut("The time was up while another call used the pipeline. Give more time, or load it twice.")
        try:
            yield
        finally:
            lock.release()
