"""The contest: every arm in a process of its own, one engine alive in each, all in turn, round after round.

A shared machine has fast and slow minutes; arms that take turns meet both alike, so their ratios hold where single
times do not. An arm that cannot be prepared, dies or does not answer is told of and left out; the others go on. A round
in which others used the machine is marked dirty, and more rounds follow while there is time.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.children import Child
from benchmarks.gpu.parts import JSON, Deadline
from benchmarks.peers.arms import REFERENCE
from benchmarks.peers.quality import Images, compare
from benchmarks.peers.task import Task
from benchmarks.peers.worker import arguments_of
from runtime.bench import wait_for_quiet
from runtime.errors import S2FError

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
LOG = "peers.log"
SLOWEST = 240.0  # seconds the preparation of an arm may take: compiling
QUICK = 90.0  # and every other answer
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

Opener = Callable[[str, Task], Child]


@dataclasses.dataclass(frozen=True)
class Counts:
    """`rounds` clean ones of every arm, `most_rounds` at most; `runs` calls or `most` seconds a turn; `retries`: how
    often a dirty turn is taken again in its round; `warm`: seconds before timing; `patience`: seconds a turn may wait
    for others to end, such as the last arm's spinning workers; `seeds`: portraits compared.
    """

    rounds: int = 5
    most_rounds: int = 9
    runs: int = 40
    most: float = 0.6
    retries: int = 2
    warm: float = 0.15
    patience: float = 2.0
    seeds: int = 8


def contest(
    names: Sequence[str],
    task: Task,
    open_arm: Opener,
    *,
    counts: Counts,
    deadline: Deadline,
    tell: Callable[[str], None],
) -> JSON:
    """All arms with one number of threads: arm → {"prepared", "quality", "rounds"}, or with "error" what went wrong."""
    results: dict[str, JSON] = {name: {"rounds": []} for name in names}
    with contextlib.ExitStack() as stack:
        alive: dict[str, Child] = {}
        for name in names:
            tell(f"prepare {name}")
            found = _attempt(results[name], lambda name=name: _ready(name, task, open_arm, stack))
            if found is not None:
                alive[name], results[name]["prepared"] = found
        _judge(alive, results, counts)
        _rounds(alive, results, counts, deadline, tell)
    return results


def open_child(log: Path) -> Opener:
    """Arms as processes of this interpreter, whose standard error goes to a file."""

    def open_arm(name: str, task: Task) -> Child:
        command = [sys.executable, "-m", "benchmarks.peers.worker", *arguments_of(name, task)]
        return Child(command, environment(os.environ, task.cores), log, name)

    return open_arm


def environment(inherited: Mapping[str, str], threads: int) -> dict[str, str]:
    """For an arm: thread pools of so many threads, and this source folder first."""
    path = os.pathsep.join([str(ROOT), *filter(None, [inherited.get("PYTHONPATH", "")])])
    pools = dict.fromkeys(THREAD_VARIABLES, str(threads))
    return {**inherited, **pools, "PYTHONPATH": path, "ORT_DISABLE_TELEMETRY": "1"}


def _ready(name: str, task: Task, open_arm: Opener, stack: contextlib.ExitStack) -> tuple[Child, JSON]:
    child = open_arm(name, task)
    stack.callback(child.close, grace=1.0)
    return child, child.ask({"do": "prepare"}, SLOWEST)


def _judge(alive: dict[str, Child], results: dict[str, JSON], counts: Counts) -> None:
    """Portraits of the same seeds from every arm, against those of REFERENCE where it is there."""
    seeds = list(range(counts.seeds))
    drawn: dict[str, Images] = {}
    for name, child in list(alive.items()):
        wait_for_quiet(time.monotonic() + counts.patience)
        answer = _attempt(results[name], lambda child=child: child.ask({"do": "draw", "seeds": seeds}, SLOWEST))
        if answer is None:
            del alive[name]
        else:
            drawn[name] = np.frombuffer(base64.b64decode(answer["images"]), np.uint8).reshape(answer["shape"])
    for name, images in drawn.items():
        if REFERENCE in drawn and images.shape == drawn[REFERENCE].shape:
            results[name]["quality"] = compare(drawn[REFERENCE], images)


def _rounds(
    alive: dict[str, Child], results: dict[str, JSON], counts: Counts, deadline: Deadline, tell: Callable[[str], None]
) -> None:
    longest = 0.0
    for number in range(counts.most_rounds):
        late = number > 0 and deadline.left < longest
        if not alive or late or all(_clean(results[name]) >= counts.rounds for name in alive):
            return
        tell(f"round {number + 1}")
        begin = time.monotonic()
        arms = list(alive.items())
        first = number % len(arms)  # another begins each time: a host's moods change within a round
        for name, child in [*arms[first:], *arms[:first]]:
            if not _turn(child, results[name], number, counts, deadline):
                del alive[name]
        longest = max(longest, time.monotonic() - begin)


def _turn(child: Child, result: JSON, number: int, counts: Counts, deadline: Deadline) -> bool:
    """One arm's part of a round, again where others disturbed it; whether the arm is still there."""
    request = {"do": "measure", "warm": counts.warm, "runs": counts.runs, "most": counts.most}
    for _ in range(1 + counts.retries):
        wait_for_quiet(time.monotonic() + min(counts.patience, deadline.left))
        answer = _attempt(result, lambda: child.ask(request, QUICK))
        if answer is None:
            return False
        result["rounds"].append({"round": number, **answer})
        if not answer["conditions"]["dirty"]:
            break
    return True


def _clean(result: JSON) -> int:
    return sum(not one["conditions"]["dirty"] for one in result["rounds"])


def _attempt(result: JSON, work: Callable[[], Any]) -> Any:
    """What `work` returns; None where it fails, and the arm's result says why."""
    try:
        return work()
    except S2FError as error:
        logger.warning("%s", error)
        result["error"] = str(error)
        return None
