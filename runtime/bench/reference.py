"""A fixed piece of work beside what is measured: how fast the machine itself is at the moment.

In a guest of a shared host two virtual CPUs may land on one physical core for a while. No counter of the guest tells,
but everything with two threads then takes a third longer. So as many threads as the measured work has take square
roots at once: a core has one unit for those, a single thread keeps it busy, and two on one core take twice as long.
Only blocks in which that took about as long are compared with each other (`core.same_pace`).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import numpy as np

NAME = "reference"
TIMES, COUNT = 60, 2**16
"""How often, and of how many numbers: some milliseconds, out of a core's cache."""


class Reference:
    """Call it to do the work once on every thread. Close it by `with`."""

    def __init__(self, threads: int) -> None:
        self._numbers = [np.linspace(1, 2, COUNT) for _ in range(threads)]
        self._roots = [np.empty(COUNT) for _ in range(threads)]
        self._pool = ThreadPoolExecutor(threads)

    def __call__(self, _: int = 0) -> None:
        list(self._pool.map(self._take_roots, range(len(self._numbers))))

    def _take_roots(self, thread: int) -> None:
        for _ in range(TIMES):
            np.sqrt(self._numbers[thread], out=self._roots[thread])

    def __enter__(self) -> Reference:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
