"""Progress, cancelling and time limits of a call."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
from tiny_bundle import SHORTCUT, write_tiny_bundle

import runtime
from export.adaptor import BuildOptions
from export.engines import Request, build
from runtime import Pipeline
from runtime.backends import Settings
from runtime.bench import synthetic_speech
from runtime.bundle import read_bundle
from runtime.cache import Cache
from runtime.errors import Cancelled, InvalidArgument, TimedOut
from runtime.executor import MAX_BATCH, Clock, Work

VOICE = (synthetic_speech(), 16000)


@pytest.fixture(params=["cpu", "tensorrt"])
def pipeline(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    bundle = read_bundle(write_tiny_bundle(tmp_path / "tiny", arm=SHORTCUT))
    if request.param == "tensorrt":
        monkeypatch.setenv("S2F_CACHE", str(tmp_path / "cache"))
        fakes.install(monkeypatch, "10.3")
        build(bundle, Request((1, 4), (), "fp32", BuildOptions()), Cache.default(), lambda _: None)
    with Pipeline(bundle, Settings(request.param, 1)) as opened:
        yield opened


def test_progress_is_told(pipeline: Pipeline) -> None:
    told: list[tuple[int, int]] = []
    pipeline.generate(VOICE, steps=4, progress=lambda done, total: told.append((done, total)))
    assert (told[0], told[-1]) == ((0, 4), (4, 4))
    assert told == sorted(told)
    told.clear()
    pipeline.generate(VOICE, seed=list(range(MAX_BATCH + 1)), steps=2, progress=lambda *both: told.append(both))
    assert told[0][0] == 0
    assert told[-1][0] == told[-1][1]
    assert told == sorted(told)


def test_a_true_answer_cancels_within_a_step(pipeline: Pipeline) -> None:
    told: list[int] = []

    def cancel(done: int, _: int) -> bool:
        told.append(done)
        return len(told) == 2

    with pytest.raises(Cancelled, match="of 4 steps"):
        pipeline.generate(VOICE, steps=4, progress=cancel)
    assert len(told) == 2
    pipeline.generate(VOICE)


def test_what_the_progress_function_raises_comes_through(pipeline: Pipeline) -> None:
    def fails(*_: int) -> bool:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        pipeline.generate(VOICE, progress=fails)
    pipeline.generate(VOICE)


def test_time_that_is_up(pipeline: Pipeline) -> None:
    with pytest.raises(TimedOut, match="of 4 steps"):
        pipeline.generate(VOICE, steps=4, timeout=2, progress=lambda *_: time.sleep(1.1))
    with pytest.raises(TimedOut, match="before anything was drawn"):
        pipeline.generate(VOICE, timeout=1e-6, progress=lambda *_: pytest.fail("begun"))
    assert pipeline.generate(VOICE, timeout=600).image.std() > 1


def test_time_that_is_up_while_another_call_runs(pipeline: Pipeline) -> None:
    inside, leave = threading.Event(), threading.Event()

    def hold(*_: int) -> None:
        inside.set()
        leave.wait(30)

    thread = threading.Thread(target=lambda: pipeline.generate(VOICE, progress=hold))
    thread.start()
    assert inside.wait(30)
    with pytest.raises(TimedOut, match="another call"):
        pipeline.generate(VOICE, timeout=0.05)
    leave.set()
    thread.join(30)


@pytest.mark.parametrize("timeout", [0, -1, True, "1", float("nan"), np.zeros(2)])
def test_timeouts_that_are_none(timeout: Any, tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path / "tiny")
    with runtime.load(folder, device="cpu", threads=1) as pipeline, pytest.raises(InvalidArgument, match="timeout"):
        pipeline.generate(VOICE, timeout=timeout)


def test_a_condition_draws_what_its_speech_draws(pipeline: Pipeline) -> None:
    executor, manifest = pipeline._executor, pipeline.manifest
    assert executor is not None
    pcm = np.stack([synthetic_speech(seed=seed) for seed in range(2)])
    conditions = executor.encode(pcm)
    assert conditions.shape == (2, manifest.condition.tokens, manifest.condition.width)
    options = {"guidance": manifest.guidance.default, "prior_weight": manifest.prior.weight}
    for voices in (slice(0, 1), slice(0, 2)):
        for seeds in ([3], [3, 4], [3, 4, 5, 6, 7]):
            if voices.stop not in (1, len(seeds)):
                continue
            by_speech = Work(pcm[voices], seeds, manifest.table(2), options)
            by_condition = Work(conditions[voices], seeds, manifest.table(2), options, encoded=True)
            for one, other in zip(
                executor.paint(by_speech, Clock()), executor.paint(by_condition, Clock()), strict=True
            ):
                assert np.abs(one.astype(int) - other).max() <= 1
