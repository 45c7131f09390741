"""The main path on the tiny bundle: from speech to portrait, options, batches, lifetime."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from bundle_factory import edit_manifest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundle import SHORTCUT, write_tiny_bundle

import runtime
from runtime import Pipeline, Portrait
from runtime.bench import synthetic_speech, wav_bytes
from runtime.errors import (
    AudioNotFound,
    AudioSilent,
    BundleNotFound,
    BundleTampered,
    Closed,
    DeviceUnavailable,
    InvalidArgument,
    StepsUnavailable,
)
from runtime.executor import MAX_BATCH, StepwiseExecutor

Voice = tuple[npt.NDArray[np.float32], int]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def pipeline(bundle: Path) -> Iterator[Pipeline]:
    with runtime.load(bundle, device="cpu", threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def shortcut(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """A bundle with free prior weight, folded guidance and no history."""
    folder = write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "shortcut", name="leaper", arm=SHORTCUT)
    with runtime.load(folder, device="cpu", threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def voices() -> list[Voice]:
    return [(synthetic_speech(seed=seed), 16000) for seed in range(3)]


def levels(a: Portrait, b: Portrait) -> int:
    """Largest difference in grey levels."""
    return int(np.abs(a.image.astype(int) - b.image).max())


def test_speech_in_portrait_out(pipeline: Pipeline, voices: list[Voice]) -> None:
    portrait = pipeline.generate(voices[0])
    assert portrait.image.shape == (32, 32, 3)
    assert portrait.image.dtype == np.uint8
    assert portrait.image.std() > 10
    assert (portrait.seed, portrait.steps, portrait.guidance, portrait.prior_weight) == (0, 4, 1.5, 0.0)
    assert (portrait.bundle_name, portrait.bundle_sha256) == ("tiny", pipeline.identity)


def test_path_bytes_and_array_are_the_same_speech(pipeline: Pipeline, tmp_path: Path) -> None:
    data = wav_bytes(synthetic_speech(), 16000)
    path = tmp_path / "voice.wav"
    path.write_bytes(data)
    samples = np.frombuffer(data[44:], dtype="<i2")
    images = [pipeline.generate(one).image for one in (path, str(path), data, (samples, 16000))]
    for image in images[1:]:
        np.testing.assert_array_equal(image, images[0])


def test_same_seed_same_bytes(bundle: Path, pipeline: Pipeline, voices: list[Voice]) -> None:
    first = pipeline.generate(voices[0], seed=42)
    with runtime.load(bundle, device="cpu", threads=1) as other:
        again = other.generate(voices[0], seed=42)
    np.testing.assert_array_equal(first.image, again.image)
    assert first.encode("png") == again.encode("png")


def test_voice_seed_steps_and_guidance_each_matter(pipeline: Pipeline, voices: list[Voice]) -> None:
    base = pipeline.generate(voices[0])
    assert levels(base, pipeline.generate(voices[1])) > 5
    assert levels(base, pipeline.generate(voices[0], seed=1)) > 5
    assert levels(base, pipeline.generate(voices[0], steps=2)) > 5
    assert levels(base, pipeline.generate(voices[0], guidance=3)) > 5


def test_window_is_passed_on(pipeline: Pipeline) -> None:
    pcm = np.concatenate([synthetic_speech(seed=0), synthetic_speech(seed=1), synthetic_speech(seed=2)])
    start, centre = (pipeline.generate((pcm, 16000), window=window) for window in ("start", "centre"))
    assert levels(start, centre) > 5
    with pytest.raises(InvalidArgument, match="window"):
        pipeline.generate((pcm, 16000), window="end")


def test_batch_equals_one_by_one(pipeline: Pipeline, voices: list[Voice]) -> None:
    together = pipeline.generate(voices, seed=[5, 6, 7])
    for voice, seed, portrait in zip(voices, (5, 6, 7), together, strict=True):
        assert portrait.seed == seed
        assert levels(portrait, pipeline.generate(voice, seed=seed)) <= 1


def test_one_seed_serves_every_speech(pipeline: Pipeline, voices: list[Voice]) -> None:
    together = pipeline.generate(voices, seed=9)
    assert [p.seed for p in together] == [9, 9, 9]
    assert levels(together[2], pipeline.generate(voices[2], seed=9)) <= 1


def test_several_seeds_encode_the_speech_once(
    pipeline: Pipeline, voices: list[Voice], monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = pipeline._executor
    assert isinstance(executor, StepwiseExecutor)
    encoder = executor._sessions["encoder"]
    batches: list[int] = []
    run = encoder.run

    def counted(feeds: dict[str, Any], **options: bool) -> dict[str, Any]:
        batches.append(len(feeds["pcm"]))
        return run(feeds, **options)

    monkeypatch.setattr(encoder, "run", counted)
    portraits = pipeline.generate(voices[0], seed=range(3))
    assert batches == [1]
    assert [p.seed for p in portraits] == [0, 1, 2]
    assert levels(portraits[1], pipeline.generate(voices[0], seed=1)) <= 1


def test_long_lists_are_made_in_parts(pipeline: Pipeline, voices: list[Voice]) -> None:
    count = 2 * MAX_BATCH + 1
    portraits = pipeline.generate(voices[0], seed=list(range(count)), steps=1)
    assert [p.seed for p in portraits] == list(range(count))
    assert levels(portraits[-1], pipeline.generate(voices[0], seed=count - 1, steps=1)) <= 1
    many = pipeline.generate([voices[i % 3] for i in range(count)], steps=1)
    assert levels(many[-1], pipeline.generate(voices[(count - 1) % 3], steps=1)) <= 1


def test_lists_of_one_stay_lists(pipeline: Pipeline, voices: list[Voice]) -> None:
    assert isinstance(pipeline.generate([voices[0]]), list)
    assert isinstance(pipeline.generate(voices[0], seed=[3]), list)
    assert isinstance(pipeline.generate(voices[0], seed=np.int64(3)), Portrait)


def test_portraits_of_a_batch_do_not_share_pixels(pipeline: Pipeline, voices: list[Voice]) -> None:
    first, second = pipeline.generate(voices[0], seed=[1, 1])
    first.image[:] = 0
    assert second.image.max() > 0


def test_timings(pipeline: Pipeline, voices: list[Voice]) -> None:
    timings = pipeline.generate(voices[0], steps=2).timings
    assert timings.encoder is not None
    assert timings.decoder is not None
    stages = (timings.encoder, *timings.steps, timings.decoder)
    assert len(timings.steps) == 2
    assert all(part > 0 for part in (timings.audio, *stages))
    assert sum(stages) <= timings.graphs
    assert timings.audio + timings.graphs <= timings.total
    with pytest.raises(dataclasses.FrozenInstanceError):
        timings.total = 0.0  # type: ignore[misc]


def test_steps_the_bundle_lacks(pipeline: Pipeline, voices: list[Voice]) -> None:
    with pytest.raises(StepsUnavailable, match="1, 2, 4"):
        pipeline.generate(voices[0], steps=3)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"steps": -1},
        {"steps": 4.0},
        {"steps": True},
        {"steps": "4"},
        {"seed": -1},
        {"seed": 2**63},
        {"seed": 1.0},
        {"seed": True},
        {"seed": "7"},
        {"seed": None},
        {"seed": []},
        {"seed": [1, -1]},
        {"seed": [1, None]},
        {"guidance": -0.1},
        {"guidance": 4.01},
        {"guidance": float("nan")},
        {"guidance": "2"},
        {"guidance": True},
        {"guidance": [1.0]},
        {"guidance": object()},
        {"guidance": 10**400},
        {"prior_weight": 0.01},
        {"prior_weight": True},
    ],
)
def test_bad_options(pipeline: Pipeline, voices: list[Voice], options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(options))):
        pipeline.generate(voices[0], **options)


def test_prior_weight_matters_where_the_bundle_leaves_it_free(shortcut: Pipeline, voices: list[Voice]) -> None:
    base, none, most = (shortcut.generate(voices[0], prior_weight=weight) for weight in (None, 0, 0.1))
    assert [one.prior_weight for one in (base, none, most)] == [0.01, 0.0, 0.1]
    assert levels(base, none) > 0
    assert levels(none, most) > 5
    np.testing.assert_array_equal(base.image, shortcut.generate(voices[0], prior_weight=0.01).image)
    assert shortcut.generate(voices[0], prior_weight=np.float32(0.1)).prior_weight == 0.1  # a hair above as float64
    for bad in (-0.001, 0.11, float("nan"), "0.01", True):
        with pytest.raises(InvalidArgument, match=r"prior_weight must be a number in 0\.\.0\.1 for the bundle leaper"):
            shortcut.generate(voices[0], prior_weight=bad)  # type: ignore[call-overload]


def test_an_option_that_is_folded_in_can_be_named_but_not_changed(
    pipeline: Pipeline, shortcut: Pipeline, voices: list[Voice]
) -> None:
    np.testing.assert_array_equal(shortcut.generate(voices[0], guidance=2).image, shortcut.generate(voices[0]).image)
    assert shortcut.generate(voices[0]).guidance == 2.0
    with pytest.raises(
        InvalidArgument, match=r"The bundle leaper folds guidance 2 into its graphs.* Leave guidance out"
    ):
        shortcut.generate(voices[0], guidance=1.5)
    with pytest.raises(InvalidArgument, match="The bundle tiny folds prior_weight 0 into its graphs"):
        pipeline.generate(voices[0], prior_weight=0.05)


def test_a_bundle_of_schema_1_draws_the_same(pipeline: Pipeline, voices: list[Voice], tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path / "old")

    def age(value: dict[str, object]) -> None:
        value.update(schema_version=1, prior={"mode": "none", "weight": 0.0})
        del value["variants"]

    edit_manifest(folder, age)
    with runtime.load(folder, device="cpu", threads=1) as old:
        np.testing.assert_array_equal(
            old.generate(voices[0], guidance=3).image, pipeline.generate(voices[0], guidance=3).image
        )


def test_batches_without_history(shortcut: Pipeline, voices: list[Voice]) -> None:
    together = shortcut.generate(voices, seed=[5, 6, 7], steps=4, prior_weight=0.1)
    alone = shortcut.generate(voices[2], seed=7, steps=4, prior_weight=0.1)
    assert levels(together[2], alone) <= 1
    assert levels(alone, shortcut.generate(voices[2], seed=7, steps=1, prior_weight=0.1)) > 5


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**63 - 1), st.floats(0, 4, allow_nan=False))
def test_every_allowed_seed_and_guidance_works(pipeline: Pipeline, seed: int, guidance: float) -> None:
    portrait = pipeline.generate((synthetic_speech(seconds=1), 16000), seed=seed, guidance=guidance, steps=1)
    assert (portrait.seed, portrait.guidance) == (seed, guidance)


def test_lists_that_do_not_pair(pipeline: Pipeline, voices: list[Voice]) -> None:
    with pytest.raises(InvalidArgument, match="2 seeds for 3 speeches"):
        pipeline.generate(voices, seed=[1, 2])
    with pytest.raises(InvalidArgument, match="empty"):
        pipeline.generate([])


def test_one_bad_speech_fails_the_call(pipeline: Pipeline, voices: list[Voice]) -> None:
    with pytest.raises(AudioSilent):
        pipeline.generate([voices[0], (np.zeros(96000, np.float32), 16000)])
    with pytest.raises(AudioNotFound):
        pipeline.generate("no-such-file.wav")


def test_closed(bundle: Path, voices: list[Voice]) -> None:
    pipeline = runtime.load(bundle, device="cpu", threads=1)
    pipeline.generate(voices[0])
    pipeline.close()
    pipeline.close()
    with pytest.raises(Closed, match="Load"):
        pipeline.generate(voices[0])
    with pytest.raises(Closed), pipeline:
        pass


def test_threads_share_a_pipeline(pipeline: Pipeline, voices: list[Voice]) -> None:
    alone = [pipeline.generate(voices[i % 3], seed=i).image for i in range(6)]
    found: dict[int, npt.NDArray[np.uint8]] = {}

    def work(i: int) -> None:
        found[i] = pipeline.generate(voices[i % 3], seed=i).image

    workers = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for i, image in enumerate(alone):
        np.testing.assert_array_equal(found[i], image)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2", 10_000])
def test_bad_threads(bundle: Path, threads: Any) -> None:
    with pytest.raises(InvalidArgument, match="threads"):
        runtime.load(bundle, threads=threads)


def test_load_says_what_it_uses(bundle: Path) -> None:
    with runtime.load(bundle, device="cpu", threads=2) as pipeline:
        assert (pipeline.device, pipeline.threads, pipeline.manifest.name) == ("cpu", 2, "tiny")


def test_unknown_device(bundle: Path) -> None:
    for device in ("npu", "", "CPU", 3):
        with pytest.raises(DeviceUnavailable, match="auto, cpu, openvino, cuda"):
            runtime.load(bundle, device=device)  # type: ignore[arg-type]


def test_bad_bundles(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFound):
        runtime.load(tmp_path / "nothing")
    folder = write_tiny_bundle(tmp_path / "tiny")
    data = bytearray((folder / "unet.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "unet.onnx").write_bytes(data)
    with pytest.raises(BundleTampered):
        runtime.load(folder)


def test_without_a_shipped_bundle_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.pipeline.__file__", str(tmp_path / "pipeline.py"))
    with pytest.raises(BundleNotFound, match="s2f-export"):
        runtime.load()


def test_one_call_form_keeps_one_pipeline(
    bundle: Path, pipeline: Pipeline, voices: list[Voice], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime import pipeline as module

    loaded: list[object] = []
    real = module.load

    def counted(*args: Any, **options: Any) -> Pipeline:
        loaded.append(args)
        return real(*args, **options)

    monkeypatch.setattr(module, "load", counted)
    monkeypatch.setattr(module, "_default", None)
    options: dict[str, Any] = {"bundle": bundle, "device": "cpu", "threads": 1}
    images = [runtime.generate(voices[0], seed=3, steps=2, **options).image for _ in range(2)]
    assert len(loaded) == 1
    np.testing.assert_array_equal(images[0], pipeline.generate(voices[0], seed=3, steps=2).image)
    runtime.generate(voices[0], **{**options, "bundle": write_tiny_bundle(tmp_path / "other", name="other")})
    assert len(loaded) == 2


FORKED = """
import multiprocessing, os, sys, threading
import runtime
from runtime.bench import synthetic_speech
voice, bundle = (synthetic_speech(), 16000), sys.argv[1]
pipeline = runtime.load(bundle, device="cpu", threads=2)
pipeline.generate(voice)
runtime.generate(voice, bundle=bundle, device="cpu", threads=2)

def generates():
    assert runtime.generate(voice, bundle=bundle, device="cpu", threads=2).image.std() > 1

def is_told():
    try:
        pipeline.generate(voice)
    except runtime.S2FError as error:
        assert "forked" in str(error)
        return
    raise AssertionError

def closes():
    global pipeline
    pipeline.close()
    del pipeline

for work in (generates, is_told, closes, lambda: None):
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(60)
    print(child.exitcode)
pipeline.generate(voice)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_neither_crashes_nor_hangs(bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED, str(bundle)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["0"] * 4), done.stderr
