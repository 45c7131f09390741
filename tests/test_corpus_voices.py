"""Virtual speakers: what is asked for is what is heard, measured on synthetic vowels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import soundfile

pytest.importorskip("pyworld", reason="building a corpus needs the train extra")

from voice_factory import RATE, speech_folder, vowel

from runtime.errors import CorpusInvalid
from training.corpus import voices
from training.corpus.augment import add_noise, add_room, augment, limit_band
from training.corpus.voices import VoiceParameters


@pytest.fixture(scope="module")
def source():
    return voices.analyse(vowel(120.0))


def same_voice(source) -> VoiceParameters:
    return VoiceParameters(source.f0_hz, source.formant_scale, source.rate, 0.0, 0.0)


def spoken(source, voice, seconds=3.0, seed=0) -> np.ndarray:
    return voices.synthesise(source, voice, seconds, np.random.default_rng(seed)).astype(np.float64)


def test_a_vowel_is_measured_as_it_was_made(source):
    assert source.f0_hz == pytest.approx(120.0, rel=0.02)
    assert source.formant_scale == pytest.approx(1.0, abs=0.06)
    assert source.rate == pytest.approx(4.0 / voices.REFERENCE_RATE, rel=0.15)


@pytest.mark.parametrize("factor", [0.75, 1.0, 1.4])
def test_f0_moves_by_the_factor_asked(source, factor):
    heard = voices.analyse(spoken(source, replace(same_voice(source), f0_hz=source.f0_hz * factor)))
    assert heard.f0_hz == pytest.approx(120.0 * factor, rel=0.03)


@pytest.mark.parametrize("factor", [0.9, 1.12])
def test_formants_move_without_f0(source, factor):
    heard = voices.analyse(spoken(source, replace(same_voice(source), formant_scale=source.formant_scale * factor)))
    assert heard.formant_scale / source.formant_scale == pytest.approx(factor, abs=0.05)
    assert heard.f0_hz == pytest.approx(120.0, rel=0.03)


def test_rate_changes_the_pace_and_not_the_length(source):
    slow = spoken(source, replace(same_voice(source), rate=0.75 * source.rate))
    fast = spoken(source, replace(same_voice(source), rate=1.3 * source.rate))
    assert len(slow) == len(fast) == 3 * RATE
    assert voices.analyse(fast).rate > 1.4 * voices.analyse(slow).rate


def test_breathiness_raises_noise_and_tremor_moves_f0(source):
    plain, breathy, shaky = (
        voices.analyse(spoken(source, replace(same_voice(source), **change)))
        for change in ({}, {"breathiness": 0.7}, {"tremor": 0.05})
    )

    def noise(voice):
        return float(np.mean(voice.band_aperiodicity[voice.f0 > 0]))

    def shake(voice):
        """Share of the F0 contour's excursions that lies between 4 and 6.5 Hz."""
        contour = np.log(voice.f0[voice.f0 > 0])
        spectrum = np.abs(np.fft.rfft(contour - contour.mean())) ** 2
        hertz = np.fft.rfftfreq(len(contour), voices.FRAME_SECONDS)
        return float(spectrum[(hertz > 4.0) & (hertz < 6.5)].sum() / len(contour) ** 2)

    assert noise(breathy) > noise(plain) + 3.0
    assert shake(shaky) > 3 * shake(plain)


def test_a_clip_is_whole_finite_and_seeded(source):
    first, again, other = (spoken(source, same_voice(source), 7.0, seed) for seed in (1, 1, 2))
    assert len(first) == 7 * RATE
    assert np.isfinite(first).all()
    assert np.abs(first).max() <= 0.99
    assert np.sqrt(np.mean(first**2)) == pytest.approx(0.07, rel=0.05)
    assert (first == again).all()
    assert (first != other).any()


def test_the_analysis_is_kept_and_made_anew_when_damaged(tmp_path):
    speaker = voices.read_speakers(speech_folder(tmp_path / "speech", per_sex=1))[0]
    cache = tmp_path / "cache"
    assert not voices.is_cached(speaker, cache)
    first = voices.cached_source(speaker, cache)
    assert voices.is_cached(speaker, cache)
    (stored,) = cache.iterdir()
    again = voices.cached_source(speaker, cache)
    stored.write_bytes(b"damaged")
    anew = voices.cached_source(speaker, cache)
    for voice in (again, anew):
        np.testing.assert_array_equal(voice.log_envelope, first.log_envelope)
        assert (voice.f0_hz, voice.formant_scale, voice.rate) == (first.f0_hz, first.formant_scale, first.rate)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "speakers.csv"),
        ("file,speaker\na.flac,a\n", "sex"),
        ("file,speaker,sex\na.flac,a,X\n", "write F or M"),
        ("file,speaker,sex\nmissing.flac,a,F\n", "not found"),
        ("file,speaker,sex\na.flac,a,F\na.flac,a,F\n", "twice"),
        ("file,speaker,sex\n", "no speaker"),
    ],
)
def test_a_speech_folder_that_cannot_serve_is_refused(tmp_path, text, message):
    soundfile.write(tmp_path / "a.flac", vowel(120.0, 1.5), RATE)
    if text is not None:
        (tmp_path / "speakers.csv").write_text(text, encoding="utf-8")
    with pytest.raises(CorpusInvalid, match=message):
        voices.read_speakers(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not audio at all", None])
def test_a_recording_that_cannot_serve_is_named(tmp_path, content):
    path = tmp_path / "a.flac"
    if content is None:
        soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(RATE // 2), RATE)
    else:
        path.write_bytes(content)
    with pytest.raises(CorpusInvalid, match=r"a\.flac"):
        voices.cached_source(voices.Speaker("a", "F", path, ""), tmp_path / "cache")


def test_augmentation_is_seeded_and_bounded():
    pcm = vowel(120.0, 2.0).astype(np.float32)
    for seed in range(12):
        first = augment(pcm, RATE, np.random.default_rng(seed))
        np.testing.assert_array_equal(first, augment(pcm, RATE, np.random.default_rng(seed)))
        assert first.shape == pcm.shape
        assert np.isfinite(first).all()
        assert np.abs(first).max() <= 0.99


@pytest.mark.parametrize("seed", range(6))
def test_noise_has_the_ratio_asked(seed):
    pcm = vowel(120.0, 2.0)
    noise = add_noise(pcm, RATE, np.random.default_rng(seed), 20.0) - pcm
    assert 10 * np.log10(np.mean(pcm**2) / np.mean(noise**2)) == pytest.approx(20.0, abs=0.1)


def test_a_room_rings_on_and_a_band_limit_removes_the_top():
    click = np.zeros(RATE)
    click[100] = 1.0
    ringing = add_room(click, RATE, np.random.default_rng(0))
    assert np.abs(ringing[:100]).max() < 1e-9
    assert np.sum(ringing[150:] ** 2) > 1e-3
    noise = np.random.default_rng(0).standard_normal(RATE)
    spectrum = np.abs(np.fft.rfft(limit_band(noise, RATE, np.random.default_rng(1)))) ** 2
    assert spectrum[7800:].mean() < 0.2 * spectrum[1000:3000].mean()


def test_tremor_moves_loudness_at_five_hertz(source):
    """The share of the 4-6.5 Hz band in the loudness contour grows with tremor."""

    def swing(tremor):
        pcm = spoken(source, replace(same_voice(source), tremor=tremor), 6.0)
        level = np.log(np.sqrt((pcm.reshape(-1, 320) ** 2).mean(axis=1)) + 1e-4)
        power = np.abs(np.fft.rfft(level - level.mean())) ** 2
        hertz = np.fft.rfftfreq(len(level), 0.02)
        return power[(hertz > 4) & (hertz < 6.5)].sum() / power[hertz < 15].sum()

    assert swing(0.1) > 1.5 * swing(0.0)
