"""What a recording goes through before a listener hears it: a room, noise, a narrow band, a level. All seeded.

Of the clips, 25 % stay clean (only the level varies). The others get each effect on its own coin: a small room (50 %),
noise at 15-35 dB SNR (80 %: pink, white or babble-like), a band limit (20 %: telephone 300-3400 Hz, or a low-pass at
3.5-7 kHz).
"""

from __future__ import annotations

import numpy as np
from scipy.signal import butter, fftconvolve, sosfilt

CLEAN_SHARE, ROOM_SHARE, NOISE_SHARE, BAND_SHARE = 0.25, 0.50, 0.80, 0.20


def augment(pcm: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [samples] in, float32 [samples] out, peak <= 0.99; the level is drawn between -32 and -18 dB RMS."""
    signal = pcm.astype(np.float64)
    if rng.random() >= CLEAN_SHARE:
        if rng.random() < ROOM_SHARE:
            signal = add_room(signal, sample_rate, rng)
        if rng.random() < NOISE_SHARE:
            signal = add_noise(signal, sample_rate, rng, float(rng.uniform(15.0, 35.0)))
        if rng.random() < BAND_SHARE:
            signal = limit_band(signal, sample_rate, rng)
    level = 10.0 ** (rng.uniform(-32.0, -18.0) / 20.0)
    signal *= level / max(_rms(signal), 1e-9)
    return (signal / max(1.0, float(np.abs(signal).max()) / 0.99)).astype(np.float32)


def add_room(signal: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Convolve with a direct path and an exponentially decaying noise tail: RT60 0.12-0.5 s, tail 6-18 dB below it."""
    decay = float(rng.uniform(0.12, 0.5))
    count = int(decay * sample_rate)
    tail = rng.standard_normal(count) * np.exp(-6.908 * np.arange(count) / count)
    onset = int(rng.uniform(0.002, 0.012) * sample_rate)  # the first wall is 0.7 to 4 m of detour away
    tail[:onset] = 0.0
    tail = sosfilt(butter(1, 3500.0, fs=sample_rate, output="sos"), tail)  # walls and air swallow the highs first
    tail *= 10.0 ** (-rng.uniform(6.0, 18.0) / 20.0) / max(float(np.sqrt(np.sum(tail**2))), 1e-9)
    tail[0] = 1.0
    return fftconvolve(signal, tail)[: len(signal)]


def add_noise(signal: np.ndarray, sample_rate: int, rng: np.random.Generator, snr_db: float) -> np.ndarray:
    """Add pink, white or babble-like noise at `snr_db` over the whole clip."""
    kind = int(rng.integers(3))
    noise = rng.standard_normal(len(signal))
    if kind != 1:
        noise = _coloured(noise, sample_rate, babble=kind == 2)
    if kind == 2:
        noise *= _syllables(len(signal), sample_rate, rng)
    return signal + noise * (_rms(signal) * 10.0 ** (-snr_db / 20.0) / max(_rms(noise), 1e-9))


def limit_band(signal: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Telephone band 300-3400 Hz, or a low-pass of a cheap microphone at 3.5-7 kHz (Butterworth, order 4)."""
    if rng.random() < 0.5:
        return sosfilt(butter(4, (300.0, 3400.0), btype="bandpass", fs=sample_rate, output="sos"), signal)
    return sosfilt(butter(4, float(rng.uniform(3500.0, 7000.0)), fs=sample_rate, output="sos"), signal)


def _coloured(noise: np.ndarray, sample_rate: int, *, babble: bool) -> np.ndarray:
    """Shape white noise to 1/f (pink), or like speech (flat to 500 Hz, then -9 dB per octave)."""
    hertz = np.fft.rfftfreq(len(noise), 1.0 / sample_rate)
    gain = 1.0 / (1.0 + (hertz / 500.0) ** 1.5) if babble else 1.0 / np.sqrt(np.maximum(hertz, 40.0))
    gain[hertz < 40.0] = 0.0
    return np.fft.irfft(np.fft.rfft(noise) * gain, len(noise))


def _syllables(samples: int, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """A gain that swells at the pace of many overlapping syllables, 0.3…1.7."""
    count = max(int(samples / sample_rate * 6), 2)
    return np.interp(np.arange(samples), np.linspace(0, samples, count), rng.uniform(0.3, 1.7, count))


def _rms(signal: np.ndarray) -> float:
    return float(np.sqrt(np.mean(signal**2)))
