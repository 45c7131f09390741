"""The recordings a calibration hears: a folder of files, each as it is, or as a bad room or microphone gives it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.audio import load_speech, normalise_level
from runtime.errors import CorpusInvalid, InvalidArgument, S2FError
from runtime.specs import SAMPLE_RATE

log = logging.getLogger(__name__)

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".w64", ".au")
FEWEST_CLIPS = 32
NOISE_DB = 10.0  # speech over noise
REVERBERATION_SECONDS = 0.5  # until an echo has fallen by 60 dB
SPOKEN_SECONDS = 1.5  # of a clip that is mostly silence

Pcm = NDArray[np.float32]


@dataclass(frozen=True)
class Clips:
    """Windows of speech float32 [96000] in the order of the files' names. `digest`: sha256 (hex) of all samples."""

    windows: tuple[Pcm, ...]
    refused: int
    digest: str

    @property
    def statement(self) -> str:
        """What was heard, for a report; no names."""
        told = f"{len(self.windows)} recordings"
        return f"{told}, {self.refused} more could not be used" if self.refused else told


def read_clips(folder: Path, *, force: bool = False) -> Clips:
    """Every recording under a folder, one window each.

    Files that are no usable speech are left out and counted. Raises CorpusInvalid (no folder, nothing usable in it),
    InvalidArgument (fewer than FEWEST_CLIPS that differ, unless `force`).
    """
    try:
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    except OSError as error:
        raise CorpusInvalid(
            f"{folder} cannot be read: {error.strerror or error}. Give a folder of recordings"
        ) from error
    if not folder.is_dir() or not files:
        known = ", ".join(SUFFIXES)
        raise CorpusInvalid(f"{folder} holds no recordings ({known}). Give a folder of speech with --data")
    windows, reasons = [], []
    for path in files:
        try:
            windows.append(load_speech(path))
        except S2FError as reason:
            reasons.append(str(reason))
            log.info("left out: %s", reason)
    if not windows:
        raise CorpusInvalid(f"None of the {len(files)} recordings in {folder} can be used. The first: {reasons[0]}")
    different = len({hashlib.sha256(window.tobytes()).digest() for window in windows})
    if different < FEWEST_CLIPS and not force:
        raise InvalidArgument(
            f"{folder} holds {different} different recordings, {FEWEST_CLIPS} are needed: ranges from fewer do not "
            "hold for other voices. Give more, or --force to go on with these"
        )
    digest = hashlib.sha256(b"".join(window.tobytes() for window in windows)).hexdigest()
    return Clips(tuple(windows), len(reasons), digest)


def as_it_is(pcm: Pcm, _: np.random.Generator) -> Pcm:
    """The clip itself."""
    return pcm


def mostly_silent(pcm: Pcm, rng: np.random.Generator) -> Pcm:
    """SPOKEN_SECONDS of it somewhere in a faint hiss, 70 dB below full scale."""
    spoken = round(SPOKEN_SECONDS * SAMPLE_RATE)
    begin = int(rng.integers(0, len(pcm) - spoken))
    quiet = rng.normal(0.0, 10 ** (-70 / 20), len(pcm))
    quiet[begin : begin + spoken] += pcm[begin : begin + spoken]
    return normalise_level(quiet)


def noisy(pcm: Pcm, rng: np.random.Generator) -> Pcm:
    """In noise whose power falls with frequency, NOISE_DB below the speech."""
    spectrum = np.fft.rfft(rng.normal(0.0, 1.0, len(pcm)))
    noise = np.fft.irfft(spectrum / np.sqrt(np.arange(len(spectrum)) + 20.0), len(pcm))
    speech = float(np.sqrt(np.mean(pcm.astype(np.float64) ** 2)))
    noise *= speech / np.sqrt(np.mean(noise**2)) * 10 ** (-NOISE_DB / 20)
    return normalise_level(pcm + noise)


def far_field(pcm: Pcm, rng: np.random.Generator) -> Pcm:
    """From across a room: echoes of exponentially falling noise (Polack's late field) and little direct sound."""
    length = round(REVERBERATION_SECONDS * SAMPLE_RATE)
    room = rng.normal(0.0, 1.0, length) * 10 ** (-3 * np.arange(length) / length)
    room /= np.sqrt(np.sum(room**2))
    room[0] += 0.5
    size = len(pcm) + length
    heard = np.fft.irfft(np.fft.rfft(pcm, size) * np.fft.rfft(room, size), size)[: len(pcm)]
    return normalise_level(heard)


KINDS: Mapping[str, Callable[[Pcm, np.random.Generator], Pcm]] = {
    "as it is": as_it_is,
    "mostly silent": mostly_silent,
    "noisy": noisy,
    "far field": far_field,
}
