"""Recordings of real people, where the variable S2F_SPEECH names a folder of them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from runtime.audio import WINDOWS, fit_window, load_speech, normalise_level

FOLDER = os.environ.get("S2F_SPEECH", "")
FILES = sorted(Path(FOLDER).glob("*.flac"))[:40] if FOLDER else []

pytestmark = pytest.mark.skipif(not FILES, reason="set the variable S2F_SPEECH to a folder of FLAC recordings")


def test_every_recording_gives_a_window():
    for path in FILES:
        for window in WINDOWS:
            pcm = load_speech(path, window=window)
            assert pcm.shape == (96000,)
            assert np.abs(pcm).max() <= 1.0
            assert 0.03 < np.sqrt(np.mean(np.square(pcm))) <= 0.0501


def test_window_of_a_file_is_the_window_of_its_samples():
    for path in FILES[:10]:
        pcm, rate = soundfile.read(path, dtype="float64")
        assert rate == 16000
        for window in WINDOWS:
            expected = normalise_level(fit_window(pcm, 96000, window))
            np.testing.assert_allclose(load_speech(path, window=window), expected, atol=1e-6)


def test_speech_survives_being_stored_otherwise(tmp_path):
    """44.1 kHz stereo 24 bit is the same window as the 16 kHz mono original."""
    soxr = pytest.importorskip("soxr")
    for path in FILES[:5]:
        pcm, rate = soundfile.read(path, dtype="float64")
        high = soxr.resample(pcm, rate, 44100)
        soundfile.write(tmp_path / "x.wav", np.stack([high, high], axis=1), 44100, subtype="PCM_24")
        original, other = load_speech(path), load_speech(tmp_path / "x.wav")
        assert np.corrcoef(original, other)[0, 1] > 0.995


def test_different_people_give_different_windows():
    windows = {load_speech(path).tobytes() for path in FILES}
    assert len(windows) == len(FILES)
