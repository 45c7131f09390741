"""Work spread over fresh processes, one thread each, with a progress bar; in this process where one is enough.

Each process makes its own worker object once (`make_worker`) and then calls a method of it per item. Results stay in
files; what comes back is only "one more is done", or the first failure.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import Any

from tqdm import tqdm

from runtime.errors import CorpusInvalid

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
QUEUED_PER_PROCESS = 4

Run = Callable[[str, Iterable[Any]], Iterable[None]]
"""`run(method, items)`: call that method of a worker with each item; yields once per finished item."""


@contextmanager
def processes(count: int | None, make_worker: Callable[..., Any], *args: Any) -> Iterator[Run]:
    """A `Run` over `count` processes (None: all cores); 1 works here. `make_worker` and `args` must be picklable."""
    count = count or cores()
    if count == 1:
        worker = make_worker(*args)
        yield lambda method, items: (getattr(worker, method)(item) for item in items)
        return
    with _single_threaded():
        pool = ProcessPoolExecutor(count, get_context("spawn"), _start_process, (make_worker, args))
        try:
            yield lambda method, items: _finished(pool, method, items, QUEUED_PER_PROCESS * count)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def follow(finished: Iterable[None], total: int, title: str, unit: str, *, progress: bool) -> None:
    """Carry it out under a progress bar."""
    for _ in tqdm(finished, title, total, unit=unit, disable=not progress or not total, dynamic_ncols=True):
        pass


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_process: dict[str, Any] = {}  # this process's worker: a pool hands only module-level functions to its processes


def _start_process(make_worker: Callable[..., Any], args: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _process["worker"] = make_worker(*args)


def _end_with_parent() -> None:
    """End this worker process when its builder is gone; a pool's idle processes would outlive a killed builder."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(method: str, item: Any) -> None:
    getattr(_process["worker"], method)(item)


def _finished(pool: ProcessPoolExecutor, method: str, items: Iterable[Any], ahead: int) -> Iterator[None]:
    """Keep `ahead` items in the pool; yield once per finished one; the first failure is raised here.

    Raises CorpusInvalid where a process ended by itself; the pool says so wherever it is touched next.
    """
    pending: set[Future[None]] = set()
    queue = iter(items)
    try:
        while True:
            for item in queue:
                pending.add(pool.submit(_call, method, item))
                if len(pending) >= ahead:
                    break
            if not pending:
                return
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        message = "a worker process ended early, perhaps killed for want of memory; run again, with fewer --workers"
        raise CorpusInvalid(message) from error


@contextmanager
def _single_threaded() -> Iterator[None]:
    """One thread per process: the processes are the parallelism. Fresh processes read these when they import numpy."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
