"""Results on disk: one JSON file per piece, written whole after every unit of work, so that a kill loses one unit.

A file says what was measured, where, and how far it came: `state` is running (or was killed; `doing` says at what),
done, stopped (the time ran out), failed or skipped (`error` says why). A later run of the same piece goes on from it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bench import statistics, to_json
from runtime.errors import InvalidArgument, OutputUnwritable
from runtime.output import write_file

logger = logging.getLogger(__name__)

JSON = dict[str, Any]

SCHEMA_VERSION = 1
KIND = "s2f-gpu"


class OutOfTime(Exception):  # noqa: N818 - says what happened
    """The time given is over, or too short for what comes next; the message says for what."""


class NotHere(Exception):  # noqa: N818 - says what happened
    """What a piece measures does not exist on this machine or in this interpreter; the message says what is missing."""


@dataclasses.dataclass(frozen=True)
class Deadline:
    """When to stop: `seconds` from now on; None never."""

    seconds: float | None
    begin: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds left, infinite without a limit."""
        return math.inf if self.seconds is None else self.seconds - (time.monotonic() - self.begin)

    def need(self, seconds: float, what: str) -> None:
        """Raise OutOfTime unless there are so many seconds left for `what`."""
        if self.left < seconds:
            raise OutOfTime(f"{max(self.left, 0):.0f} s are left, {what} needs about {seconds:.0f} s")


class Part:
    """The results of one piece, `results`: group → key → value, and the file they lie in."""

    def __init__(self, folder: Path, piece: str, about: JSON) -> None:
        """`about`: what the results depend on; `about["place"]` and `about["bundle"]` must be those of the file there.

        Raises InvalidArgument where the file holds other results, OutputUnwritable.
        """
        self.path = folder / f"{piece}.json"
        self._begin = time.monotonic()
        found = read_part(self.path)
        if found is not None and any(found.get(name) != about.get(name) for name in ("place", "bundle")):
            raise InvalidArgument(
                f"{self.path} holds results of another GPU, driver or bundle. Choose another folder with --out"
            )
        self.data: JSON = {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND,
            "piece": piece,
            "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "state": "running",
            "doing": None,
            "error": None,
            "seconds": 0.0,
            **about,
            "log": [],
            "results": {} if found is None else found["results"],
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputUnwritable(
                f"{folder} cannot be made: {error.strerror or error}. Choose another --out"
            ) from error
        self.save()

    @property
    def results(self) -> JSON:
        """Group → key → value."""
        return self.data["results"]  # type: ignore[no-any-return]

    def put(self, group: str, key: str, value: Any) -> None:
        """Keep a value and save."""
        self.results.setdefault(group, {})[key] = value
        self.save()

    def attempt(self, group: str, key: str, work: Callable[[], Any], *, keep: bool = True) -> Any:
        """Keep what `work` returns, or {"error": …} if it fails; then None is returned and the piece goes on.

        What has no value (None) is not kept, nor is anything but an error with `keep` False. OutOfTime passes through.
        """
        self.data["doing"] = f"{group}: {key}"
        self.save()
        try:
            value = work()
        except OutOfTime:
            raise
        except Exception as error:
            logger.exception("%s: %s", group, key)
            self.put(group, key, {"error": describe(error)})
            return None
        if keep and value is not None:
            self.put(group, key, value)
        return value

    def end(self, state: str, error: str | None = None) -> None:
        """Say how it ended. After "done" nothing is being done any more; otherwise `doing` stays."""
        self.data["state"], self.data["error"] = state, error
        if state == "done":
            self.data["doing"] = None
        self.save()

    def save(self) -> None:
        """Write the file, whole. Raises OutputUnwritable."""
        self.data["seconds"] = round(time.monotonic() - self._begin, 1)
        write_file(self.path, to_text(self.data).encode())


@contextlib.contextmanager
def collected(lines: list[str] | None = None) -> Iterator[list[str]]:
    """A list of the warnings and errors that anything logs meanwhile, each once."""
    handler = _Collector([] if lines is None else lines)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield handler.lines
    finally:
        root.removeHandler(handler)


class _Collector(logging.Handler):
    """Puts what is logged into a list."""

    LIMIT = 100

    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == __name__:  # of a unit that failed: its result says so
            return
        line = f"{record.name}: {record.getMessage()}"[:500]
        if line not in self.lines and len(self.lines) < self.LIMIT:
            self.lines.append(line)


def run_part(part: Part, work: Callable[[Part], None]) -> str:
    """Do a piece's work and write down how it ended; returns the state. Passes on only what ends the process."""
    with collected(part.data["log"]):
        try:
            work(part)
        except OutOfTime as reason:
            part.end("stopped", str(reason))
        except NotHere as reason:
            part.end("skipped", str(reason))
        except Exception as error:
            logger.exception("%s", part.path.stem)
            part.end("failed", describe(error))
        except BaseException as error:
            part.end("failed", describe(error))
            raise
        else:
            part.end("done")
    return str(part.data["state"])


def read_part(path: Path) -> JSON | None:
    """A piece's file, None where there is none. Raises InvalidArgument for a file of something else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"{path} cannot be read: {error}. Remove it, or choose another --out") from None
    if not isinstance(data, dict) or (data.get("kind"), data.get("schema_version")) != (KIND, SCHEMA_VERSION):
        raise InvalidArgument(f"{path} is no result of this benchmark. Remove it, or choose another --out")
    return data


def read_parts(folder: Path) -> dict[str, JSON]:
    """All pieces' files of a folder by piece. Raises InvalidArgument."""
    found = {path.stem: read_part(path) for path in sorted(folder.glob("*.json"))}
    return {name: data for name, data in found.items() if data is not None}


def describe(error: BaseException) -> str:
    """One line of at most 600 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:600]


def to_text(data: JSON) -> str:
    """JSON with lists of numbers on one line; NaN and infinity, which JSON has not, become null."""
    return to_json(plain(data))


def plain(value: Any) -> Any:
    """The same in Python's own types, with None for what is no number."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def timed(values: list[float]) -> JSON:
    """What is kept of measured milliseconds: p50, p90, p99, mean, min, max, count, and the values to 0.1 µs."""
    return {**statistics(values), "raw": [round(value, 4) for value in values]}
