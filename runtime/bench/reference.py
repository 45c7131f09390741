"""A fixed piece of work beside what is measured: how fast the machine itself is at the moment.

In a guest of a shared host two virtual CPUs may land on one physical core for a while. No counter of the guest tells,
but everything with two threads then takes a third longer. So as many threads as the measured work has multiply small
matrices at once. Only blocks in which that took about as long are compared with each other (`core.same_pace`).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import numpy as np

NAME = "reference"
TIMES, COUNT, SIZE = 20, 40, 64
"""How often, how many matrices and their side: so small that numpy's BLAS brings no threads of its own, and that all
lie in a core's cache."""


class Reference:
    """Call it to do the work once on every thread. Close it by `with`."""

    def __init__(self, threads: int) -> None:
        rng = np.random.default_rng(0)
        shape = (COUNT, SIZE, SIZE)
        self._factors = [rng.standard_normal(shape, dtype=np.float32) for _ in range(threads)]
        self._products = [np.empty(shape, np.float32) for _ in range(threads)]
        self._pool = ThreadPoolExecutor(threads)

    def __call__(self, _: int = 0) -> None:
        list(self._pool.map(self._multiply, range(len(self._factors))))

    def _multiply(self, thread: int) -> None:
        factors, products = self._factors[thread], self._products[thread]
        for _ in range(TIMES):
            np.matmul(factors, factors, out=products)

    def __enter__(self) -> Reference:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
