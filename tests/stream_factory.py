"""What the tests of streams share: speech, waiting, a gate that is open and a device that is slow."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import numpy.typing as npt
import pytest
from tiny_bundle import SHORTCUT, write_tiny_bundle

from export.adaptor import BuildOptions
from export.engines import Request, build
from runtime import Pipeline, Portrait, Stream
from runtime.backends import Settings
from runtime.bench import synthetic_speech
from runtime.bundle import read_bundle
from runtime.cache import Cache
from runtime.executor import Clock, Work

RATE = 16000
Sound = npt.NDArray[Any]


@contextlib.contextmanager
def open_on(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    """A tiny bundle, open on a device; tensorrt is a fake."""
    bundle = read_bundle(write_tiny_bundle(tmp_path / "tiny", arm=SHORTCUT))
    if device == "tensorrt":
        monkeypatch.setenv("S2F_CACHE", str(tmp_path / "cache"))
        fakes.install(monkeypatch, "10.3")
        build(bundle, Request((1,), (), "fp32", BuildOptions()), Cache.default(), lambda _: None)
    with Pipeline(bundle, Settings(device, 1)) as opened:
        yield opened


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "s2f-stream"]


def speech(seconds: float, rate: int = RATE, seed: int = 0) -> Sound:
    return synthetic_speech(rate, seconds, seed)


def until(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What `condition` gives, once it is something."""
    for _ in range(round(seconds / 0.002)):
        found = condition()
        if found is not None and found is not False:
            return found
        time.sleep(0.002)
    pytest.fail("waited in vain")


def run(stream: Stream, sound: Sound, size: int) -> dict[float, Portrait]:
    """Push in pieces of `size` frames, slowly enough for every portrait that is due: by seconds of speech."""
    found: dict[float, Portrait] = {}
    due = 1.0
    for start in range(0, len(sound), size):
        stream.push(sound[start : start + size])
        while stream.speech_seconds >= due:
            if stream.speech_seconds < 2 * due:
                portrait = until(stream.poll)
                found[stream.portrait_seconds] = portrait
            due *= 2
    return found


def same(one: Portrait, other: Portrait) -> bool:
    return bool(np.array_equal(one.image, other.image))


class Everything:
    """A detector to which all is speech, for tests in which the gate does not matter."""

    piece, needed, among = 320, 1, 1

    def hears(self, piece: Any) -> bool:
        return True


class Block:
    """Makes an executor's `paint` wait until it is let go, as a slow device does."""

    def __init__(self, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inside, self.leave = threading.Event(), threading.Event()
        executor: Any = pipeline._executor
        paint = executor.paint

        def slow(work: Work, clock: Clock) -> Any:
            self.inside.set()
            while not self.leave.wait(0.005):
                work.watch(0, 1)
            return paint(work, clock)

        monkeypatch.setattr(executor, "paint", slow)
