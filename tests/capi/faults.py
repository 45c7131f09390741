"""Points at which something goes wrong inside Python while libs2f works: installed by faults.c, listed for the test.

Nothing of this is known to the library; the test program reaches into the interpreter.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any
from unittest import mock

from runtime.errors import (
    AudioSilent,
    BackendFailed,
    BackendMissing,
    Cancelled,
    DeviceOutOfMemory,
    InvalidArgument,
    TimedOut,
)


class Mute(Exception):  # noqa: N818 - it is one that cannot tell its name
    """An exception that cannot say what it is."""

    def __str__(self) -> str:
        raise MemoryError


class Alien(BaseException):
    """No Exception, and nothing anybody expects."""


@dataclasses.dataclass(frozen=True)
class Point:
    """Where: `target` raises or returns `effect`. `call`: the call of C that must fail, with `code`."""

    target: str
    effect: Any
    call: str
    code: int


LONG = "long\0 \udcff " + "ä" * 3000

POINTS = {
    "open: no idea": Point("runtime.load", RuntimeError("boom"), "open", 1),
    "open: no memory": Point("runtime.load", MemoryError(), "open", 1),
    "open: interrupted": Point("runtime.load", KeyboardInterrupt(), "open", 1),
    "open: wants to end the process": Point("runtime.load", SystemExit(3), "open", 1),
    "open: a generator ends": Point("runtime.load", GeneratorExit(), "open", 1),
    "open: recursion": Point("runtime.load", RecursionError("deep"), "open", 1),
    "open: no exception": Point("runtime.load", Alien("from elsewhere"), "open", 1),
    "open: cannot be told": Point("runtime.load", Mute(), "open", 1),
    "open: long, with zero and surrogate": Point("runtime.load", InvalidArgument(LONG), "open", 10),
    "open: manifest not allowed": Point("runtime.pipeline.read_bundle", PermissionError(13, "denied"), "open", 1),
    "open: device refuses": Point("runtime.pipeline.open_executor", BackendFailed("no"), "open", 42),
    "open: device full": Point("runtime.pipeline.open_executor", DeviceOutOfMemory("full"), "open", 44),
    "open: graph refused": Point("onnxruntime.InferenceSession", ValueError("corrupt"), "open", 42),
    "open: no memory for the graph": Point("onnxruntime.InferenceSession", MemoryError(), "open", 42),
    "open: package missing": Point("sys.modules[onnxruntime]", None, "open", 40),
    "open: path cannot be read": Point("os.fsdecode", UnicodeError("path"), "open", 1),
    "open: no memory for the handle": Point("runtime.capi.bridge.Handle", MemoryError(), "open", 1),
    "open: no memory for the table": Point("runtime.capi.handles.Table.add", MemoryError(), "open", 1),
    "open: messages cannot be told": Point("runtime.capi.handles.Messages.tell", MemoryError(), "open", 1),
    "open: cannot describe": Point("runtime.capi.handles.Handle.opening", Mute(), "open", 1),
    "info: no memory": Point("runtime.capi.bridge._describe_bundle", MemoryError(), "info", 1),
    "generate: no memory for the speech": Point("runtime.pipeline.load_speech", MemoryError(), "generate", 1),
    "generate: interrupted": Point("runtime.pipeline.load_speech", KeyboardInterrupt(), "generate", 1),
    "generate: wants to end the process": Point("runtime.pipeline.load_speech", SystemExit(), "generate", 1),
    "generate: silence": Point("runtime.pipeline.load_speech", AudioSilent("hush"), "generate", 22),
    "generate: encoder fails": Point("runtime.backends.base.Session.run", BackendFailed("no"), "generate", 42),
    "generate: backend throws": Point("runtime.backends.ort.OrtSession._run", RuntimeError("cuda"), "generate", 1),
    "generate: too few tensors": Point("runtime.backends.ort.OrtSession._run", [[]], "generate", 42),
    "generate: tensors that are none": Point("runtime.backends.ort.OrtSession._run", [["?"]], "generate", 42),
    "generate: no memory for noise": Point("runtime.executor.seeded_noise", MemoryError(), "generate", 1),
    "generate: no memory for the portrait": Point("runtime.pipeline.Portrait", MemoryError(), "generate", 1),
    "generate: no view of the samples": Point("numpy.frombuffer", MemoryError(), "generate", 1),
    "generate: no memory for arrays": Point("numpy.stack", MemoryError(), "generate", 1),
    "generate: progress fails": Point("runtime.capi.handles.Handle.drawing", MemoryError(), "generate", 1),
    "generate: progress ends an iteration": Point(
        "runtime.capi.handles.Handle.drawing", StopIteration(), "generate", 1
    ),
    "generate: cancelled": Point("runtime.watch.Watch.__call__", Cancelled("enough"), "generate", 81),
    "generate: timed out": Point("runtime.watch.Watch.turn", TimedOut("late"), "generate", 82),
    "generate: image cannot be given": Point("runtime.capi.bridge.Bridge._give", MemoryError(), "generate", 1),
    "file: package missing": Point("runtime.audio_source._soundfile", BackendMissing("soundfile"), "file", 40),
    "file: decoder throws": Point("soundfile.SoundFile", RuntimeError("?"), "file", 21),
    "file: no memory": Point("soundfile.SoundFile", MemoryError(), "file", 1),
    "png: package missing": Point("sys.modules[PIL]", None, "png", 40),
    "png: no memory": Point("PIL.Image.fromarray", MemoryError(), "png", 1),
    "png: cannot be marked": Point("runtime.portrait.xmp_packet", InvalidArgument("no"), "png", 10),
    "stream: no memory": Point("runtime.pipeline.Pipeline.stream", MemoryError(), "stream open", 1),
    "stream: no thread": Point("threading.Thread.start", RuntimeError("can't start new thread"), "stream open", 1),
    "stream: push without memory": Point("runtime.stream.Stream.push", MemoryError(), "push", 1),
    "stream: drawing failed": Point("runtime.stream.Stream.poll", BackendFailed("no"), "poll", 42),
    "stream: worker fails": Point("runtime.executor.seeded_noise", RuntimeError("?"), "poll", 1),
    "stream: close interrupted": Point("runtime.stream.Stream.close", KeyboardInterrupt(), "stream close", 1),
    "close: fails": Point("runtime.pipeline.Pipeline.close", RuntimeError("?"), "close", 1),
    "close: wants to end the process": Point("runtime.pipeline.Pipeline.close", SystemExit(1), "close", 1),
}

_installed = contextlib.ExitStack()


def install(name: str) -> None:
    """Let the point fail from now on."""
    point = POINTS[name]
    if point.target.startswith("sys.modules["):
        patch: Any = mock.patch.dict("sys.modules", {point.target[12:-1]: point.effect})
    elif isinstance(point.effect, list):
        patch = mock.patch(point.target, return_value=point.effect[0])
    else:
        patch = mock.patch(point.target, side_effect=point.effect)
    _installed.enter_context(patch)


def remove() -> None:
    """All is well again."""
    _installed.close()
