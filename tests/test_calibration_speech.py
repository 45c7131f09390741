"""What a calibration hears, the ways it spoils it, and the notebook an interrupted one leaves."""

from __future__ import annotations

import os

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.notebook import Notebook
from calibration.speech import FEWEST_CLIPS, KINDS, SUFFIXES, read_clips
from runtime.audio import TARGET_RMS, load_speech
from runtime.bench import synthetic_speech
from runtime.errors import CorpusInvalid, InvalidArgument, OutputUnwritable
from runtime.specs import SAMPLE_RATE, SAMPLES


def record(path, seed=0, seconds=1.0):
    """A recording that is no other's; the format goes by the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, synthetic_speech(seed=seed)[: round(seconds * SAMPLE_RATE)], SAMPLE_RATE)
    return path


def record_many(folder, count, first=0):
    for index in range(count):
        record(folder / f"{index:03}.wav", first + index, 0.7)
    return folder


# Reading


def test_a_folder_without_recordings_is_refused(tmp_path):
    missing, empty = tmp_path / "missing", tmp_path / "empty"
    empty.mkdir()
    for folder in (missing, empty):
        with pytest.raises(CorpusInvalid, match=rf"{folder} holds no recordings .*--data"):
            read_clips(folder)
    (empty / "notes.txt").write_text("no sound")
    (empty / "folder.wav").mkdir()
    with pytest.raises(CorpusInvalid, match="holds no recordings"):
        read_clips(empty, force=True)
    with pytest.raises(CorpusInvalid, match="holds no recordings"):
        read_clips(record(tmp_path / "a.wav"), force=True)


def test_recordings_are_read_in_the_order_of_their_names(tmp_path):
    paths = [record(tmp_path / name, seed) for seed, name in enumerate(["b.wav", "A.FLAC", "deep/er/c.wav", "d.ogg"])]
    clips = read_clips(tmp_path, force=True)
    assert clips.refused == 0
    assert clips.statement == "4 recordings"
    assert len(clips.windows) == 4
    for window, path in zip(clips.windows, sorted(paths), strict=True):
        assert window.dtype == np.float32
        assert window.shape == (SAMPLES,)
        np.testing.assert_array_equal(window, load_speech(path))
    assert ".flac" in SUFFIXES


def test_the_digest_is_of_the_samples(tmp_path):
    first, second = record_many(tmp_path / "a", 3), record_many(tmp_path / "b", 3)
    digest = read_clips(first, force=True).digest
    assert read_clips(second, force=True).digest == digest
    assert len(digest) == 64
    record(second / "001.wav", seed=99)
    assert read_clips(second, force=True).digest != digest


def test_what_is_no_speech_is_left_out_and_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    good = record_many(tmp_path, 2)
    (good / "junk.mp3").write_bytes(b"no sound at all")
    (good / "nothing.wav").write_bytes(b"")
    soundfile.write(good / "silent.wav", np.zeros(SAMPLE_RATE), SAMPLE_RATE)
    record(good / "short.wav", seconds=0.2)
    soundfile.write(good / "nan.wav", np.full(SAMPLE_RATE, np.nan, np.float32), SAMPLE_RATE, subtype="FLOAT")
    clips = read_clips(good, force=True)
    assert (len(clips.windows), clips.refused) == (2, 5)
    assert clips.statement == "2 recordings, 5 more could not be used"
    for name in ("junk", "nothing", "silent", "short", "nan"):
        assert f"{name}." in caplog.text
    assert clips.digest == read_clips(record_many(tmp_path / "good", 2), force=True).digest


def test_nothing_usable_says_what_was_wrong_with_the_first(tmp_path):
    soundfile.write(tmp_path / "silent.wav", np.zeros(SAMPLE_RATE), SAMPLE_RATE)
    (tmp_path / "tail.flac").write_bytes(b"junk")
    with pytest.raises(CorpusInvalid, match=r"None of the 2 recordings .*silent\.wav"):
        read_clips(tmp_path, force=True)


def test_few_different_voices_are_refused(tmp_path):
    record_many(tmp_path, FEWEST_CLIPS - 1)
    for copy in range(3):
        record(tmp_path / f"copy-{copy}.wav", seed=0, seconds=0.7)
    with pytest.raises(InvalidArgument, match=rf"holds {FEWEST_CLIPS - 1} different .*--force"):
        read_clips(tmp_path)
    assert len(read_clips(tmp_path, force=True).windows) == FEWEST_CLIPS + 2
    record(tmp_path / "another.wav", seed=500)
    assert len(read_clips(tmp_path).windows) == FEWEST_CLIPS + 3


# Spoiling


def spoilt(kind, pcm, seed):
    return KINDS[kind](pcm, np.random.default_rng(seed))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.integers(0, 1000), st.integers(0, 5))
def test_a_spoilt_clip_is_still_a_window(kind, seed, voice):
    pcm = load_speech((synthetic_speech(seed=voice), SAMPLE_RATE))
    before = pcm.copy()
    made = spoilt(kind, pcm, seed)
    np.testing.assert_array_equal(pcm, before)
    assert made.dtype == np.float32
    assert made.shape == (SAMPLES,)
    assert np.abs(made).max() <= 1
    rms = float(np.sqrt(np.mean(made.astype(np.float64) ** 2)))
    assert rms == pytest.approx(TARGET_RMS, rel=1e-3) or np.abs(made).max() == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(spoilt(kind, pcm, seed), made)
    other = spoilt(kind, pcm, seed + 1)
    assert np.array_equal(other, made) == (kind == "as it is")


def voice():
    return load_speech((synthetic_speech(seed=1), SAMPLE_RATE))


def test_a_clip_as_it_is():
    np.testing.assert_array_equal(spoilt("as it is", voice(), 0), voice())


def test_mostly_silent_is_loud_for_a_second_and_a_half():
    made = spoilt("mostly silent", voice(), 0)
    blocks = np.sqrt(np.mean(made.reshape(-1, 1600).astype(np.float64) ** 2, axis=1))  # 0.1 s
    quiet = blocks < 0.05 * blocks.max()
    assert 40 <= quiet.sum() <= 50  # of 60
    assert blocks.min() > 0


def test_noise_stands_ten_decibels_below_speech():
    pcm, ratios = voice().astype(np.float64), []
    for seed in range(5):
        made = spoilt("noisy", voice(), seed).astype(np.float64)
        speech = pcm * (made @ pcm) / (pcm @ pcm)
        ratios.append(10 * np.log10(np.sum(speech**2) / np.sum((made - speech) ** 2)))
    assert np.mean(ratios) == pytest.approx(10, abs=1)


def test_a_far_voice_echoes_into_silence():
    pcm = voice()
    pcm[SAMPLES // 2 :] = 0
    made = spoilt("far field", pcm, 0).astype(np.float64)
    after = made[SAMPLES // 2 :] - made[-1600:].mean()
    levels = [np.sqrt(np.mean(after[i * 1600 : (i + 1) * 1600] ** 2)) for i in range(8)]  # 0.1 s each
    assert levels[0] > 10 * levels[3] > 10 * levels[6]


# The notebook

WHAT = {"bundle": "abc", "options": {"portraits": 4}}


def test_a_piece_is_there_for_the_same_command(tmp_path):
    target = tmp_path / "deep" / "bundle"
    first = Notebook(target, WHAT)
    assert not first.resumed
    assert first.read("a.npz") is None
    first.write("a.npz", b"one")
    first.write("a.npz", b"two")
    second = Notebook(target, {"options": {"portraits": 4}, "bundle": "abc"})
    assert second.resumed
    assert second.read("a.npz") == b"two"
    assert second.read("b.npz") is None
    assert not target.exists()


def test_pieces_of_another_command_are_thrown_away(tmp_path):
    target = tmp_path / "bundle"
    Notebook(target, WHAT).write("a.npz", b"old")
    other = Notebook(target, {**WHAT, "bundle": "abd"})
    assert not other.resumed
    assert other.read("a.npz") is None
    again = Notebook(target, WHAT)
    assert not again.resumed
    assert again.read("a.npz") is None


def test_a_torn_notebook_is_begun_anew(tmp_path):
    target = tmp_path / "bundle"
    book = Notebook(target, WHAT)
    book.write("a.npz", b"old")
    (book.folder / "command.json").write_bytes(b"{")
    again = Notebook(target, WHAT)
    assert not again.resumed
    assert again.read("a.npz") is None


def test_notebooks_of_two_targets_are_apart(tmp_path):
    first, second = Notebook(tmp_path / "a", WHAT), Notebook(tmp_path / "b", WHAT)
    first.write("piece", b"a")
    second.write("piece", b"b")
    second.remove()
    assert first.read("piece") == b"a"
    assert second.read("piece") is None


def test_nothing_is_left_after_the_last_page(tmp_path):
    book = Notebook(tmp_path / "bundle", WHAT)
    book.write("a.npz", b"old")
    book.remove()
    book.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_notebook_that_cannot_be_kept(tmp_path):
    (tmp_path / ".bundle.calibration").write_bytes(b"a file, and somebody else's")
    with pytest.raises(OutputUnwritable, match=r"\.bundle\.calibration is in the way"):
        Notebook(tmp_path / "bundle", WHAT)
    assert (tmp_path / ".bundle.calibration").is_file()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_nobody_may_write_in(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputUnwritable):
        Notebook(tmp_path / "bundle", WHAT)
