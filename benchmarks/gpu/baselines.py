"""Piece "baselines": TensorRT beside PyTorch and ONNX Runtime, in one run on one card, round after round in turn.

Every way draws the same voice with new seeds, batch 1, the default number of steps, from PCM in host memory to uint8 in
host memory. Networks of PyTorch have random weights of the same shapes.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any, TypeAlias

from benchmarks.gpu.parts import JSON, NotHere, Part, timed
from benchmarks.gpu.plan import Job
from benchmarks.gpu.worker import Local, Remote

WAYS, ROUNDS, OTHERS = "ways", "rounds", "interpreters"
LEAST = 3.0  # seconds without which no round is begun
MOST = 2.0  # what one way may take in one round; slow ones are called less often
RESERVED = 60.0  # kept for the rounds while something is prepared
SLOWEST = 420.0  # what the preparation of one way may take
QUICK = 120.0  # and every other answer

Asked: TypeAlias = "Local | Remote"


def measure(job: Job, part: Part) -> None:
    """Prepare every way, the quick ones first; then measure in turn. What cannot be prepared is told and left out."""
    with contextlib.ExitStack() as stack:
        ready = _prepare(job, part, _owners(job, part, stack))
        raw: dict[str, list[list[float]]] = {name: [] for name in ready}
        for number in range(job.counts.rounds):
            for name, owner in ready.items():
                job.deadline.need(LEAST, f"round {number + 1}")
                work = functools.partial(_round, job, owner, name)
                spent = part.attempt(ROUNDS, f"{name}, {number + 1}", work, keep=False)
                if spent is not None:
                    raw[name].append(spent["ms"])
                    part.put(WAYS, name, {**part.results[WAYS][name], **summary(raw[name])})


def _owners(job: Job, part: Part, stack: contextlib.ExitStack) -> dict[str, Asked]:
    """Way → the interpreter that has it: this one, or else the other."""
    found: dict[str, Asked] = {}
    local = Local(job)
    stack.callback(local.close)
    asked: dict[str, Asked] = {"this": local}
    if job.torch_python is not None:
        remote = Remote(job, job.torch_python)
        stack.callback(remote.close)
        asked["other"] = remote
    for name, interpreter in asked.items():
        hello = part.attempt(OTHERS, name, functools.partial(interpreter.ask, {"do": "hello"}, QUICK))
        ways = [] if hello is None else hello["ways"]
        found = {**dict.fromkeys(ways, interpreter), **found}
        if any(way.startswith("torch") for way in ways):
            part.attempt("card", "matrix", functools.partial(interpreter.ask, {"do": "probe"}, QUICK))
    if not found:
        raise NotHere("Nothing here can be compared: no engines, no PyTorch with a GPU, no onnxruntime-gpu")
    return found


def _prepare(job: Job, part: Part, owners: dict[str, Asked]) -> dict[str, Asked]:
    """Those that work. Compiling comes last: what outlasts its time ends with its interpreter, which starts anew."""
    ready: dict[str, Asked] = {}
    for name in sorted(owners, key=lambda name: "compile" in name):
        job.deadline.need(RESERVED + LEAST, f"preparing {name}")
        owner, allowed = owners[name], min(SLOWEST, job.deadline.left - RESERVED)
        if part.attempt(WAYS, name, functools.partial(owner.ask, {"do": "prepare", "way": name}, allowed)) is not None:
            ready[name] = owner
        elif isinstance(owner, Remote) and not owner.alive:
            owner.restart()
            for lost in [other for other, its in ready.items() if its is owner]:
                owner.ask({"do": "prepare", "way": lost}, QUICK)
    return ready


def _round(job: Job, owner: Asked, name: str) -> JSON:
    request = {"do": "measure", "way": name, "runs": job.counts.runs_of(headline=True)}
    return owner.ask({**request, "warm": job.counts.warm, "most": MOST}, QUICK)


def summary(rounds: list[list[float]]) -> JSON:
    """All rounds together, and the median of each."""
    together = [value for values in rounds for value in values]
    return {"ms": timed(together), "p50_of_rounds": [timed(values)["p50"] for values in rounds]}


def speedups(ways: JSON, ours: str) -> dict[str, Any]:
    """How many times faster `ours` is than every other way, by medians; and the least and most over the rounds."""
    if "ms" not in ways.get(ours, {}):
        return {}
    mine = ways[ours]
    found = {}
    for name, other in ways.items():
        if name != ours and "ms" in other:
            ratios = [b / a for a, b in zip(mine["p50_of_rounds"], other["p50_of_rounds"], strict=False)]
            found[name] = {
                "times": round(other["ms"]["p50"] / mine["ms"]["p50"], 3),
                "least": round(min(ratios), 3),
                "most": round(max(ratios), 3),
            }
    return found
