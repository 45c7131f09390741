"""Synthetic voices and sound files for the tests of the audio entry."""

from __future__ import annotations

import io

import numpy as np
import soundfile

RATE, SAMPLES = 16000, 96000


def voice(seconds, rate=RATE, level=0.2, f0=140.0):
    """Harmonics with a slow swell: float64 [n], band-limited below 3 kHz so that every rate from 8 kHz holds it."""
    t = np.arange(round(seconds * rate)) / rate
    tone = sum(np.sin(2 * np.pi * f0 * k * t) / k for k in range(1, 20))
    return level * tone / 1.6 * (0.6 + 0.4 * np.sin(2 * np.pi * 0.7 * t))


def encoded(pcm, rate=RATE, kind="WAV", subtype=None):
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def is_window(pcm, samples=SAMPLES):
    return (
        pcm.shape == (samples,)
        and pcm.dtype == np.float32
        and np.isfinite(pcm).all()
        and float(np.abs(pcm).max()) <= 1.0
    )


def correlation(a, b):
    return float(np.corrcoef(a, b)[0, 1])
