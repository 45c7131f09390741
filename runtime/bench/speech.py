"""Speech made in code from a seed, so that a measurement needs nothing but a bundle."""

from __future__ import annotations

import io
import math
import wave

import numpy as np
import numpy.typing as npt


def synthetic_speech(rate: int = 16000, seconds: float = 6.0, seed: int = 0) -> npt.NDArray[np.float32]:
    """A voice-like signal, float32 [rate · seconds]: a wandering pitch with falling harmonics, syllables and breath."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(rate * seconds)) / rate
    pitch = 120 + 60 * rng.random() + 12 * np.sin(2 * math.pi * 0.7 * t) + 5 * np.sin(2 * math.pi * 2.3 * t)
    phase = 2 * math.pi * np.cumsum(pitch) / rate
    voiced = np.zeros_like(t)
    for harmonic in range(1, 20):
        voiced += np.sin(harmonic * phase + 6 * rng.random()) / harmonic
    syllables = np.clip(np.sin(2 * math.pi * 2.1 * t) + 0.5, 0, 1)
    signal = voiced * syllables + 0.05 * rng.standard_normal(t.size)
    return np.asarray(0.3 * signal / np.abs(signal).max(), dtype=np.float32)


def wav_bytes(pcm: npt.NDArray[np.float32], rate: int) -> bytes:
    """A 16-bit mono WAV file of pcm [n], −1..1."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((pcm * 32767).astype("<i2").tobytes())
    return buffer.getvalue()
