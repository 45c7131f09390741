"""The owner thread: one thread for everything, errors to whoever waits, an end that cleans up, no hang after a fork."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.errors import BackendFailed, Closed
from runtime.owner import Owner, _end, let_go

ROOT = Path(__file__).parent.parent


@pytest.fixture
def ended() -> list[str]:
    return []


@pytest.fixture
def owner(ended: list[str]) -> Iterator[Owner]:
    made = Owner("test", lambda: ended.append(threading.current_thread().name))
    yield made
    made.close()


def test_all_calls_run_in_one_other_thread(owner: Owner) -> None:
    names: list[int] = []

    def caller() -> None:
        names.append(owner.call(threading.get_ident))

    threads = [threading.Thread(target=caller) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names)) == 1
    assert names[0] != threading.get_ident()
    assert len(names) == 8


def test_arguments_results_and_errors(owner: Owner) -> None:
    assert owner.call(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        owner.call(divmod, 1, 0)
    with pytest.raises(KeyboardInterrupt):
        owner.call(interrupt)
    assert owner.call(len, "still there") == 11


def interrupt() -> None:
    raise KeyboardInterrupt


class Thing:
    """Something whose end can be seen."""


def test_an_error_keeps_nothing_of_the_call_alive(owner: Owner) -> None:
    seen: list[weakref.ref[Thing]] = []

    def fails() -> None:
        thing = Thing()
        seen.append(weakref.ref(thing))
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        owner.call(fails)
    assert seen[0]() is None


def test_the_end(owner: Owner, ended: list[str]) -> None:
    owner.close()
    owner.close()
    assert ended == ["test"]
    with pytest.raises(Closed):
        owner.call(len, "")


def test_a_process_that_forgets_to_close_ends_in_order() -> None:
    code = """
import sys
from runtime.owner import Owner
owner = Owner("forgotten", lambda: sys.stdout.write("given back"))
owner.call(len, "")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "given back", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_told_instead_of_hanging(owner: Owner) -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            owner.call(len, "")
        except BackendFailed as error:
            status = 0 if "forked" in str(error) else 2
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert owner.call(len, "parent") == 6


def test_what_comes_too_late_is_refused_and_never_waits(owner: Owner) -> None:
    _end(owner._work, owner._thread, os.getpid())  # as the garbage collector or the end of the process does it
    with pytest.raises(Closed):
        owner.call(len, "")


def test_a_call_after_the_end_of_the_process_began() -> None:
    code = """
import atexit, sys
def late():
    try:
        owner.call(len, "")
    except Exception as error:
        sys.stdout.write(type(error).__name__)
atexit.register(late)
from runtime.owner import Owner
owner = Owner("late", lambda: None)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "Closed")


def test_an_owner_nobody_holds_ends(ended: list[str]) -> None:
    made = Owner("dropped", lambda: ended.append("given back"))
    made.call(len, "")
    del made
    gc.collect()
    assert ended == ["given back"]


def test_errors_in_a_ring_are_let_go() -> None:
    one, other = ValueError("one"), KeyError("other")
    one.__cause__, other.__cause__ = other, one
    let_go(one)
