"""Samples as a device delivers them become one signal: checked, mixed down, resampled to 16 kHz without a seam.

Any number of samples at a time, down to one; however a recording is cut up, the signal is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import AudioNonFinite, BackendMissing, InvalidArgument
from .specs import SAMPLE_RATE

Samples = npt.NDArray[np.float32]

MAX_CHANNELS = 64
MAX_VALUE = 32768.0
"""Floats should lie within −1..1. Those of callers who pass int16 values as floats are taken too, at their level."""

_FLOATS = ("float16", "float32", "float64")


class Intake:
    """One signal of `rate` Hz and `channels` channels. Not for two threads at once."""

    def __init__(self, rate: int, channels: int) -> None:
        """Both within their limits, which the caller checks. Raises BackendMissing without soxr."""
        self.rate, self.channels = rate, channels
        self._resampler = None if rate == SAMPLE_RATE else _resampler(rate)

    def check(self, samples: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Samples int16 or floating point, [n] (interleaved where there are several channels) or [n, channels], as
        [n, channels]. Raises InvalidArgument for anything else, AudioNonFinite.
        """
        if not isinstance(samples, np.ndarray) or (samples.dtype.name != "int16" and samples.dtype.name not in _FLOATS):
            kind = samples.dtype if isinstance(samples, np.ndarray) else type(samples).__name__
            raise InvalidArgument(f"push takes numpy arrays of int16, float32 or float64, not {kind}.")
        frames = np.asarray(samples)  # no matrix, no masked array: their slices behave differently
        if frames.ndim == 1 and frames.size % self.channels == 0:
            frames = frames.reshape(-1, self.channels)
        if frames.ndim != 2 or frames.shape[1] != self.channels:
            wanted = f"[n, {self.channels}] or interleaved" if self.channels > 1 else "[n] or [n, 1]"
            raise InvalidArgument(f"push takes samples of shape {wanted}, not {list(samples.shape)}.")
        if frames.dtype.kind == "f" and frames.size:
            low, high = float(frames.min()), float(frames.max())
            if not np.isfinite([low, high]).all():
                raise AudioNonFinite("The samples hold NaN or infinite values; none of them was taken.")
            if max(-low, high) > MAX_VALUE:
                raise InvalidArgument(f"Float samples lie within −1..1; these reach {max(-low, high):.3g}. Scale them.")
        return frames

    def take(self, frames: npt.NDArray[Any]) -> Iterator[Samples]:
        """Frames that `check` returned as signal, float32 [m] at 16 kHz, a second of them at a time."""
        scale = np.float32(1 / MAX_VALUE if frames.dtype.kind == "i" else 1)
        for start in range(0, len(frames), self.rate):
            block = frames[start : start + self.rate]
            mono = np.asarray(block.mean(axis=1, dtype=np.float64), np.float32) if self.channels > 1 else block[:, 0]
            signal = np.asarray(mono, np.float32) * scale
            yield signal if self._resampler is None else self._resampler.resample_chunk(signal)

    def rest(self) -> Samples:
        """The end of the signal: what the resampler still holds back."""
        nothing = np.zeros(0, np.float32)
        if self._resampler is None:
            return nothing
        return np.asarray(self._resampler.resample_chunk(nothing, last=True), np.float32)


def _resampler(rate: int) -> Any:
    try:
        import soxr
    except ImportError:
        raise BackendMissing("The package soxr is not installed. Run: pip install soxr") from None
    return soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
