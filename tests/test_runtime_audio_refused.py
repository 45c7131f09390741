"""The audio entry: every bad input has its own error, and any input gives a window or one of ours."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from audio_factory import RATE, encoded, is_window, voice
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from runtime.audio import WINDOWS, load_speech
from runtime.errors import (
    AudioNonFinite,
    AudioNotFound,
    AudioSilent,
    AudioTooShort,
    AudioUnreadable,
    InvalidArgument,
    S2FError,
)


@pytest.mark.parametrize("count", [0, 1, 2, 100, 7999])
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_hardly_any_samples(count, value):
    pcm = np.full(count, value)
    with pytest.raises(AudioTooShort):
        load_speech((pcm, RATE))
    with pytest.raises(AudioTooShort):
        load_speech(encoded(pcm))


def test_half_a_second_is_enough_and_less_is_not():
    assert is_window(load_speech((voice(0.5), RATE)))
    assert is_window(load_speech((voice(0.5, 44100), 44100)))
    with pytest.raises(AudioTooShort, match=r"0\.49 s"):
        load_speech((voice(0.49), RATE))


def test_a_word_in_long_silence_is_too_short():
    pcm = np.zeros(5 * RATE)
    pcm[RATE : RATE + 6400] = voice(0.4)
    with pytest.raises(AudioTooShort, match="signal"):
        load_speech((pcm, RATE))


@pytest.mark.parametrize("level", [0.0, 1e-9, 0.0005])
def test_silence(level):
    noise = np.random.default_rng(0).standard_normal(7 * RATE) * level
    for offset in (0.0, 0.3):
        with pytest.raises(AudioSilent):
            load_speech((noise + offset, RATE))
    with pytest.raises(AudioSilent):
        load_speech(encoded(noise))


def test_quiet_speech_is_speech():
    assert is_window(load_speech((voice(3, level=0.01), RATE)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_non_finite_samples(bad, dtype):
    pcm = voice(8).astype(dtype)
    for position in (0, 5000, -1):
        damaged = pcm.copy()
        damaged[position] = bad
        with pytest.raises(AudioNonFinite):
            load_speech((damaged, RATE))
    if dtype is not np.float16:
        damaged = pcm.copy()
        damaged[5000] = bad
        for window in WINDOWS:
            with pytest.raises(AudioNonFinite):
                load_speech(encoded(np.tile(damaged[:48000], 5), subtype="DOUBLE"), window=window)


def test_missing_file(tmp_path):
    for path in (tmp_path / "none.wav", "", "none\0.wav", tmp_path / "a" / "b.wav"):
        with pytest.raises(AudioNotFound):
            load_speech(path)
    file = tmp_path / "file.wav"
    file.write_bytes(encoded(voice(1)))
    with pytest.raises(AudioNotFound):
        load_speech(file / "inside.wav")


def test_directory_pipe_and_empty_file(tmp_path):
    (tmp_path / "empty.wav").touch()
    paths = [tmp_path, tmp_path / "empty.wav"]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.wav")
        paths.append(tmp_path / "pipe.wav")
    for path in paths:
        with pytest.raises(AudioUnreadable):
            load_speech(path)
    with pytest.raises(AudioUnreadable):
        load_speech(b"")


@pytest.mark.parametrize("name", ["x.wav", "x.raw", "x.mp3", "x.txt", "x"])
@pytest.mark.parametrize("content", [b"not audio at all. " * 500, b"RIFF", bytes(5000), b"\xff" * 5000])
def test_what_is_not_audio(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    for speech in (tmp_path / name, content):
        with pytest.raises(AudioUnreadable):
            load_speech(speech)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "AIFF", "AU", "W64", "RF64", "CAF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_files(tmp_path, kind, share):
    data = encoded(voice(4), kind=kind)
    cut = data[: int(len(data) * share)]
    path = tmp_path / f"cut.{kind.lower()}"
    path.write_bytes(cut)
    for speech in (cut, path):
        for window in WINDOWS:
            with pytest.raises(AudioUnreadable):
                load_speech(speech, window=window)


@pytest.mark.parametrize("kind", ["OGG", "MP3"])
def test_formats_that_do_not_tell_are_used_as_far_as_they_go(kind):
    data = encoded(voice(20), kind=kind)
    for window in WINDOWS:
        assert is_window(load_speech(data[: len(data) * 2 // 3], window=window))


def test_centre_of_an_mp3_is_its_centre():
    pcm = np.concatenate([voice(10, level=0.05, f0=90), voice(6, level=0.2), voice(10, level=0.05, f0=90)])
    inner = load_speech(encoded(pcm, kind="MP3"), window="centre")[RATE:-RATE]
    spectrum = np.abs(np.fft.rfft(inner))  # 4 s: bins of a quarter of a hertz
    assert spectrum[140 * 4] > 100 * spectrum[90 * 4]


@pytest.mark.parametrize("window", WINDOWS)
def test_an_mp3_without_its_length_is_heard_as_far_as_it_is_known(window):
    data = encoded(voice(20), kind="MP3")
    first_frame_of_sound = data.find(data[:2], 64)  # before it stands the frame that tells the length
    assert is_window(load_speech(data[first_frame_of_sound:], window=window))


def test_a_wav_streamed_to_a_pipe_has_no_length_and_works():
    data = bytearray(encoded(voice(7)))
    place = data.index(b"data")
    data[4:8] = data[place + 4 : place + 8] = b"\xff\xff\xff\xff"
    assert is_window(load_speech(bytes(data)))


def test_a_flac_without_a_length_is_refused_with_a_cure():
    data = bytearray(encoded(voice(7), kind="FLAC"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    with pytest.raises(AudioUnreadable, match="Convert"):
        load_speech(bytes(data))


@pytest.mark.parametrize("rate", [0, -1, 999, 384001, 10**12, 10**400])
def test_rates_out_of_range(rate):
    with pytest.raises(AudioUnreadable, match="Hz"):
        load_speech((voice(1), rate))


@pytest.mark.parametrize("rate", [None, True, "16000", 16000.5, float("nan"), [16000], np.zeros(2)])
def test_rates_that_are_none(rate):
    with pytest.raises(InvalidArgument, match="rate"):
        load_speech((voice(1), rate))


@pytest.mark.parametrize(
    "array",
    [np.array(0.5), np.zeros((4, 4, 4)), np.zeros(9, bool), np.zeros(9, complex), np.array(["a"])],
)
def test_arrays_that_are_not_audio(array):
    with pytest.raises(AudioUnreadable):
        load_speech((array, RATE))


@pytest.mark.parametrize("speech", [None, 5, 1.5, [1, 2], (1, 2), ([0.0], 16000), (), (np.zeros(9),), object()])
def test_speech_that_is_none(speech):
    with pytest.raises(InvalidArgument):
        load_speech(speech)


@pytest.mark.parametrize(
    "options",
    [
        {"window": "end"},
        {"window": None},
        {"window": ["start"]},
        {"samples": 0},
        {"samples": True},
        {"samples": 1.5},
        {"samples": 10**12},
        {"sample_rate": 0},
        {"sample_rate": "16000"},
    ],
)
def test_options_out_of_range(options):
    with pytest.raises(InvalidArgument):
        load_speech((voice(1), RATE), **options)


def test_names_are_neither_logged_nor_printed_and_messages_are_printable(tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "secret-name.wav"
    path.write_bytes(encoded(voice(1)))
    load_speech(path)
    path.write_bytes(encoded(voice(1))[:2000])
    with pytest.raises(AudioUnreadable, match="secret-name"):
        load_speech(path)
    assert "secret" not in caplog.text + "".join(capfd.readouterr())
    with pytest.raises(AudioNotFound) as caught:
        load_speech("red\x1b[31m\udc80.wav")
    assert str(caught.value).isprintable()


def test_importing_is_cheap():
    code = "import sys, runtime.audio; sys.stdout.write(str([m for m in ('soundfile', 'soxr') if m in sys.modules]))"
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout == "[]"


ARRAYS = hnp.arrays(
    dtype=st.sampled_from(["u1", "i1", "<i2", ">i2", "i4", "i8", "f2", "f4", ">f4", "f8", "?", "c8", "U3", "O"]),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=40),
)


def window_or_our_error(speech, **options):
    try:
        result = load_speech(speech, **options)
    except S2FError:
        return
    assert is_window(result)


@settings(max_examples=150, deadline=None)
@given(ARRAYS, st.integers() | st.floats() | st.none(), st.sampled_from(WINDOWS))
def test_any_array(array, rate, window):
    window_or_our_error((array, rate), window=window)


@settings(max_examples=120, deadline=None)
@given(
    array=hnp.arrays(st.sampled_from(["u1", "i2", "i4", "f2", "f4", "f8"]), st.integers(1, 60)),
    repeats=st.integers(100, 700),
    channels=st.integers(1, 8),
    rate=st.integers(1000, 60000) | st.sampled_from([8000, 16000, 44100, 384000]),
    window=st.sampled_from(WINDOWS),
)
def test_any_samples_at_any_rate(array, repeats, channels, rate, window):
    pcm = np.tile(array, repeats)
    window_or_our_error((pcm[: pcm.size // channels * channels].reshape(-1, channels), rate), window=window)


FILES = [encoded(voice(0.7), kind=kind) for kind in ("WAV", "FLAC", "OGG", "AIFF")]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FILES), st.floats(0, 1), st.integers(0, 60), st.binary(max_size=12), st.sampled_from(WINDOWS))
def test_any_damage_to_a_file(data, place, length, noise, window):
    start = int(place**3 * len(data))  # more often in the header
    window_or_our_error(data[:start] + noise + data[start + length :], window=window)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes(data):
    window_or_our_error(data)
