"""The audio entry: every form of speech becomes one window, every bad input its own error."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from runtime.audio import WINDOWS, fit_window, load_speech, normalise_level
from runtime.errors import (
    AudioNonFinite,
    AudioNotFound,
    AudioSilent,
    AudioTooShort,
    AudioUnreadable,
    InvalidArgument,
    S2FError,
)

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


# Forms of speech that work


def test_a_path_bytes_and_an_array_are_the_same_speech(tmp_path):
    pcm = voice(7).astype(np.float32)
    data = encoded(pcm, subtype="FLOAT")
    path = tmp_path / "voice.wav"
    path.write_bytes(data)
    results = [load_speech(x) for x in (path, str(path), data, bytearray(data), memoryview(data), (pcm, RATE))]
    assert is_window(results[0])
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


@pytest.mark.parametrize("rate", [1000, 8000, 11025, 22050, 44100, 48000, 96000, 192000, 384000])
def test_any_rate_hears_the_same_voice(rate):
    f0 = 140.0 if rate > 4000 else 20.0  # twenty harmonics must fit below half the rate
    result = load_speech((voice(6.5, rate, f0=f0), rate))
    assert is_window(result)
    expected = normalise_level(voice(6, f0=f0))
    assert correlation(result[200:-200], expected[200:-200]) > 0.999


@pytest.mark.parametrize("channels", [2, 6, 33])
def test_channels_are_mixed_down_in_either_orientation(channels):
    pcm = voice(6.5, 48000)
    frames = np.stack([pcm * gain for gain in np.linspace(0.5, 1.5, channels)], axis=1)
    expected = load_speech((pcm, 48000))
    for array in (frames, frames.T):
        np.testing.assert_allclose(load_speech((array, 48000)), expected, atol=1e-5)
    np.testing.assert_allclose(load_speech(encoded(frames, 48000, subtype="DOUBLE")), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("convert", "tolerance"),
    [
        (lambda x: np.round(x * 32767).astype(np.int16), 1e-4),
        (lambda x: np.round(x * 32767).astype(">i2"), 1e-4),
        (lambda x: np.round(x * 2147483647).astype(np.int32), 1e-6),
        (lambda x: np.round(x * 127 + 128).astype(np.uint8), 2e-2),
        (lambda x: x.astype(np.float16), 1e-3),
        (lambda x: x.astype(np.float32), 1e-6),
        (lambda x: x * 32767, 1e-6),  # int16 values that became floats on their way
        (np.atleast_2d, 0.0),
        (np.ma.masked_invalid, 0.0),
        (lambda x: x[::-1][::-1], 0.0),
    ],
)
def test_sample_types(convert, tolerance):
    pcm = voice(6.5, level=0.6)
    np.testing.assert_allclose(load_speech((convert(pcm), RATE)), load_speech((pcm, RATE)), atol=tolerance)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "W64", "RF64", "CAF"])
def test_file_formats(kind):
    result = load_speech(encoded(voice(7, 22050), 22050, kind))
    assert is_window(result)
    # MP3 starts late by the delay of its encoder, so waveforms are not compared for it
    if kind != "MP3":
        assert correlation(result[200:-200], voice(6)[200:-200]) > 0.98


def test_rates_may_be_numpy_or_whole_floats():
    pcm = voice(6.5)
    for rate in (np.int64(RATE), float(RATE), np.float32(RATE)):
        np.testing.assert_array_equal(load_speech((pcm, rate)), load_speech((pcm, RATE)))


def test_input_is_left_alone():
    pcm = voice(7) * 3
    before = pcm.copy()
    pcm.flags.writeable = False
    result = load_speech((pcm, RATE))
    result[:] = 0
    np.testing.assert_array_equal(pcm, before)


# The window and the level


def test_fit_window_repeats_then_cuts():
    pcm = np.arange(5, dtype=np.float32)
    np.testing.assert_array_equal(fit_window(pcm, 12), [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1])
    np.testing.assert_array_equal(fit_window(pcm, 5, "loudest"), pcm)
    np.testing.assert_array_equal(fit_window(pcm, 3), [0, 1, 2])
    np.testing.assert_array_equal(fit_window(pcm, 3, "centre"), [1, 2, 3])
    assert fit_window(pcm, 5) is not pcm
    with pytest.raises(AudioTooShort):
        fit_window(pcm[:0], 5)
    with pytest.raises(InvalidArgument):
        fit_window(pcm.reshape(1, 5), 5)
    with pytest.raises(InvalidArgument):
        fit_window(pcm, 5, "end")


@pytest.mark.parametrize("position", [0, 31, 70, 84])
def test_loudest_window_holds_the_loud_part(position):
    pcm = voice(90, level=0.01)
    loud = slice(position * RATE, (position + 6) * RATE)
    pcm[loud] += voice(6, level=0.4, f0=200)
    for result in (fit_window(pcm, SAMPLES, "loudest"), load_speech((pcm, RATE), window="loudest")):
        assert correlation(result, pcm[loud]) > 0.99
    in_file = load_speech(encoded(pcm, subtype="DOUBLE"), window="loudest")
    np.testing.assert_array_equal(in_file, load_speech((pcm, RATE), window="loudest"))


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_centre_of_a_file_is_its_centre(rate, kind):
    pcm = voice(20, rate) * np.linspace(0.1, 1, 20 * rate)
    middle = voice(20)[7 * RATE : 13 * RATE] * np.linspace(0.1, 1, 20 * RATE)[7 * RATE : 13 * RATE]
    result = load_speech(encoded(pcm, rate, kind), window="centre")
    assert correlation(result, middle) > 0.999


def test_short_speech_is_repeated_after_resampling():
    result = load_speech((voice(2, 48000), 48000))
    np.testing.assert_allclose(result[:32000], result[32000:64000])
    np.testing.assert_allclose(result[:32000], result[64000:])


def test_the_gain_and_offset_of_a_microphone_do_not_matter():
    pcm = voice(7, level=0.3)
    expected = load_speech((pcm, RATE))
    assert np.sqrt(np.mean(np.square(expected))) == pytest.approx(0.05, rel=1e-3)
    for other in (pcm * 0.01, pcm * 3, pcm + 0.1):
        np.testing.assert_allclose(load_speech((other, RATE)), expected, atol=2e-6)


def test_level_never_lets_a_peak_pass_one():
    pcm = np.zeros(SAMPLES)
    pcm[1000] = 1.0
    result = normalise_level(pcm)
    assert np.abs(result).max() == pytest.approx(1.0)
    assert np.sqrt(np.mean(np.square(result))) < 0.05
    assert not normalise_level(np.full(100, 0.7)).any()
    assert normalise_level(np.zeros(0)).shape == (0,)


def test_other_windows_than_six_seconds():
    assert is_window(load_speech((voice(3), RATE), samples=8000), 8000)
    assert is_window(load_speech((voice(3), RATE), samples=22050, sample_rate=22050), 22050)
    assert is_window(load_speech((voice(3), RATE), samples=100), 100)


# Long recordings


def three_hours(path, rate=8000):
    """A WAV of three hours: loud minute two, silence after five minutes as a hole in the file."""
    header = encoded(np.zeros(1), rate)[:44]
    size = 3 * 3600 * rate * 2
    pcm = voice(300, rate, level=0.05)
    pcm[120 * rate : 126 * rate] *= 10
    with path.open("wb") as file:
        file.write(header[:4] + (36 + size).to_bytes(4, "little") + header[8:40] + size.to_bytes(4, "little"))
        file.write((pcm * 32767).astype("<i2").tobytes())
        file.truncate(44 + size)
    return pcm


@pytest.mark.parametrize("window", WINDOWS)
def test_three_hours_work_with_bounded_memory(tmp_path, window):
    pcm = three_hours(tmp_path / "long.wav")
    tracemalloc.start()
    try:
        if window == "centre":
            with pytest.raises(AudioSilent, match="loudest"):
                load_speech(tmp_path / "long.wav", window=window)
        else:
            result = load_speech(tmp_path / "long.wav", window=window)
            start = 0 if window == "start" else 120 * 8000
            expected = load_speech((pcm[start : start + 48000], 8000))
            assert correlation(result, expected) > 0.999
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()


def test_three_hours_in_memory():
    pcm = np.zeros((3 * 3600 * 8000, 1), np.int16)
    pcm[-48000 * 2 :, 0] = voice(12, 8000) * 32767
    with pytest.raises(AudioSilent):
        load_speech((pcm, 8000))


# What is refused


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


# Properties

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
