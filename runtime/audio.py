"""Speech in: any file, bytes or array becomes the one window the encoder was trained on.

`load_speech` gives float32 [96000], six seconds at 16 kHz mono, −1..1. Training cuts speech with the same functions.
Files are read with soundfile (libsndfile: WAV, FLAC, OGG, MP3 in one wheel; reads any part of a file) and resampled
with soxr (deterministic, no state, small). Decisions:
- channels are mixed down by their mean; rates from 1 kHz to 384 kHz;
- samples above 1 are scaled down by their peak, not clipped: many callers pass int16 values as floats;
- the window: shorter speech is repeated, then cut (Speech2Face); longer speech is cut at start, centre or loudest part;
- the level: the window's mean is removed and its RMS set to 0.05 (−26 dBFS) while no peak exceeds 1, because the gain
  of a microphone says nothing about a face and no two devices agree on it;
- silence: a 20 ms piece counts as signal where its RMS without its mean is above −60 dBFS; no such piece is silence,
  less than half a second of them is too short. Judged on the window, before it is repeated;
- a file is decoded only where its window lies, so three hours cost no more than six seconds. `window="loudest"` decodes
  the first hour in blocks. What lies outside is neither judged nor found damaged; an array is checked as a whole;
- a file shorter than its header says is refused where the format tells (WAV, AIFF, AU, W64, RF64, FLAC). OGG and MP3
  do not tell; of them what can be decoded is used.
Nothing here logs, and a file's name goes nowhere but into the message of an error about it.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .audio_source import SCAN_SECONDS, ArraySource, Source, open_source
from .errors import AudioNonFinite, AudioSilent, AudioTooShort, AudioUnreadable, BackendMissing, InvalidArgument
from .specs import SAMPLE_RATE, SAMPLES

Speech: TypeAlias = "str | os.PathLike[str] | bytes | tuple[npt.NDArray[Any], int]"

WINDOWS = ("start", "centre", "loudest")
TARGET_RMS = 0.05
SIGNAL_RMS = 0.001
SIGNAL_SECONDS = 0.5
LOWEST_RATE, HIGHEST_RATE = 1000, 384000

_PIECES_PER_SECOND = 50
_HOPS_PER_WINDOW = 60
_MARGIN_SECONDS = 0.05


def load_speech(
    speech: Speech, *, sample_rate: int = SAMPLE_RATE, samples: int = SAMPLES, window: str = "start"
) -> npt.NDArray[np.float32]:
    """Speech to float32 [samples], −1..1, at `sample_rate` Hz; see the module for every rule.

    `speech`: a path, the bytes of a file or (array, rate). Array: [n], [n, channels] or [channels, n] (the longer axis
    is time), uint8, int16, int32 or floating point. Raises the AudioXxx errors, InvalidArgument for an option.
    """
    _check_options(sample_rate, samples, window)
    with _opened(speech) as source:
        if not LOWEST_RATE <= source.rate <= HIGHEST_RATE:
            problem = f"{source.label}: {source.rate} Hz is outside {LOWEST_RATE}..{HIGHEST_RATE} Hz."
            raise AudioUnreadable(f"{problem} Check the sample rate, or resample the audio.")
        pcm = _window_of(source, sample_rate, samples, window)
        _check_signal(pcm, sample_rate, min(samples, round(SIGNAL_SECONDS * sample_rate)), source.label)
    return normalise_level(fit_window(pcm, samples))


def fit_window(pcm: npt.NDArray[np.floating[Any]], samples: int, window: str = "start") -> npt.NDArray[np.float32]:
    """Exactly `samples` samples of pcm [n]: repeated and cut if shorter, cut at `window` if longer; a new array.

    Nothing else is changed. Raises AudioTooShort for an empty array, InvalidArgument for an unknown window.
    """
    _check_options(SAMPLE_RATE, samples, window)
    if pcm.ndim != 1:
        raise InvalidArgument(
            f"fit_window takes samples of shape [n], not {list(pcm.shape)}. Mix the channels down first."
        )
    if pcm.size == 0:
        raise AudioTooShort("The audio holds no samples. Record at least half a second of speech.")
    if pcm.size <= samples:
        return np.resize(pcm, samples).astype(np.float32)
    start = 0
    if window == "centre":
        start = (pcm.size - samples) // 2
    elif window == "loudest":
        hop = _hop(samples)
        start = min(_loudest(_energies(pcm, hop)) * hop, pcm.size - samples)
    return pcm[start : start + samples].astype(np.float32)


def normalise_level(pcm: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    """Finite pcm [n] without its mean, at RMS 0.05, or less where a peak would exceed 1. Silence becomes zeros."""
    signal = np.asarray(pcm, dtype=np.float64)
    signal = signal - (signal.mean() if signal.size else 0.0)
    rms = math.sqrt(float(np.mean(np.square(signal)))) if signal.size else 0.0
    if rms <= 1e-12:
        return np.zeros(signal.shape, dtype=np.float32)
    gain = min(TARGET_RMS / rms, 1.0 / float(np.max(np.abs(signal))))
    return np.asarray(np.clip(signal * gain, -1.0, 1.0), dtype=np.float32)


def _check_options(sample_rate: int, samples: int, window: str) -> None:
    if window not in WINDOWS:
        raise InvalidArgument(f"window must be one of {', '.join(WINDOWS)}, not {window!r:.40}.")
    limits = (("sample_rate", sample_rate, LOWEST_RATE, HIGHEST_RATE), ("samples", samples, 1, 1 << 26))
    for name, value, low, high in limits:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InvalidArgument(f"{name} must be a whole number in {low}..{high}, not {value!r:.40}.")


@contextmanager
def _opened(speech: Speech) -> Iterator[Source]:
    """The source behind each form of speech. Raises InvalidArgument for anything else."""
    if isinstance(speech, tuple):
        if len(speech) != 2 or not isinstance(speech[0], np.ndarray):
            raise InvalidArgument("Speech as a tuple is (numpy array, sample rate).")
        yield ArraySource(speech[0], _whole_rate(speech[1]))
    elif isinstance(speech, (str, os.PathLike, bytes, bytearray, memoryview)):
        with open_source(speech) as source:
            yield source
    else:
        kind = type(speech).__name__
        raise InvalidArgument(f"Speech is a path, the bytes of a file or (array, sample rate), not {kind}.")


def _whole_rate(rate: object) -> int:
    """16000, np.int64(16000) and 16000.0 are rates; True, "16000" and 16000.5 are not."""
    try:
        if isinstance(rate, (float, np.floating)) and float(rate).is_integer():
            return int(rate)
        if not isinstance(rate, (bool, np.bool_)):
            return operator.index(rate)  # type: ignore[arg-type]
    except TypeError:
        pass
    raise InvalidArgument(f"The sample rate must be a whole number of Hz, not {rate!r:.40}.")


def _window_of(source: Source, sample_rate: int, samples: int, window: str) -> npt.NDArray[np.float64]:
    """At most `samples` samples at `sample_rate`: only the frames under the window, and a margin for the resampler."""
    need = math.ceil(samples * source.rate / sample_rate)
    margin = math.ceil(_MARGIN_SECONDS * source.rate)
    start = _start_of(source, need, window)
    lead = min(start, margin)
    pcm = source.read(start - lead, lead + need + margin)
    if not np.isfinite(pcm).all():
        raise AudioNonFinite(f"{source.label}: NaN or infinite samples. Record or convert the audio again.")
    peak = float(np.max(np.abs(pcm), initial=0.0))
    if peak > 1.0:
        pcm = pcm / peak
    pcm = _resample(pcm, source.rate, sample_rate)
    skip = round(lead * sample_rate / source.rate)
    return pcm[skip : skip + samples]


def _start_of(source: Source, need: int, window: str) -> int:
    """First frame of the window, 0 where the source is not longer than it."""
    if window == "start" or (source.exact and source.frames <= need):
        return 0
    hop = _hop(need)
    if window == "centre" and source.exact:
        return (source.frames - need) // 2
    limit = SCAN_SECONDS * source.rate
    energies = np.concatenate([_energies(block, hop) for block in source.blocks(limit, hop * _HOPS_PER_WINDOW)])
    if not np.isfinite(energies).all():
        raise AudioNonFinite(f"{source.label}: NaN or infinite samples. Record or convert the audio again.")
    last = max(energies.size * hop - need, 0)
    return last // 2 if window == "centre" else min(_loudest(energies) * hop, last)


def _hop(samples: int) -> int:
    """The loudest window is searched in steps of a sixtieth of its length, 0.1 s of six seconds."""
    return max(1, samples // _HOPS_PER_WINDOW)


def _energies(pcm: npt.NDArray[np.floating[Any]], hop: int) -> npt.NDArray[np.float64]:
    """Energy without the mean of each whole hop of pcm [n]: float64 [n // hop]."""
    pieces = pcm[: pcm.size // hop * hop].astype(np.float64).reshape(-1, hop)
    with np.errstate(all="ignore"):
        return np.asarray(pieces.var(axis=1) * hop)


def _loudest(energies: npt.NDArray[np.float64]) -> int:
    """Index of the hop at which the window with the most energy begins; the first of equals."""
    if energies.size <= _HOPS_PER_WINDOW:
        return 0
    total = np.concatenate([np.zeros(1), np.cumsum(energies)])
    return int(np.argmax(total[_HOPS_PER_WINDOW:] - total[:-_HOPS_PER_WINDOW]))


def _resample(pcm: npt.NDArray[np.float64], rate: int, wanted: int) -> npt.NDArray[np.float64]:
    if rate == wanted or pcm.size == 0:
        return pcm
    try:
        import soxr
    except ImportError:
        raise BackendMissing("The package soxr is not installed. Run: pip install soxr") from None
    return np.asarray(soxr.resample(pcm, rate, wanted, quality="HQ"), dtype=np.float64)


def _check_signal(pcm: npt.NDArray[np.float64], sample_rate: int, needed: int, label: str) -> None:
    """Raise AudioTooShort or AudioSilent unless pcm [n] has `needed` samples of signal."""
    seconds = needed / sample_rate
    if pcm.size < needed:
        problem = f"{label}: {pcm.size / sample_rate:.2f} s of audio, at least {seconds:.2f} s are needed."
        raise AudioTooShort(f"{problem} Record a longer clip.")
    piece = max(1, sample_rate // _PIECES_PER_SECOND)
    bounds = np.arange(0, pcm.size, piece)
    lengths = np.minimum(piece, pcm.size - bounds)
    mean = np.add.reduceat(pcm, bounds) / lengths
    power = np.add.reduceat(np.square(pcm - np.repeat(mean, lengths)), bounds) / lengths
    loud = int(lengths[power > SIGNAL_RMS**2].sum())
    if loud == 0:
        problem = f"{label}: the window holds only silence (below −60 dBFS)."
        raise AudioSilent(f'{problem} Check the microphone, or use window="loudest".')
    if loud < needed:
        problem = f"{label}: {loud / sample_rate:.2f} s of signal in the window, at least {seconds:.2f} s are needed."
        raise AudioTooShort(f'{problem} Record a longer clip, or use window="loudest".')
