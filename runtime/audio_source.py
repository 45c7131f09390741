"""Where samples come from: an array, or the part of a file that is asked for, as float64 mono frames.

A file is opened by libsndfile and read in blocks of bounded size, whatever its length and number of channels.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .errors import AudioNonFinite, AudioNotFound, AudioUnreadable, BackendMissing

SCAN_SECONDS = 3600
"""How far `window="loudest"` looks into a recording."""

_BLOCK_VALUES = 1 << 19
_LONGEST = 1 << 40
# libsndfile's log of a header: "data : 64000 (should be 31978)" is a chunk longer than the file. Sizes from 2 GiB on
# are written by programs that stream and do not know the length; a few bytes less are a careless writer, no loss.
_SHORTFALL = re.compile(r"(?:data|SSND|Data Size|riff|Riff size)\s*:\s*(\d+) \(should be (\d+)\)")
_STREAMED = 0x7FFFF000
_INT_SCALES = {"uint8": 128.0, "int16": 32768.0, "int32": 2147483648.0}


class Source(Protocol):
    """What the window rule needs to know. `exact` is false where the format gives only an estimate of the length."""

    label: str
    rate: int
    frames: int
    exact: bool

    def read(self, start: int, count: int) -> npt.NDArray[np.float64]:
        """Up to `count` mono frames from frame `start`, fewer at the end."""

    def blocks(self, limit: int, size: int) -> Iterator[npt.NDArray[np.float64]]:
        """The first `limit` frames in blocks of `size`, at least one block (which may be empty)."""


class ArraySource:
    """An array in memory, checked as a whole. Raises AudioUnreadable for its shape or type, AudioNonFinite."""

    exact = True

    def __init__(self, array: npt.NDArray[Any], rate: int) -> None:
        self.label = "The audio array"
        self.rate = rate
        array = np.asarray(array)  # no matrix, no masked array: their slices behave differently
        if array.ndim not in (1, 2):
            raise AudioUnreadable(
                f"An audio array has shape [n] or [n, channels], not {list(array.shape)}. Reshape it."
            )
        kind = array.dtype.name
        if kind not in _INT_SCALES and kind not in ("float16", "float32", "float64"):
            raise AudioUnreadable(f"An audio array of {kind} is not known. Use uint8, int16, int32 or float32.")
        if array.dtype.kind == "f" and array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
            raise AudioNonFinite("The audio array holds NaN or infinite samples. Record or convert the audio again.")
        self._array = array.T if array.ndim == 2 and array.shape[1] > array.shape[0] else array
        self.frames = int(self._array.shape[0]) if array.size else 0

    def read(self, start: int, count: int) -> npt.NDArray[np.float64]:
        """Up to `count` mono frames from frame `start`."""
        part = self._array[start : min(start + count, self.frames)].astype(np.float64)
        scale = _INT_SCALES.get(self._array.dtype.name)
        if scale is not None:
            part = (part - (128.0 if scale == 128.0 else 0.0)) / scale
        return _mono(part)

    def blocks(self, limit: int, size: int) -> Iterator[npt.NDArray[np.float64]]:
        """The first `limit` frames in blocks of `size`."""
        for start in range(0, max(1, min(limit, self.frames)), size):
            yield self.read(start, size)


class FileSource:
    """An open sound file. Raises AudioUnreadable where it is damaged, cut short or does not state its length."""

    def __init__(self, file: Any, label: str) -> None:
        self.label = label
        self.rate = int(file.samplerate)
        self.frames = int(file.frames)
        self.exact = file.format not in ("MP3", "MPEG")
        self._file = file
        if self.frames > _LONGEST:
            raise AudioUnreadable(f"{label} does not state its length. Convert it once: ffmpeg -i IN OUT.wav")
        for declared, found in _SHORTFALL.findall(file.extra_info):
            if int(found) < 0.99 * int(declared) and int(declared) < _STREAMED:
                raise AudioUnreadable(
                    f"{label} is cut short: {declared} bytes announced, {found} there. Copy it again."
                )

    def read(self, start: int, count: int) -> npt.NDArray[np.float64]:
        """Up to `count` mono frames from frame `start`. Raises AudioUnreadable if the file ends too early."""
        parts = [np.zeros(0)]
        with _decoding(self.label):
            # Seeking in an MP3 without an index lands somewhere near; decoding up to the place is exact.
            self._file.seek(start if self.exact else 0)
            for _ in self._parts(0 if self.exact else start):
                pass
            parts += self._parts(count)
        pcm = np.concatenate(parts)
        if self.exact and pcm.size < min(count, self.frames - start):
            raise AudioUnreadable(f"{self.label} is cut short: it ends before its header says. Copy it again.")
        return pcm

    def blocks(self, limit: int, size: int) -> Iterator[npt.NDArray[np.float64]]:
        """The first `limit` frames in blocks of `size`; ends where decoding ends."""
        self._seek_to_start()
        while True:
            with _decoding(self.label):
                pcm = np.concatenate([np.zeros(0), *self._parts(min(size, limit))])
            yield pcm
            limit -= size
            if pcm.size < size or limit <= 0:
                return

    def _seek_to_start(self) -> None:
        with _decoding(self.label):
            self._file.seek(0)

    def _parts(self, count: int) -> Iterator[npt.NDArray[np.float64]]:
        """`count` frames from here on in blocks of bounded memory, mixed down."""
        most = max(1, _BLOCK_VALUES // int(self._file.channels))
        while count > 0:
            block = self._file.read(min(most, count), dtype="float64", always_2d=True)
            if len(block) == 0:
                return
            yield _mono(block)
            count -= len(block)


class _Memory(io.BytesIO):
    """Bytes as a file for libsndfile, which may seek before the start of a damaged one: that must not raise there."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()


@contextmanager
def open_source(speech: str | os.PathLike[str] | bytes) -> Iterator[FileSource]:
    """Open a path or the bytes of a sound file. Raises AudioNotFound, AudioUnreadable."""
    sound = _soundfile()
    if isinstance(speech, (str, os.PathLike)):
        path = os.fsdecode(speech)
        label = path if path.isprintable() else ascii(path)
        _check_path(path, label)
        target: Any = path
    else:
        label, target = "The audio bytes", _Memory(speech)
        if not target.getbuffer().nbytes:
            raise AudioUnreadable("The audio bytes are empty. Pass the bytes of a WAV, FLAC, OGG or MP3 file.")
    with _decoding(label):
        file = sound.SoundFile(target)
    try:
        yield FileSource(file, label)
    finally:
        file.close()


def _check_path(path: str, label: str) -> None:
    """Say in our words what the system would say in its own; refuse pipes and devices, which may never end."""
    try:
        info = Path(path or "\0").stat()  # Path("") would be the current directory
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise AudioNotFound(f"{label} does not exist. Check the path.") from None
    except OSError as error:
        raise AudioUnreadable(f"{label} cannot be read: {error.strerror}. Check the rights of the file.") from None
    if stat.S_ISDIR(info.st_mode):
        raise AudioUnreadable(f"{label} is a directory. Name one sound file.")
    if not stat.S_ISREG(info.st_mode):
        raise AudioUnreadable(f"{label} is not a regular file. Pass the bytes of a stream instead.")
    if not os.access(path, os.R_OK):
        raise AudioUnreadable(f"{label} cannot be read: no permission. Check the rights of the file.")
    if info.st_size == 0:
        raise AudioUnreadable(f"{label} is empty. Record it again.")


@contextmanager
def _decoding(label: str) -> Iterator[None]:
    """Whatever libsndfile and its binding raise for a damaged file becomes AudioUnreadable."""
    try:
        yield
    except (OSError, RuntimeError, TypeError, ValueError):
        problem = f"{label} is not a sound file that can be read, or it is damaged."
        raise AudioUnreadable(f"{problem} Convert it to WAV or FLAC, for example: ffmpeg -i IN OUT.wav") from None


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError):
        raise BackendMissing("The package soundfile (libsndfile) is not usable. Run: pip install soundfile") from None
    return soundfile


def _mono(frames: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean over the channels of [n] or [n, channels]."""
    if frames.ndim == 1:
        return frames
    if frames.shape[1] == 0:
        return np.zeros(0)
    with np.errstate(all="ignore"):
        return np.asarray(frames.mean(axis=1))
