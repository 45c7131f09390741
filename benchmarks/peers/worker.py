"""One arm in a process of its own (`benchmarks.children`). Requests and answers:

{"do": "prepare"}                                      what `Peer.prepare` tells, with versions
{"do": "draw", "seeds": [n, …]}                        {"images": base64 of uint8, "shape": [seeds, H, W, 3]}
{"do": "measure", "warm": s, "runs": n, "most": s}     {"ms": […], "conditions": {…}}: how quiet it was
"""

from __future__ import annotations

import argparse
import base64
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import children
from benchmarks.gpu.parts import JSON
from benchmarks.gpu.plan import warm_up
from benchmarks.gpu.worker import versions
from benchmarks.peers.arms import arms
from benchmarks.peers.task import Peer, Task
from runtime.bench import between, snapshot, stopwatch
from runtime.machine import load_average


class Answers:
    """An arm, by requests."""

    def __init__(self, peer: Peer) -> None:
        self._peer, self._seed = peer, 0

    def __call__(self, request: JSON) -> JSON:
        """The answer to a request. Raises whatever the arm raises."""
        if request["do"] == "prepare":
            about = self._peer.prepare()
            self._draw()
            return {**about, "versions": versions()}
        if request["do"] == "draw":
            images = np.stack([self._peer.draw(seed) for seed in request["seeds"]])
            return {"images": base64.b64encode(images.tobytes()).decode(), "shape": list(images.shape)}
        warm_up(self._draw, request["warm"])
        load, before = load_average(), snapshot()
        spent = stopwatch(self._draw, request["runs"], request["most"])
        conditions = {**between(before, snapshot()), "load_before": load[:1], "load_after": load_average()[:1]}
        return {"ms": [round(value, 4) for value in spent], "conditions": conditions}

    def _draw(self) -> None:
        self._seed += 1
        self._peer.draw(self._seed)


def arguments_of(name: str, task: Task) -> list[str]:
    """What a child must be told."""
    words = [name, "--bundle", str(task.folder), "--network", task.network, "--steps", str(task.steps)]
    return words + ([] if task.threads is None else ["--threads", str(task.threads)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve one arm until standard input ends."""
    parser = argparse.ArgumentParser(description="One arm of the arena, for the arena.")
    parser.add_argument("arm", choices=list(arms()))
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--network", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args(arguments)
    peer = arms()[options.arm].make(Task(options.bundle, options.network, options.steps, options.threads))
    children.serve(Answers(peer))
    peer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
