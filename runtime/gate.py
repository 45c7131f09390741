"""The speech gate: which pieces of a running signal are speech, decided as they come.

Two detectors say of one piece after the other whether there is a voice in it. The gate opens when enough of the last
pieces have one, closes 200 ms after the last that has, which bridges consonants and short pauses, and takes the 200 ms
before it opened along (pre-roll).

`Energy`, the default, needs numpy only. Every 20 ms it looks at the last 60 ms, through a Hann window, which DC does
not pass:
- loud: the power between 100 and 4000 Hz is 6 dB above the noise floor and above −60 dBFS, where `runtime.audio` too
  draws the line of silence. The floor is the lowest power of the last 1.5 s, so it follows noise that comes and goes.
  Pieces under −75 dBFS are digital silence and say nothing about it;
- voiced: the autocorrelation between 100 and 1500 Hz has a peak of half its power or more at the period of a pitch of
  70 to 400 Hz. Frequencies are weighted so that white, pink and brown noise are equally unlike a voice.
Of what silero calls speech in 40 LibriSpeech readers, 98 % pass; of what passes, 99.9 % are within 0.3 s of it. In
white noise 20, 10, 5 and 0 dB below the voice 98, 95, 89 and 66 % pass. Of a minute of white, pink or brown noise, a
steady hum, wind or typing nothing does. Its limits: whatever has a pitch and moves is a voice to it (music, beeps, a
knock that rings, other people talking); whispering is none, nor is a tone held for longer than 1.5 s, nor a voice under
−60 dBFS or drowned in noise.

`Silero` runs silero's VAD model, which the caller brings, on ONNX Runtime; of a minute of beeps or a melody it passes
0 and 1 s, the default 43 and 50. Measured by `benchmarks/stream_demo.py`.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .backends import Settings
from .errors import BackendFailed, BundleInvalid, InvalidArgument
from .onnx_scan import refuse_external_data
from .specs import SAMPLE_RATE

Samples = npt.NDArray[np.float32]
Floats = npt.NDArray[np.floating[Any]]

HANGOVER_SECONDS = 0.2
PREROLL_SECONDS = 0.2

PIECE, FRAME = SAMPLE_RATE // 50, SAMPLE_RATE * 3 // 50
LOUDNESS_HZ, VOICE_HZ = (100.0, 4000.0), (100.0, 1500.0)
PITCH_HZ = (70.0, 400.0)
VOICED = 0.5
MARGIN = 4.0
LOWEST_POWER, DIGITAL_SILENCE = 1e-6, 10**-7.5
FLOOR_PIECES, SMOOTHED_PIECES = 75, 3

SILERO_PIECE, SILERO_CONTEXT, SILERO_STATE = 512, 64, (2, 1, 128)
SILERO_VOICE = 0.5
MAX_MODEL_BYTES = 64 << 20


class Detector(Protocol):
    """Says of consecutive pieces whether there is a voice. `piece`: their length in samples; `needed` of the last
    `among` pieces with a voice open the gate.
    """

    piece: int
    needed: int
    among: int

    def hears(self, piece: Samples) -> bool:
        """Whether this piece, float32 [`piece`] at 16 kHz, has a voice. Called with every piece, in order."""


def detector(vad: str | os.PathLike[str]) -> Detector:
    """`Energy` for "energy", else `Silero` with the model file at this path. Raises as `Silero`."""
    return Energy() if vad == "energy" else Silero(vad)


class Gate:
    """Samples of any count in, speech out. Not for two threads at once."""

    def __init__(self, judge: Detector) -> None:
        self._judge = judge
        self._hangover = max(1, round(HANGOVER_SECONDS * SAMPLE_RATE / judge.piece))
        self._before: deque[Samples] = deque(maxlen=max(1, round(PREROLL_SECONDS * SAMPLE_RATE / judge.piece)))
        self._lately: deque[bool] = deque(maxlen=judge.among)
        self._open_for = 0
        self._rest: Samples = np.zeros(0, np.float32)
        self.position = 0

    def take(self, pcm: Samples) -> Iterator[Samples]:
        """Speech in pcm, float32 [n] at 16 kHz: consecutive parts as they are let through.

        Whenever a part is given, `position` is where it ends, in samples since the beginning of the signal.
        """
        pcm = np.concatenate([self._rest, pcm])
        whole = pcm.size // self._judge.piece * self._judge.piece
        self._rest = pcm[whole:].copy()
        for piece in pcm[:whole].reshape(-1, self._judge.piece):
            speech = self._pass(piece)
            self.position += piece.size
            if speech is not None:
                yield speech

    def rest(self) -> Samples:
        """The end of the signal: the samples too few for a piece, if the gate is open."""
        rest, self._rest = self._rest, np.zeros(0, np.float32)
        self.position += rest.size
        return rest if self._open_for else rest[:0]

    def _pass(self, piece: Samples) -> Samples | None:
        voice = self._judge.hears(piece)
        self._lately.append(voice)
        if self._open_for:
            self._open_for = self._hangover if voice else self._open_for - 1
            if self._open_for:
                return piece
        self._before.append(piece)
        if sum(self._lately) < self._judge.needed:
            return None
        self._open_for = self._hangover
        speech = np.concatenate(self._before)
        self._before.clear()
        return speech


class Energy:
    """Loud and voiced; see the module."""

    piece, needed, among = PIECE, 3, 5

    def __init__(self) -> None:
        hertz = np.fft.rfftfreq(FRAME, 1 / SAMPLE_RATE)
        self._window = np.hanning(FRAME + 2)[1:-1]
        self._loudness = _between(hertz, LOUDNESS_HZ)
        self._scale = 2 / (FRAME * np.square(self._window).sum())
        self._voice = _between(hertz, VOICE_HZ)
        self._weights, self._periods = _periodicity(hertz[self._voice], self._window)
        self._frame = np.zeros(FRAME)
        self._powers: deque[float] = deque(maxlen=SMOOTHED_PIECES)
        self._floor: deque[float] = deque(maxlen=FLOOR_PIECES)

    def hears(self, piece: Samples) -> bool:
        """See `Detector`."""
        self._frame = np.concatenate([self._frame[PIECE:], piece])
        centred = self._frame - self._frame.mean()
        spectrum = np.square(np.abs(np.fft.rfft(centred * self._window)))
        loud = self._is_loud(float(spectrum[self._loudness].sum() * self._scale))
        return loud and self._is_voiced(spectrum[self._voice])

    def _is_loud(self, power: float) -> bool:
        self._powers.append(power)
        self._floor.append(sum(self._powers) / len(self._powers) if power > DIGITAL_SILENCE else math.inf)
        floor = min(self._floor)
        return power > LOWEST_POWER and power > MARGIN * (floor if math.isfinite(floor) else DIGITAL_SILENCE)

    def _is_voiced(self, spectrum: Floats) -> bool:
        return float((self._periods @ spectrum).max()) > VOICED * float(self._weights @ spectrum)


class Silero:
    """Silero's voice activity model, version 5 or 6 (MIT licence), on one CPU thread of ONNX Runtime."""

    piece, needed, among = SILERO_PIECE, 1, 1

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """`path`: the ONNX file out of the package silero-vad, for 16 kHz. Raises InvalidArgument for what is no such
        file, BackendMissing without ONNX Runtime, BackendFailed.
        """
        from .backends import ort

        data = _read_model(path)
        self._session = ort.open_session(data, Settings("cpu", 1), "the VAD model")
        inputs = {value.name: len(value.shape) for value in self._session.get_inputs()}
        if inputs.items() - {("sr", 0)} != {("input", 2), ("state", 3)} or len(self._session.get_outputs()) != 2:
            raise InvalidArgument(f"vad: {_name(path)} is not silero's VAD model, version 5 or 6. {_CURE}")
        self._fixed = {"sr": np.array(SAMPLE_RATE, np.int64)} if "sr" in inputs else {}
        self._state = np.zeros(SILERO_STATE, np.float32)
        self._context: Samples = np.zeros(SILERO_CONTEXT, np.float32)

    def hears(self, piece: Samples) -> bool:
        """See `Detector`. Raises BackendFailed."""
        from .backends import ort

        given = np.concatenate([self._context, piece])[None]
        with ort.translated("ONNX Runtime failed in the VAD model"):
            voice, state = self._session.run(None, {"input": given, "state": self._state, **self._fixed})
        if np.size(voice) != 1 or np.shape(state) != SILERO_STATE:
            raise BackendFailed(f"The VAD model answered in another shape than silero's. {_CURE}")
        self._state, self._context = state, piece[-SILERO_CONTEXT:]
        return float(voice.item()) > SILERO_VOICE


_CURE = 'Give silero_vad.onnx of the package silero-vad, or "energy".'


def _between(hertz: Floats, limits: tuple[float, float]) -> npt.NDArray[np.bool_]:
    return np.asarray((hertz >= limits[0]) & (hertz <= limits[1]))


def _periodicity(hertz: Floats, window: Floats) -> tuple[Floats, Floats]:
    """Two linear maps of a power spectrum [hertz]: to the weighted power, and to the autocorrelation at each period.

    The second is divided by the window's own, so that a signal of that period has its whole power there.
    """
    weights = 2 * np.sin(math.pi * hertz / SAMPLE_RATE)
    periods = np.arange(round(SAMPLE_RATE / PITCH_HZ[1]), round(SAMPLE_RATE / PITCH_HZ[0]) + 1)
    own = np.array([window[period:] @ window[: window.size - period] for period in periods]) / (window @ window)
    waves = np.cos(2 * math.pi * np.outer(periods, hertz) / SAMPLE_RATE)
    return weights, waves * weights / own[:, None]


def _name(path: str | os.PathLike[str]) -> str:
    text = os.fsdecode(path)
    return text if text.isprintable() else ascii(text)


def _read_model(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an ONNX file that needs no other file. Raises InvalidArgument."""
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidArgument(f'vad must be "energy" or a path, not {path!r:.40}.')
    try:
        file = Path(path)
        if not file.is_file() or file.stat().st_size > MAX_MODEL_BYTES:
            raise InvalidArgument(f"vad: {_name(path)} is no file of a model of up to 64 MiB. {_CURE}")
        data = file.read_bytes()
        refuse_external_data(data, _name(path))
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"vad: {_name(path)} cannot be read: {error}. {_CURE}") from None
    except BundleInvalid:
        raise InvalidArgument(f"vad: {_name(path)} is no ONNX file with all its weights inside. {_CURE}") from None
    return data
