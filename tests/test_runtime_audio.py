"""The audio entry: every form of speech becomes one window."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from audio_factory import RATE, SAMPLES, correlation, encoded, is_window, voice

from runtime.audio import WINDOWS, fit_window, load_speech, normalise_level
from runtime.errors import AudioSilent, AudioTooShort, InvalidArgument


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
