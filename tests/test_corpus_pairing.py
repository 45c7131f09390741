"""The pairing rule: ranges, monotone equations, and splits that share no speaker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("scipy", reason="building a corpus needs the train extra")

from voice_factory import CATALOGUE

from runtime.errors import CorpusInvalid
from training.corpus import pairing
from training.corpus.pairing import Scores
from training.corpus.voices import SCALE_LIMITS, SourceVoice, Speaker

SEXES = st.sampled_from("FM")
SCORE = st.floats(-2.4, 2.0)
SCORES = st.builds(Scores, SCORE, SCORE, SCORE, SCORE, SCORE)
SEEDS = st.integers(0, 2**32)


def source(f0_hz: float, formant_scale: float = 1.05, rate: float = 1.0) -> SourceVoice:
    empty = np.zeros(0, np.float32)
    return SourceVoice(empty, empty, empty, f0_hz, formant_scale, rate)


def drawn(seed: int, sex: str):
    voice = pairing.draw_voice(np.random.default_rng(seed), sex, source(190.0 if sex == "F" else 110.0))
    return voice, pairing.draw_face(np.random.default_rng(seed + 1), voice, sex, CATALOGUE)


@given(SCORES, SEXES, st.floats(-2.5, 2.5))
def test_age_stays_in_the_adult_range(scores, sex, noise):
    assert 18.0 <= pairing.age_of(scores, sex, noise) <= 75.0


@pytest.mark.parametrize(
    ("cue", "sex", "direction"),
    [
        ("breathiness", "F", 1),
        ("tremor", "M", 1),
        ("rate", "F", -1),
        ("rate", "M", -1),
        ("f0", "F", -1),
        ("f0", "M", 1),
    ],
)
@given(scores=SCORES, step=st.floats(0.05, 0.4))
def test_age_is_monotone_in_each_sign_of_age(cue, sex, direction, scores, step):
    older = replace(scores, **{cue: getattr(scores, cue) + direction * step})
    assert pairing.age_of(older, sex) > pairing.age_of(scores, sex)


@given(SCORES, st.floats(0.05, 0.4))
def test_a_longer_tract_and_a_deeper_voice_enlarge_face_jaw_and_neck(scores, step):
    length, jaw, neck = pairing.shape_of(scores)
    longer = pairing.shape_of(replace(scores, formant=scores.formant - step))
    deeper = pairing.shape_of(replace(scores, f0=scores.f0 - step))
    assert longer[0] > length
    assert longer[1] > jaw
    assert longer[2] > neck
    assert deeper[0] == length
    assert deeper[1] > jaw
    assert deeper[2] > neck


@settings(max_examples=60)
@given(SEEDS, SEXES)
def test_every_attribute_is_in_the_range_the_renderer_takes(seed, sex):
    _, face = drawn(seed, sex)
    assert (face.sex < 0.5) == (sex == "F")
    assert face.african + face.asian + face.caucasian == pytest.approx(1.0)
    assert min(face.african, face.asian, face.caucasian) >= 0.0
    assert 0.0 <= face.weight <= 1.0
    assert 0.0 <= face.muscle <= 1.0
    assert 0.0 <= face.stubble <= (1.0 if sex == "M" else 0.0)
    assert set(face.sliders) <= set(CATALOGUE.sliders)
    assert all(max(CATALOGUE.sliders[name], -0.9) <= value <= 0.9 for name, value in face.sliders.items())
    assert face.hair in (CATALOGUE.hair_female if sex == "F" else CATALOGUE.hair_male)
    assert face.brow in CATALOGUE.brows
    assert face.eyes in CATALOGUE.eye_colours
    assert all(0.0 <= channel <= 1.0 for channel in face.hair_colour)


@settings(max_examples=60)
@given(SEEDS)
def test_views_stay_within_the_documented_pose(seed):
    view = pairing.draw_view(np.random.default_rng(seed), CATALOGUE)
    assert abs(view.yaw) <= 12.0
    assert abs(view.pitch) <= 6.0
    assert abs(view.roll) <= 3.0
    assert all(0.0 <= channel <= 1.0 for channel in (*view.background, *view.garment))


@settings(max_examples=60)
@given(SEEDS, SEXES, st.floats(80.0, 250.0), st.floats(0.9, 1.2), st.floats(0.7, 1.3))
def test_a_voice_is_never_taken_further_than_the_vocoder_goes(seed, sex, f0_hz, formant_scale, rate):
    base = source(f0_hz, formant_scale, rate)
    voice = pairing.draw_voice(np.random.default_rng(seed), sex, base)
    for kind, factor in (
        ("f0", voice.f0_hz / f0_hz), ("formant", voice.formant_scale / formant_scale), ("rate", voice.rate / rate),
    ):  # fmt: skip
        low, high = SCALE_LIMITS[kind]
        assert low - 1e-9 <= factor <= high + 1e-9
    assert 0.0 <= voice.breathiness <= pairing.BREATH_TOP
    assert 0.0 <= voice.tremor <= pairing.TREMOR_TOP


def test_the_documented_share_of_the_age_is_in_the_voice():
    heard, seen = [], []
    for seed in range(1500):
        sex = "FM"[seed % 2]
        voice, face = drawn(seed * 7, sex)
        heard.append(pairing.age_of(pairing.voice_scores(voice, sex), sex))
        seen.append(face.age)
    share = np.corrcoef(heard, seen)[0, 1] ** 2
    assert share == pytest.approx(pairing.AGE_SHARE, abs=0.04)
    assert 12.0 < np.std(seen) < 19.0  # the whole range is used: 16.5 if it were uniform


def test_what_is_not_paired_does_not_depend_on_the_voice():
    young, old = source(110.0), source(150.0, 1.0, 0.8)
    faces = []
    for base, seed in ((young, 1), (old, 2)):
        voice = pairing.draw_voice(np.random.default_rng(seed), "M", base)
        faces.append(pairing.draw_face(np.random.default_rng(9), voice, "M", CATALOGUE))
    first, second = faces
    assert first.age != second.age
    assert (first.african, first.weight, first.sliders["nose/nose-hump"]) == (
        second.african, second.weight, second.sliders["nose/nose-hump"],
    )  # fmt: skip


def speakers(women: int, men: int) -> list[Speaker]:
    names = [(f"f{index:03d}", "F") for index in range(women)] + [(f"m{index:03d}", "M") for index in range(men)]
    return [Speaker(name, sex, Path(name), "") for name, sex in names]


@given(st.integers(3, 60), st.integers(3, 60))
def test_every_split_hears_both_sexes(women, men):
    splits = pairing.assign_splits(speakers(women, men))
    assert len(splits) == women + men
    for sex in "fm":
        assert {split for name, split in splits.items() if name.startswith(sex)} == {"train", "val", "test"}


def test_a_tenth_of_the_speakers_is_kept_for_validation_and_a_tenth_for_test():
    splits = list(pairing.assign_splits(speakers(100, 100)).values())
    assert (splits.count("val"), splits.count("test")) == (20, 20)


def test_too_few_speakers_are_refused():
    with pytest.raises(CorpusInvalid, match="at least three"):
        pairing.assign_splits(speakers(2, 9))


def test_speakers_are_used_evenly_and_sexes_alternate():
    people = speakers(5, 7)
    chosen = [pairing.choose_speaker(3, number, people) for number in range(70)]
    assert [speaker.sex for speaker in chosen[:4]] == ["F", "M", "F", "M"]
    assert {chosen.count(person) for person in people if person.sex == "F"} == {7}
    assert {chosen.count(person) for person in people if person.sex == "M"} == {5}
    assert chosen != [pairing.choose_speaker(4, number, people) for number in range(70)]
