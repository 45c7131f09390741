"""Streams: samples of any kind and cut in, portraits that settle out, and the room they take."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_factory import RATE, Block, Everything, Sound, open_on, run, same, speech, until, workers
from tiny_bundle import SHORTCUT, write_tiny_bundle

import runtime
from runtime import Pipeline
from runtime.audio import fit_window, normalise_level
from runtime.errors import (
    AudioNonFinite,
    AudioSilent,
    AudioTooShort,
    BackendMissing,
    Closed,
    InvalidArgument,
    S2FError,
    StepsUnavailable,
    TimedOut,
)
from runtime.executor import Clock, Work
from runtime.gate import Energy, Gate

FOLDER = os.environ.get("S2F_SPEECH", "")
FILES = sorted(Path(FOLDER).glob("*.flac"))[:5] if FOLDER else []


@pytest.fixture(params=["cpu", "tensorrt"])
def pipeline(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    with open_on(request.param, tmp_path, monkeypatch) as opened:
        yield opened


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", arm=SHORTCUT)


@pytest.fixture(scope="module")
def shared(bundle: Path) -> Iterator[Pipeline]:
    with runtime.load(bundle, device="cpu", threads=1) as loaded:
        yield loaded


@pytest.fixture
def cpu(bundle: Path) -> Iterator[Pipeline]:
    """One that a test may break or close."""
    with runtime.load(bundle, device="cpu", threads=1) as loaded:
        yield loaded


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    for _ in range(200):
        if not workers():
            return
        time.sleep(0.01)
    pytest.fail("a stream's worker did not end")


@pytest.fixture
def open_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.pipeline.detector", lambda _: Everything())


def test_the_first_after_a_second_then_at_every_doubling(pipeline: Pipeline) -> None:
    with pipeline.stream(RATE, seed=7, steps=2) as stream:
        assert (stream.poll(), stream.portrait_seconds, stream.first_portrait_seconds) == (None, 0, None)
        found = run(stream, speech(9.5), 320)
        assert list(found) == [1, 2, 4, 8]
        assert stream.poll() is None
        assert all((one.seed, one.steps, one.prior_weight) == (7, 2, 0.01) for one in found.values())
        assert found[1].image.shape == (32, 32, 3)
        assert found[8].timings.total >= found[8].timings.graphs > 0
        assert 1.0 <= (stream.first_portrait_seconds or 0) < 1.2
        assert 0 < (stream.first_portrait_wall_seconds or 0) < 30
        assert (stream.heard_seconds, stream.dropped_seconds) == (9.5, 0)
        assert 9 < stream.speech_seconds <= 9.5


def test_a_portrait_is_that_of_the_mean_condition(pipeline: Pipeline) -> None:
    """8 s of speech: a window of six and one of two, weighted three to one."""
    sound = speech(9.5)
    with pipeline.stream(RATE, seed=5) as stream:
        portrait = run(stream, sound, 1000)[8]
    heard = np.concatenate(list(Gate(Energy()).take(sound)))
    windows = np.stack([normalise_level(fit_window(part, 96000)) for part in (heard[:96000], heard[96000 : 8 * RATE])])
    executor, manifest = pipeline._executor, pipeline.manifest
    assert executor is not None
    conditions = executor.encode(windows)
    mean = (0.75 * conditions[:1].astype(np.float64) + 0.25 * conditions[1:]).astype(np.float32)
    options = {"guidance": 2.0, "prior_weight": 0.01}
    (image,) = executor.paint(Work(mean, [5], manifest.table(), options, encoded=True), Clock())
    assert np.abs(image.astype(int) - portrait.image).max() <= 1
    alone = pipeline.generate((heard[: 6 * RATE], RATE), seed=5)
    assert np.abs(alone.image.astype(int) - portrait.image).max() > 1


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 9000), max_size=20), st.sampled_from([16000, 48000]))
def test_any_cut_gives_the_same_portraits(shared: Pipeline, sizes: list[int], rate: int) -> None:
    sound = speech(2.6, rate)
    with shared.stream(rate, seed=3) as stream:
        whole = run(stream, sound, rate // 50)
        last = stream.finish()
    cuts = np.cumsum(sizes)
    with shared.stream(rate, seed=3) as stream:
        for part in np.split(sound, cuts[cuts < sound.size]):
            stream.push(part)
            portrait = stream.poll()
            assert portrait is None or same(portrait, whole[stream.portrait_seconds])
        assert same(stream.finish(), last)
        assert stream.portrait_seconds == stream.speech_seconds


@pytest.mark.parametrize("rate", [1000, 8000, 11025, 22050, 44100, 96000, 384000])
def test_rates(shared: Pipeline, rate: int) -> None:
    with shared.stream(rate) as stream:
        stream.push(speech(3, rate))
        stream.finish()
        assert stream.heard_seconds == 3
        assert stream.speech_seconds == pytest.approx(3, abs=0.3)


def test_forms_of_the_same_sound(shared: Pipeline) -> None:
    sound = np.round(speech(1.5) * 32767) / 32768
    stereo = np.stack([sound * 1.5, sound * 0.5], axis=1)
    forms: list[tuple[Sound, int]] = [
        (sound.astype(np.float32), 1),
        (sound, 1),
        ((sound * 32768).astype(np.int16), 1),
        ((sound * 32768).astype(">i2"), 1),
        (sound[:, None], 1),
        (np.repeat(sound, 3)[::3], 1),
        (stereo, 2),
        (stereo.reshape(-1), 2),
        (np.asfortranarray(stereo), 2),
    ]
    portraits = []
    for samples, channels in forms:
        with shared.stream(RATE, channels) as stream:
            stream.push(samples)
            portraits.append(stream.finish())
    assert all(same(portraits[0], other) for other in portraits[1:])


def test_floats_on_the_scale_of_int16(shared: Pipeline) -> None:
    sound = speech(1.5)
    portraits = []
    for scale in (1, 32767):
        with shared.stream(RATE) as stream:
            stream.push(sound * scale)
            portraits.append(stream.finish())
    assert np.abs(portraits[0].image.astype(int) - portraits[1].image).max() <= 1


BAD_SAMPLES: list[tuple[Any, type[S2FError]]] = [
    ([0.0] * 10, InvalidArgument),
    (b"\0" * 10, InvalidArgument),
    (None, InvalidArgument),
    (np.float32(1), InvalidArgument),
    (np.zeros(10, np.int32), InvalidArgument),
    (np.zeros(10, np.uint8), InvalidArgument),
    (np.zeros(10, bool), InvalidArgument),
    (np.zeros(10, complex), InvalidArgument),
    (np.array(0.5), InvalidArgument),
    (np.zeros(3), InvalidArgument),
    (np.zeros((2, 5)), InvalidArgument),
    (np.zeros((5, 1)), InvalidArgument),
    (np.zeros((5, 2, 1)), InvalidArgument),
    (np.full(10, 1e9), InvalidArgument),
    (np.array([0, np.nan]), AudioNonFinite),
    (np.array([[0, np.inf]]), AudioNonFinite),
    (np.array([[0, -np.inf]], np.float16), AudioNonFinite),
]


@pytest.mark.parametrize(("samples", "error"), BAD_SAMPLES)
def test_bad_samples_are_refused_as_a_whole(shared: Pipeline, samples: Any, error: type[S2FError]) -> None:
    with shared.stream(RATE, 2) as stream:
        with pytest.raises(error):
            stream.push(samples)
        assert stream.heard_seconds == 0
        stream.push(np.zeros((0, 2)))
        stream.push(np.zeros(0, np.int16))
        stream.push(np.repeat(speech(1.5), 2))
        stream.finish()


@pytest.mark.parametrize(
    "options",
    [
        {"sample_rate": 999},
        {"sample_rate": 384001},
        {"sample_rate": 16000.0},
        {"sample_rate": "16000"},
        {"channels": 0},
        {"channels": 65},
        {"channels": True},
        {"seed": -1},
        {"seed": [1, 2]},
        {"steps": 0},
        {"guidance": 9},
        {"prior_weight": "x"},
        {"vad": "nothing.onnx"},
        {"vad": None},
        {"max_backlog": 0},
        {"max_backlog": 601},
        {"max_backlog": float("nan")},
        {"max_backlog": True},
    ],
)
def test_bad_options(shared: Pipeline, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(options))):
        shared.stream(**{"sample_rate": RATE, **options})
    with pytest.raises(StepsUnavailable):
        shared.stream(RATE, steps=3)


def test_without_soxr(shared: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(BackendMissing, match="soxr"):
        shared.stream(48000)
    shared.stream(RATE).close()


def test_too_little_speech(shared: Pipeline) -> None:
    for sound, error in ((np.zeros(RATE), AudioSilent), (speech(0.4), AudioTooShort)):
        with shared.stream(RATE) as stream:
            stream.push(sound)
            assert stream.poll() is None
            with pytest.raises(error):
                stream.finish()


def test_the_end_of_the_sound(shared: Pipeline) -> None:
    with shared.stream(44100, seed=1) as stream:
        stream.push(speech(1.7, 44100))
        last = stream.finish()
        assert stream.portrait_seconds == stream.speech_seconds == pytest.approx(1.7, abs=0.1)
        assert same(stream.finish(), last)
        assert stream.poll() is None
        with pytest.raises(Closed, match="finished"):
            stream.push(speech(1))
    with pytest.raises(InvalidArgument, match="timeout"), shared.stream(RATE) as stream:
        stream.finish(timeout=0)


def test_the_end_waits_no_longer_than_it_is_told(
    cpu: Pipeline, monkeypatch: pytest.MonkeyPatch, open_gate: None
) -> None:
    block = Block(cpu, monkeypatch)
    with cpu.stream(RATE) as stream:
        stream.push(speech(1.5))
        with pytest.raises(TimedOut):
            stream.finish(timeout=0.05)
        block.leave.set()
        assert stream.finish(timeout=30).image.std() > 1


@pytest.mark.usefixtures("open_gate")
def test_push_and_poll_do_not_wait_and_what_has_no_room_is_counted(
    cpu: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = speech(12)
    with cpu.stream(RATE, seed=2) as stream:
        for part in np.split(sound[: 9 * RATE], 9):
            stream.push(part)
        expected = stream.finish()
    block = Block(cpu, monkeypatch)
    with cpu.stream(RATE, seed=2, max_backlog=3) as stream:
        stream.push(sound[:RATE])
        assert block.inside.wait(30)
        begin = time.perf_counter()
        for part in np.split(sound[RATE:], 11 * 50):
            stream.push(part)
            assert stream.poll() is None
        assert time.perf_counter() - begin < 5
        assert (stream.speech_seconds, stream.dropped_seconds, stream.heard_seconds) == (9, 3, 12)
        block.leave.set()
        # What was kept is the beginning. A worker that is late draws only the latest portrait that is due.
        until(lambda: stream.poll() is not None and stream.portrait_seconds == 8)
        assert same(stream.finish(), expected)
        assert stream.portrait_seconds == 9


@pytest.mark.usefixtures("open_gate")
def test_room_is_made_again(shared: Pipeline) -> None:
    with shared.stream(RATE, max_backlog=1) as stream:
        for part in np.split(speech(30), 300):
            until(lambda: stream._studio.total - stream._studio._estimate.samples < 6 * RATE)
            stream.push(part)
        assert (stream.speech_seconds, stream.dropped_seconds) == (30, 0)


@pytest.mark.usefixtures("open_gate")
def test_an_hour_takes_no_more_room_than_a_minute(shared: Pipeline) -> None:
    minute = (speech(60) * 32767).astype(np.int16)
    seen = set()
    with shared.stream(RATE, steps=1) as stream:
        for _ in range(60):
            for part in np.split(minute, 10):
                until(lambda: stream._studio.total - stream._studio._estimate.samples < 12 * RATE)
                stream.push(part)
            studio = stream._studio
            arrays = [value for value in vars(studio).values() if isinstance(value, np.ndarray)]
            arrays += [value for value in vars(studio._estimate).values() if isinstance(value, np.ndarray)]
            seen.add(sum(array.nbytes for array in arrays) + len(stream._gate._before) + stream._gate._rest.size)
        assert len(seen) == 1
        assert stream.speech_seconds + stream.dropped_seconds == 3600
        assert stream.dropped_seconds == 0
        until(lambda: stream.poll() is not None and stream.portrait_seconds == 2048)


@pytest.mark.skipif(not FILES, reason="set the variable S2F_SPEECH to a folder of FLAC recordings")
def test_real_recordings(shared: Pipeline) -> None:
    for path in FILES:
        sound, rate = soundfile.read(path, dtype="int16")
        with shared.stream(rate) as stream:
            found = run(stream, sound, rate // 50)
            assert list(found) == [2**k for k in range(len(found))]
            stream.finish()
            assert stream.dropped_seconds == 0
            assert 0.5 < stream.speech_seconds / stream.heard_seconds < 1
