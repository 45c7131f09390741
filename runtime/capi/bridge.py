"""The Python side of libs2f: one function for each that library.c calls. Every exception becomes a code and a text.

C has looked at pointers and structures; all else is checked by the package itself. Numbers of C that are float32 are
taken as the shortest decimal that is that float32: 0.1f is 0.1, so that what a file says of its portrait is what the
command line would have written.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import logging
import math
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

import runtime

from ..errors import BackendMissing, BufferTooSmall, InvalidArgument, S2FError
from ..pipeline import give_up
from .handles import Handle, Messages, Table

UNEXPECTED = 1
MOST_CHANNELS = 256
"""Below the samples of half a second at the lowest rate, so that an array's longer axis is time wherever it matters."""
DEFAULT_RATE = 16000

_CALLS = (
    *("open", "info", "generate", "encode_png", "close", "give_up"),
    *("stream_open", "stream_push", "stream_poll", "stream_info", "stream_finish", "stream_close"),
)
_CALLS_OF_C = ("stay_last", "end")


def start(native: Any, functions: int) -> None:
    """Put the functions below into the table of bridge.h at an address. `native`: the module cffi has made of bridge.h.

    Raises ImportError if they are not the same functions.
    """
    table = native.ffi.cast("bridge_functions *", functions)
    if set(dir(table[0])) != {*_CALLS, *_CALLS_OF_C}:
        raise ImportError("libs2f was built from another state of s2f-edge")
    bridge = Bridge(native.ffi, table.stay_last)
    for name in _CALLS:
        function = _guarded(native.ffi, getattr(bridge, name), native.lib.BRIDGE_MESSAGE_BYTES)
        native.ffi.def_extern(name=f"bridge_{name}", error=UNEXPECTED, onerror=lambda *_: None)(function)
        setattr(table, name, getattr(native.lib, f"bridge_{name}"))
    atexit.register(table.end)  # a program may end its own Python before itself


def describe(error: BaseException) -> tuple[int, str]:
    """The code and the text of any exception."""
    if isinstance(error, S2FError):
        return error.code, str(error)
    if isinstance(error, ModuleNotFoundError):
        name = (error.name or str(error)).partition(".")[0]
        return BackendMissing.code, f"The package {name} is not installed. Run: {sys.executable} -m pip install {name}"
    return UNEXPECTED, f"unexpected {type(error).__name__}: {error}"


def _guarded(ffi: Any, function: Callable[..., None], room: int) -> Callable[..., int]:
    """The function with a message buffer of `room` bytes as its last argument; returns a code and never raises."""

    @functools.wraps(function)
    def call(*arguments: Any) -> int:
        try:
            function(*arguments[:-1])
        except BaseException as error:  # noqa: BLE001 - nothing passes into C
            try:
                code, text = describe(error)
                data = text.replace("\0", " ").encode("utf-8", "backslashreplace")[: room - 1]
                data = data.decode("utf-8", "ignore").encode()  # no character is cut in two
                ffi.memmove(arguments[-1], data + b"\0", len(data) + 1)
            except BaseException:  # noqa: BLE001 - an exception that cannot be told; C has a text for the code
                return UNEXPECTED
            return code
        return 0

    return call


@dataclasses.dataclass(frozen=True)
class Feed:
    """A stream, and how what is pushed into it is laid out."""

    stream: Any
    channels: int

    def close(self) -> None:
        """End the stream."""
        self.stream.close()


class Bridge:
    """The functions of bridge.h, without their last argument, and what their handles stand for."""

    def __init__(self, ffi: Any, stay_last: Callable[[], None]) -> None:
        self._ffi, self._stay_last = ffi, stay_last
        self._pipelines, self._streams = Table("pipeline"), Table("stream")
        self._used_devices: set[str] = set()

    def open(self, bundle: Any, options: Any, number: Any) -> None:
        """`runtime.load`."""
        handle = Handle(self._pipelines)
        with handle.opening():
            handle.messages = self._messages(options)
            handle.target = runtime.load(
                self._path(bundle),
                device=self._text(options.device) or "auto",
                threads=options.threads or None,
                precision=self._text(options.precision) or "auto",
            )
            self._use_device(handle.target)
            number[0] = handle.admit()

    def info(self, number: int, result: Any) -> None:
        """Size and defaults."""
        handle = self._pipelines.get(number)
        with handle.use():
            _describe_bundle(result, handle.target, 1)

    def generate(self, number: int, speech: Any, request: Any, room: Any, results: Any) -> None:
        """`Pipeline.generate`, or the size of what it would draw."""
        handle = self._pipelines.get(number)
        with handle.use():
            for i in range(speech.count):
                _describe_bundle(results[i], handle.target, speech.count)
            if not room.bytes:
                return
            _check_room(room, results[0].bytes_needed)
            handle.check_not_drawing()
            portraits = handle.target.generate(
                self._speeches(speech),
                steps=request.steps or None,
                seed=[request.seed + i for i in range(speech.count)],
                guidance=_number(request.guidance),
                prior_weight=_number(request.prior_weight),
                window=self._text(request.window) or "start",
                progress=self._progress(handle, request),
                timeout=request.timeout_ms / 1000 or None,
            )
            for i, portrait in enumerate(portraits):
                self._give(portrait, room.bytes + i * portrait.image.size, results[i])

    def encode_png(self, number: int, image: Any, result: Any, room: Any, needed: Any) -> None:
        """`Portrait.encode`."""
        handle = self._pipelines.get(number)
        with handle.use():
            pipeline = handle.target
            size = pipeline.manifest.image
            if (result.width, result.height) != (size.width, size.height):
                raise InvalidArgument(
                    f"The result is of {result.width} x {result.height} pixels, the bundle draws {size.width} x "
                    f"{size.height}. Give the result of the call that drew the image."
                )
            pixels = np.frombuffer(self._ffi.buffer(image, size.width * size.height * 3), np.uint8)
            data = runtime.Portrait(
                pixels.reshape(size.height, size.width, 3),
                result.seed,
                result.steps,
                float(str(np.float32(result.guidance))),
                float(str(np.float32(result.prior_weight))),
                runtime.Timings(result.audio_ms, None, (), None, result.graphs_ms, result.total_ms),
                pipeline.manifest.name,
                pipeline.identity,
            ).encode("png")
            needed[0] = len(data)
            if room.bytes:
                _check_room(room, len(data))
                self._ffi.memmove(room.bytes, data, len(data))

    def close(self, number: int) -> None:
        """`Pipeline.close`, its streams before."""
        self._pipelines.get(number).close()

    def give_up(self, thread: int) -> None:
        """`runtime.pipeline.give_up`."""
        give_up(thread)

    def stream_open(self, number: int, options: Any, stream: Any) -> None:
        """`Pipeline.stream`."""
        parent = self._pipelines.get(number)
        handle = Handle(self._streams, parent)
        channels = options.channels or 1
        limits = {"max_backlog": options.max_backlog_s} if options.max_backlog_s else {}
        detector = {"vad": self._path(options.vad)} if options.vad else {}
        with handle.opening():
            made = parent.target.stream(
                sample_rate=options.sample_rate or DEFAULT_RATE,
                channels=channels,
                seed=options.seed,
                steps=options.steps or None,
                guidance=_number(options.guidance),
                prior_weight=_number(options.prior_weight),
                **limits,
                **detector,
            )
            handle.target = Feed(made, channels)
            stream[0] = handle.admit()

    def stream_push(self, number: int, pcm: Any, frames: int, is_float: int) -> None:
        """`Stream.push`."""
        handle = self._streams.get(number)
        with handle.use():
            feed = handle.target
            feed.stream.push(self._samples(pcm, frames, feed.channels, is_float).copy())

    def stream_poll(self, number: int, room: Any, result: Any, fresh: Any) -> None:
        """`Stream.poll`, or the size of what it would give."""
        handle = self._streams.get(number)
        with handle.use():
            _describe_bundle(result, handle.root.target, 1)
            if room.bytes:
                _check_room(room, result.bytes_needed)
                portrait = handle.target.stream.poll()
                if portrait is not None:
                    self._give(portrait, room.bytes, result)
                fresh[0] = portrait is not None

    def stream_info(self, number: int, state: Any) -> None:
        """What a `Stream` tells of itself."""
        handle = self._streams.get(number)
        with handle.use():
            stream = handle.target.stream
            sound, wall = stream.first_portrait_seconds, stream.first_portrait_wall_seconds
            state.heard_s, state.speech_s = stream.heard_seconds, stream.speech_seconds
            state.dropped_s, state.portrait_s = stream.dropped_seconds, stream.portrait_seconds
            state.first_portrait_s = math.nan if sound is None else sound
            state.first_portrait_ms = math.nan if wall is None else wall * 1e3

    def stream_finish(self, number: int, timeout_ms: int, room: Any, result: Any) -> None:
        """`Stream.finish`."""
        handle = self._streams.get(number)
        with handle.use():
            handle.check_not_drawing()
            _describe_bundle(result, handle.root.target, 1)
            _check_room(room, result.bytes_needed)
            self._give(handle.target.stream.finish(timeout_ms / 1000 or None), room.bytes, result)

    def stream_close(self, number: int) -> None:
        """`Stream.close`."""
        self._streams.get(number).close()

    def _use_device(self, pipeline: runtime.Pipeline) -> None:
        """Draw once on each device: what a backend makes as it is first used it takes apart at exit, and C comes before
        that only if it exists by now. Raises as `generate`.
        """
        if pipeline.device not in self._used_devices:
            pipeline.generate((np.sin(0.1 * np.arange(DEFAULT_RATE, dtype=np.float32)), DEFAULT_RATE))
            self._stay_last()
            self._used_devices.add(pipeline.device)

    def _text(self, pointer: Any) -> str | None:
        return self._ffi.string(pointer).decode("utf-8", "replace") if pointer else None

    def _path(self, pointer: Any) -> str | None:
        return os.fsdecode(self._ffi.string(pointer)) if pointer else None

    def _messages(self, options: Any) -> Messages | None:
        if not options.log:
            return None
        log, user = options.log, options.log_user
        tell = lambda level, text: log(level, text.encode("utf-8", "backslashreplace"), user)  # noqa: E731
        return Messages(tell, options.log_level or logging.WARNING)

    def _progress(self, handle: Handle, request: Any) -> Callable[[int, int], object] | None:
        if not request.progress:
            return None

        def tell(done: int, total: int) -> object:
            with handle.drawing():
                return request.progress(done, total, request.progress_user)

        return tell

    def _speeches(self, speech: Any) -> list[Any]:
        if speech.path:
            return [self._path(speech.path)]
        channels = _channels(speech.channels)
        return [
            (self._samples(speech.pcm[i], speech.frames[i], channels, speech.is_float), speech.sample_rate)
            for i in range(speech.count)
        ]

    def _samples(self, pcm: Any, frames: int, channels: int, is_float: int) -> npt.NDArray[Any]:
        """The caller's memory as an array [n], or [n, channels], of float32 or int16; valid during the call."""
        kind = np.dtype(np.float32 if is_float else np.int16)
        size = frames * channels * kind.itemsize
        if size > sys.maxsize:
            raise InvalidArgument(
                f"No memory holds {frames} frames of {channels} channels. Check the number of frames."
            )
        samples = np.frombuffer(self._ffi.buffer(pcm, size), kind) if size else np.zeros(0, kind)
        return samples if channels == 1 else samples.reshape(frames, channels)  # [n, 1] takes a tenth of a ms more

    def _give(self, portrait: runtime.Portrait, image: Any, result: Any) -> None:
        self._ffi.memmove(image, np.ascontiguousarray(portrait.image), portrait.image.size)
        result.seed, result.steps = portrait.seed, portrait.steps
        result.guidance, result.prior_weight = portrait.guidance, portrait.prior_weight
        times = portrait.timings
        result.audio_ms, result.graphs_ms, result.total_ms = times.audio, times.graphs, times.total


def _describe_bundle(result: Any, pipeline: runtime.Pipeline, count: int) -> None:
    """Size of `count` portraits, and what is used where a request says nothing."""
    manifest = pipeline.manifest
    result.width, result.height = manifest.image.width, manifest.image.height
    result.bytes_needed = manifest.image.width * manifest.image.height * 3 * count
    result.seed, result.steps = 0, manifest.default_steps
    result.guidance, result.prior_weight = manifest.guidance.default, manifest.prior.weight
    result.audio_ms = result.graphs_ms = result.total_ms = 0.0


def _check_room(room: Any, needed: int) -> None:
    if room.size < needed:
        raise BufferTooSmall(f"The buffer holds {room.size} bytes, {needed} are needed.")


def _channels(value: int) -> int:
    if not 1 <= value <= MOST_CHANNELS:
        raise InvalidArgument(f"channels must be in 1..{MOST_CHANNELS}, not {value}.")
    return value


def _number(value: float) -> float | None:
    """An option of C: NaN is none; see the module."""
    return None if math.isnan(value) else float(str(np.float32(value)))
