"""A second interpreter that measures on the same card: a child process that takes requests as lines of JSON.

It lives as long as the comparison, because what it prepares (compiling) may take minutes; while it waits for a request
it uses neither processor nor GPU. Requests and answers:

    {"do": "hello"}                              {"ways": [names], "missing": {family: reason}, "versions": {…}}
    {"do": "probe"}                              what the card reaches, by PyTorch
    {"do": "prepare", "way": name}               what `Way.prepare` tells
    {"do": "measure", "way": name, "runs": n, "warm": s, "most": s}    {"ms": […]}

An answer with "error" says what went wrong.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

from benchmarks.gpu.arms import Way, here
from benchmarks.gpu.parts import JSON, collected, describe, plain
from benchmarks.gpu.plan import Job, warm_up
from runtime.bench import stopwatch
from runtime.doctor import package_versions
from runtime.errors import BackendFailed

logger = logging.getLogger(__name__)

SCRIPT = Path(__file__).with_name("run.py")
LOG = "worker.log"
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
GRACE = 10.0


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
    """Answer requests from standard input until it ends. What libraries print goes to standard error."""
    _end_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    local = Local(job)
    for line in sys.stdin:
        try:
            answer = local.ask(json.loads(line))
        except Exception as error:
            logger.exception("%s", line.strip())
            answer = {"error": describe(error)}
        answers.write(json.dumps(plain(answer)) + "\n")
        answers.flush()
    local.close()
    return 0


def _end_with_parent() -> None:
    """Where Linux can: a parent that is killed takes this process with it, also in the middle of a compilation."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Remote:
    """The ways of another interpreter. Close it."""

    def __init__(self, job: Job, python: Path) -> None:
        """Starts the child. Raises BackendFailed where that is impossible."""
        self._command = [str(python), str(SCRIPT), "serve", *arguments_of(job)]
        self._environment = foreign(os.environ, job.torch_path)
        self._log = job.out / LOG
        self._start()

    def ask(self, request: JSON, seconds: float | None = None) -> JSON:
        """The answer to a request, within so many seconds. Raises BackendFailed; after a time-out the child is dead."""
        try:
            self._requests.write(json.dumps(request) + "\n")
            self._requests.flush()
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            self.close(grace=0)
            raise BackendFailed(f"no answer to {request} in {seconds:.0f} s; the other interpreter was ended") from None
        except (OSError, ValueError):  # a broken or closed pipe
            line = ""
        if not line:
            raise BackendFailed(f"the other interpreter ended at {request}; {LOG} beside the results says why")
        answer: Any = json.loads(line)
        if "error" in answer:
            raise BackendFailed(str(answer["error"]))
        return dict(answer)

    @property
    def alive(self) -> bool:
        """Whether the child still runs."""
        return self._process.poll() is None

    def restart(self) -> None:
        """Begin anew with another child, in which nothing is prepared."""
        self.close(grace=0)
        self._start()

    def close(self, grace: float = GRACE) -> None:
        """End the child and what it started; closing twice is harmless."""
        with contextlib.suppress(OSError):
            self._requests.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # its session, whose leader may be gone while others are not
        self._process.wait()

    def _start(self) -> None:
        try:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=self._environment,
                    text=True,
                    encoding="utf-8",
                    start_new_session=True,  # compilers start processes of their own, which must end with it
                )
        except OSError as error:
            raise BackendFailed(f"{self._command[0]} cannot be started: {error.strerror or error}") from error
        self._requests = cast("IO[str]", self._process.stdin)
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_read, args=(self._process.stdout, self._answers), daemon=True).start()


def _read(stream: IO[str], answers: queue.Queue[str]) -> None:
    for line in stream:
        answers.put(line)
    answers.put("")  # the end


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
