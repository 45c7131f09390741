"""A second interpreter that measures on the same card: a child process that takes requests (`benchmarks.children`).

It lives as long as the comparison. Requests and answers:

    {"do": "hello"}                              {"ways": [names], "missing": {family: reason}, "versions": {…}}
    {"do": "probe"}                              what the card reaches, by PyTorch
    {"do": "prepare", "way": name}               what `Way.prepare` tells
    {"do": "measure", "way": name, "runs": n, "warm": s, "most": s}    {"ms": […]}
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks import children
from benchmarks.gpu.arms import Way, here
from benchmarks.gpu.parts import JSON, collected
from benchmarks.gpu.plan import Job, warm_up
from runtime.bench import stopwatch
from runtime.doctor import package_versions
from runtime.errors import BackendFailed

SCRIPT = Path(__file__).with_name("run.py")
LOG = "worker.log"


class Local:
    """The ways of this interpreter, by requests."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._makers, self._missing = here(job)
        self._ways: dict[str, Way] = {}
        self._seed = 0

    def ask(self, request: JSON, seconds: float | None = None) -> JSON:
        """The answer to a request; `seconds` is what a child process is given. Raises whatever the way raises."""
        if request["do"] == "hello":
            return {"ways": list(self._makers), "missing": self._missing, "versions": versions()}
        if request["do"] == "probe":
            from benchmarks.gpu.torch_baseline import probe

            return probe(self._job.torch_device)
        name = request["way"]
        if request["do"] == "prepare":
            if name not in self._makers:
                raise BackendFailed(f"this interpreter has no way {name!r}")
            self._ways[name] = self._makers[name]()
            with collected() as log:
                return {**self._ways[name].prepare(), "log": log}
        way = self._ways[name]
        warm_up(lambda: self._draw(way), request["warm"])
        return {"ms": stopwatch(lambda: self._draw(way), request["runs"], request["most"])}

    def _draw(self, way: Way) -> None:
        self._seed += 1
        way.draw(self._seed)

    def close(self) -> None:
        """Close all ways."""
        for way in self._ways.values():
            way.close()
        self._ways.clear()


def versions() -> dict[str, str | None]:
    """Of this interpreter and what it measures with."""
    from importlib import metadata

    found: dict[str, str | None] = {"python": sys.version.split()[0], **package_versions()}
    for name in ("torch", "triton", "diffusers"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def serve(job: Job) -> int:
    """Answer requests from standard input until it ends."""
    local = Local(job)
    children.serve(local.ask)
    local.close()
    return 0


class Remote(children.Child):
    """The ways of another interpreter. Close it."""

    def __init__(self, job: Job, python: Path) -> None:
        """Starts the child. Raises BackendFailed where that is impossible."""
        command = [str(python), str(SCRIPT), "serve", *arguments_of(job)]
        super().__init__(command, foreign(os.environ, job.torch_path), job.out / LOG, "the other interpreter")


def arguments_of(job: Job) -> list[str]:
    """What a child must be told to see the same job."""
    words = ["--out", str(job.out), "--network", job.network, "--torch-device", job.torch_device]
    words += [] if job.bundle_path is None else ["--bundle", str(job.bundle_path)]
    words += [] if job.speech is None else ["--speech", str(job.speech)]
    wanted = job.wanted
    words += ["--steps", ",".join(map(str, wanted.steps)), "--precisions", ",".join(wanted.precisions)]
    return words


def foreign(environment: Mapping[str, str], path: str) -> dict[str, str]:
    """The environment for another interpreter: `path` is its PYTHONPATH, whatever this one's is.

    A packed interpreter finds its home, packages and libraries by PYTHONHOME, PYTHONPATH and LD_LIBRARY_PATH. Another
    must see none of them; what else is in LD_LIBRARY_PATH may be the driver's.
    """
    home = environment.get("PYTHONHOME")
    kit = str(Path(home).resolve().parent) if home else None
    found = {name: value for name, value in environment.items() if name not in ("PYTHONHOME", "PYTHONPATH")}
    if path:
        found["PYTHONPATH"] = path
    libraries = found.pop("LD_LIBRARY_PATH", "").split(os.pathsep)
    kept = [entry for entry in libraries if entry and not _below(entry, kit)]
    return {**found, "LD_LIBRARY_PATH": os.pathsep.join(kept)} if kept else found


def _below(entry: str, kit: str | None) -> bool:
    place = Path(entry).resolve()
    return kit is not None and Path(kit) in (place, *place.parents)
