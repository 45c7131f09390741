"""A child process that measures: it takes requests as lines of JSON on standard input and answers each with a line.

It may live for minutes, because what it prepares (compiling) takes long; while it waits for a request it uses neither
processor nor GPU. An answer with "error" says what went wrong.
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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

from benchmarks.gpu.parts import JSON, describe, plain
from runtime.errors import BackendFailed

logger = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1  # of linux/prctl.h
GRACE = 10.0


def serve(answer: Callable[[JSON], JSON]) -> None:
    """Answer requests from standard input until it ends. What libraries print goes to standard error."""
    end_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            said = answer(json.loads(line))
        except Exception as error:
            logger.exception("%s", line.strip())
            said = {"error": describe(error)}
        answers.write(json.dumps(plain(said)) + "\n")
        answers.flush()


def end_with_parent() -> None:
    """Where Linux can: a parent that is killed takes this process with it, also in the middle of a compilation."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Child:
    """The parent's end. Close it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path, name: str) -> None:
        """`log`: where the child's standard error is added to; `name`: what messages call the child. Starts it.

        Raises BackendFailed where that is impossible.
        """
        self._command, self._environment, self._log, self._name = list(command), dict(environment), log, name
        self._start()

    def ask(self, request: JSON, seconds: float | None = None) -> JSON:
        """The answer to a request, within so many seconds. Raises BackendFailed; after a time-out the child is dead."""
        try:
            self._requests.write(json.dumps(request) + "\n")
            self._requests.flush()
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            self.close(grace=0)
            raise BackendFailed(f"no answer to {request} in {seconds:.0f} s; {self._name} was ended") from None
        except (OSError, ValueError):  # a broken or closed pipe
            line = ""
        if not line:
            raise BackendFailed(f"{self._name} ended at {request}; {self._log.name} beside the results says why")
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
