"""Portraits by engines, on fakes of every release: what comes out, what moves, what is refused. No GPU needed."""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
from tiny_bundle import DIFFUSION, SHORTCUT, Arm, write_tiny_bundle

import runtime
from export.adaptor import BuildOptions
from export.engines import Request, build
from runtime.backends import Settings, cuda, select, tensorrt
from runtime.backends.tensorrt import Engine
from runtime.backends.tensorrt_executor import TensorRTExecutor
from runtime.bench import synthetic_speech
from runtime.bundle import Bundle, read_bundle
from runtime.cache import Cache
from runtime.engines import ENGINES, RECORDS, EngineSpec, Place, engine_key, read_record, record_key, write_record
from runtime.errors import BackendFailed, BackendMissing, Closed, DeviceOutOfMemory, DeviceUnavailable, NotPrepared
from runtime.pipeline import Pipeline

RELEASES = fakes.versions("tensorrt")
VOICE = (synthetic_speech(), 16000)
OTHER = (synthetic_speech(seed=1), 16000)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setenv("S2F_CACHE", str(tmp_path / "cache"))
    return Cache.default()


def bundle_of(tmp_path: Path, arm: Arm = SHORTCUT) -> Bundle:
    return read_bundle(write_tiny_bundle(tmp_path / "tiny", arm=arm))


def make(
    bundle: Bundle, *, batches: tuple[int, ...] = (1, 4), steps: tuple[int, ...] = (4,), precision: str = "fp32"
) -> None:
    request = Request(batches, steps, precision, BuildOptions())
    build(bundle, request, Cache.default(), lambda _: None)


def key_of(bundle: Bundle, spec: EngineSpec) -> dict[str, Any]:
    """The key under which `make` put an engine."""
    place = tensorrt.place_here(tensorrt.package())
    record = read_record(Cache.default(), bundle.manifest, place)
    assert record is not None
    return engine_key(bundle.manifest, place, spec, record.options)


def open_pipeline(bundle: Bundle, device: str = "tensorrt") -> Pipeline:
    return Pipeline(bundle, Settings(device, 1))


def levels(a: runtime.Portrait, b: runtime.Portrait) -> int:
    return int(np.abs(a.image.astype(int) - b.image).max())


@pytest.mark.parametrize("arm", [SHORTCUT, DIFFUSION], ids=["shortcut", "diffusion"])
@pytest.mark.parametrize("release", RELEASES)
def test_portraits_equal_those_of_the_cpu(
    release: str, arm: Arm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = fakes.install(monkeypatch, release)
    bundle = bundle_of(tmp_path, arm)
    make(bundle)
    options = {"prior_weight": 0.1} if arm is SHORTCUT else {"guidance": 3.0}
    with open_pipeline(bundle) as gpu, open_pipeline(bundle, "cpu") as cpu:
        for steps in (1, 2, 4):
            assert levels(gpu.generate(VOICE, steps=steps), cpu.generate(VOICE, steps=steps)) <= 1
        one, many = gpu.generate(VOICE, seed=5, **options), gpu.generate([VOICE, OTHER] * 3, seed=list(range(6)))
        assert levels(one, cpu.generate(VOICE, seed=5, **options)) <= 1
        for portrait, expected in zip(many, cpu.generate([VOICE, OTHER] * 3, seed=list(range(6))), strict=True):
            assert levels(portrait, expected) <= 1
        seeds = gpu.generate(OTHER, seed=list(range(6)))
        for portrait, expected in zip(seeds, cpu.generate(OTHER, seed=list(range(6))), strict=True):
            assert levels(portrait, expected) <= 1
    world.check()


@pytest.mark.parametrize("release", fakes.versions("tensorrt_lean"))
def test_the_lean_runtime_runs_what_was_built_for_it(
    release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_of(tmp_path)
    with monkeypatch.context() as patch:
        fakes.install(patch, release)
        build(bundle, Request((1,), (), "fp32", BuildOptions(lean=True)), Cache.default(), lambda _: None)
    with monkeypatch.context() as patch:
        fakes.install(patch, release)
        with pytest.raises(NotPrepared, match="no engines"):
            open_pipeline(bundle)
    world = fakes.install(monkeypatch, release, lean=True)
    with open_pipeline(bundle) as gpu, open_pipeline(bundle, "cpu") as cpu:
        assert levels(gpu.generate(VOICE), cpu.generate(VOICE)) <= 1
    world.check()


@pytest.mark.parametrize(("pipelines", "engines_run"), [((), 1 + 4 + 1), (((1, 4),), 1)], ids=["stages", "pipeline"])
@pytest.mark.parametrize("release", RELEASES)
def test_one_copy_in_one_launch_one_copy_out_one_wait(
    release: str, pipelines: tuple[tuple[int, int], ...], engines_run: int, tmp_path: Path, monkeypatch: Any
) -> None:
    world = fakes.install(monkeypatch, release)
    bundle, steps = bundle_of(tmp_path), 4
    make(bundle)
    cache, place = Cache.default(), tensorrt.place_here(tensorrt.package())
    record = read_record(cache, bundle.manifest, place)
    assert record is not None
    write_record(cache, bundle.manifest, place, dataclasses.replace(record, pipelines=pipelines))
    with open_pipeline(bundle) as pipeline:
        opened = world.counts.copy()
        pipeline.generate(VOICE)
        first = world.counts - opened
        assert (first.enqueues, first.captures, first.allocations) == (0, 0, 0)  # all of that when it was opened
        assert first.executions == engines_run
        for seed in range(3):
            before = world.counts.copy()
            pipeline.generate(VOICE, steps=steps, seed=seed)
            done = world.counts - before
            assert (done.h2d, done.graph_launches, done.d2h, done.synchronisations) == (1, 1, 1, 1)
            assert (done.enqueues, done.allocations, done.captures) == (0, 0, 0)


def test_one_voice_is_encoded_once_for_seeds_of_one_batch_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = fakes.install(monkeypatch, "10.3")
    bundle = bundle_of(tmp_path)
    make(bundle, batches=(1,), steps=())
    with open_pipeline(bundle) as pipeline:
        pipeline.generate(VOICE, seed=[0, 1])
        before = world.counts.copy()
        pipeline.generate(VOICE, seed=list(range(5)), steps=4)
        assert (world.counts - before).executions == 1 + 5 * (4 + 1)


def test_nothing_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = fakes.install(monkeypatch, "10.16")
    bundle = bundle_of(tmp_path)
    make(bundle)
    with open_pipeline(bundle) as pipeline:
        for steps in (1, 2, 4):
            pipeline.generate(VOICE, steps=steps)
        live = world.live_bytes, world.live_pinned_bytes
        for seed in range(60):
            pipeline.generate(VOICE, seed=seed, steps=(1, 2, 4)[seed % 3])
        assert (world.live_bytes, world.live_pinned_bytes) == live
    assert (world.live_bytes, world.live_pinned_bytes) == (0, 0)
    world.check()


def test_engines_share_their_working_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = fakes.install(monkeypatch, "10.3")
    world.activation_bytes = 1 << 20
    bundle = bundle_of(tmp_path)
    make(bundle)
    with open_pipeline(bundle):
        assert 1 << 20 <= world.live_bytes < 3 << 20  # seven engines


def test_threads_share_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = fakes.install(monkeypatch, "10.3")
    bundle = bundle_of(tmp_path)
    make(bundle)
    with open_pipeline(bundle) as pipeline:
        alone = [pipeline.generate(VOICE, seed=seed).image for seed in range(6)]
        together: dict[int, np.ndarray] = {}

        def draw(seed: int) -> None:
            together[seed] = pipeline.generate(VOICE, seed=seed).image

        threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for seed, image in together.items():
        np.testing.assert_array_equal(image, alone[seed])
    world.check()


@pytest.mark.parametrize("obstacle", ["refused", "broken", "no cuda-bindings"])
def test_without_graphs_the_engines_are_enqueued_and_the_reason_is_logged(
    obstacle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without = ("cuda",) if obstacle == "no cuda-bindings" else ()
    world = fakes.install(monkeypatch, "10.3", without=without)
    world.refuse_capture, world.break_capture = obstacle == "refused", obstacle == "broken"
    bundle = bundle_of(tmp_path)
    with caplog.at_level(logging.WARNING, "runtime"):
        make(bundle)
        with open_pipeline(bundle) as gpu, open_pipeline(bundle, "cpu") as cpu:
            assert levels(gpu.generate(VOICE), cpu.generate(VOICE)) <= 1
            assert levels(gpu.generate(VOICE, seed=1), cpu.generate(VOICE, seed=1)) <= 1
    assert "no CUDA graph, the engines are enqueued one by one" in caplog.text
    assert world.counts.graph_launches == 0


def test_timings_tell_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.install(monkeypatch, "10.3")
    bundle = bundle_of(tmp_path)
    make(bundle)
    with open_pipeline(bundle) as pipeline:
        timings = pipeline.generate(VOICE).timings
    assert (timings.encoder, timings.steps, timings.decoder) == (None, (), None)
    assert 0 < timings.graphs <= timings.total


def test_what_other_threads_do_does_not_end_a_capture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host program that uses CUDA too, as torch does: allocating and working on the default stream."""
    world = fakes.install(monkeypatch, "10.3")
    bundle = bundle_of(tmp_path)
    make(bundle, batches=(1,), steps=())
    from pycuda import driver

    real, problems = Engine.enqueue, []

    def host() -> None:
        context = driver.Device(0).retain_primary_context()
        context.push()
        try:
            driver.mem_alloc(64).free()
        except driver.Error as error:
            problems.append(error)
        finally:
            driver.Context.pop()
            context.detach()

    def enqueue(self: Engine, *given: Any) -> None:
        thread = threading.Thread(target=host)
        thread.start()
        thread.join()
        real(self, *given)

    with open_pipeline(bundle) as pipeline:
        with monkeypatch.context() as patch:
            patch.setattr(Engine, "enqueue", enqueue)
            pipeline.generate(VOICE, steps=2)
        before = world.counts.copy()
        pipeline.generate(VOICE, steps=2)
        assert (world.counts - before).graph_launches == 1
    assert problems == []


def test_the_key_of_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever can make another engine is part of it."""
    bundle = bundle_of(tmp_path)
    other = read_bundle(write_tiny_bundle(tmp_path / "other", steps=(4,), arm=SHORTCUT))
    place, spec = (
        Place("tensorrt 10.3.0", "8.7", "Orin, 8 multiprocessors", "CUDA 12.6"),
        EngineSpec("unet", 1, 0, "fp16"),
    )
    keys = [
        engine_key(bundle.manifest, place, spec, {"optimisation": 3}),
        engine_key(bundle.manifest, place, spec, {"optimisation": 5}),
        engine_key(other.manifest, place, spec, {"optimisation": 3}),
        *(
            engine_key(bundle.manifest, dataclasses.replace(place, **{field.name: "x"}), spec, {"optimisation": 3})
            for field in dataclasses.fields(place)
        ),
        *(
            engine_key(bundle.manifest, place, dataclasses.replace(spec, **change), {"optimisation": 3})
            for change in ({"graph": "decoder"}, {"batch": 2}, {"precision": "fp32"}, {"graph": "pipeline", "steps": 4})
        ),
    ]
    monkeypatch.setattr("runtime.engines.RECIPE", 99)
    keys.append(engine_key(bundle.manifest, place, spec, {"optimisation": 3}))
    assert len({json.dumps(key, sort_keys=True) for key in keys}) == len(keys)


def test_jetsons_of_one_family_are_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fakes.install(monkeypatch, "10.3", capability=(8, 7))
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build")
    monkeypatch.setattr(cuda, "_DRIVER_FILE", version)
    place = tensorrt.place_here(tensorrt.package())
    assert re.fullmatch(r"Fake Orin, \d+ multiprocessors", place.gpu)
    assert place.driver == "CUDA 12.6, driver 540.4.0"


def test_a_jetson_is_not_sent_to_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fakes.install(monkeypatch, "10.3", without=("tensorrt",))
    monkeypatch.setattr(cuda, "_TEGRA_FILE", tmp_path)
    with pytest.raises(BackendMissing, match=r"docs/jetson.md") as error:
        select("tensorrt")
    assert "pip install" not in str(error.value)


def test_memory_that_runs_out_while_drawing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = fakes.install(monkeypatch, "10.3")
    world.refuse_capture = True
    bundle = bundle_of(tmp_path)
    make(bundle)
    with open_pipeline(bundle) as pipeline:
        world.fail_execution = True
        executor = pipeline._executor
        assert isinstance(executor, TensorRTExecutor)
        log = next(iter(executor._gpu._lanes[1]._engines.values()))._logger
        said = property(lambda _: "Cuda failure: out of memory", lambda *_: None)
        monkeypatch.setattr(type(log), "last_error", said, raising=False)
        with pytest.raises(DeviceOutOfMemory, match="out of memory"):
            pipeline.generate(VOICE)


def test_a_closed_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = fakes.install(monkeypatch, "10.3")
    bundle = bundle_of(tmp_path)
    make(bundle)
    pipeline = open_pipeline(bundle)
    pipeline.close()
    pipeline.close()
    with pytest.raises(Closed):
        pipeline.generate(VOICE)
    world.check()


def test_auto_takes_engines_only_where_they_are_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.install(monkeypatch, "10.3")
    bundle = bundle_of(tmp_path)
    assert select("auto", bundle.manifest) == "cpu"
    with pytest.raises(NotPrepared, match="s2f prepare BUNDLE --device tensorrt"):
        open_pipeline(bundle)
    make(bundle)
    assert select("auto", bundle.manifest) == "tensorrt"
    assert select("auto") == "cpu"
    with runtime.load(bundle.path) as pipeline:
        assert pipeline.device == "tensorrt"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"release": "10.16"}, "no engines .* tensorrt 10.16"),
        ({"capability": (9, 0)}, "no engines"),
        ({"driver_version": 12080}, "no engines .* CUDA 12.8"),
    ],
)
def test_engines_of_another_place_are_not_used(
    change: dict[str, object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_of(tmp_path)
    with monkeypatch.context() as patch:
        fakes.install(patch, "10.3")
        make(bundle)
    release = str(change.pop("release", "10.3"))
    world = fakes.install(monkeypatch, release)
    for name, value in change.items():
        setattr(world, name, value)
    with pytest.raises(NotPrepared, match=said):
        open_pipeline(bundle)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-7] ^= 0xFF
    path.write_bytes(bytes(data))


def loosen(path: Path) -> None:
    path.chmod(0o622)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("kind", [ENGINES, RECORDS])
@pytest.mark.parametrize("spoil", [flip, loosen, cut, Path.unlink])
def test_what_could_have_been_planted_is_refused_and_made_again(
    kind: str, spoil: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Cache
) -> None:
    world = fakes.install(monkeypatch, "10.3")
    bundle = bundle_of(tmp_path)
    make(bundle)
    place = tensorrt.place_here(tensorrt.package())
    unet = key_of(bundle, EngineSpec("unet", 1, 0, "fp32"))
    spoil(cache.path(kind, unet if kind == ENGINES else record_key(bundle.manifest, place)))
    loaded = world.counts.deserialisations
    with pytest.raises(NotPrepared, match="Run: s2f prepare"):
        open_pipeline(bundle)
    assert world.counts.deserialisations - loaded <= 1  # the encoder, which comes first; never what was spoilt
    make(bundle)
    with open_pipeline(bundle) as pipeline:
        pipeline.generate(VOICE)
    world.check()


def test_an_engine_tensorrt_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Cache) -> None:
    world = fakes.install(monkeypatch, "10.3")
    bundle = bundle_of(tmp_path)
    make(bundle)
    cache.write(ENGINES, key_of(bundle, EngineSpec("decoder", 1, 0, "fp32")), b"no plan" * 50)
    with pytest.raises(NotPrepared, match=r"TensorRT refuses the engine decoder .*Run: s2f prepare"):
        open_pipeline(bundle)
    make(bundle)
    with open_pipeline(bundle) as pipeline:
        pipeline.generate(VOICE)
    world.check()


def test_an_engine_with_other_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Cache) -> None:
    world = fakes.install(monkeypatch, "10.3")
    bundle = bundle_of(tmp_path)
    make(bundle)
    four, one = (key_of(bundle, EngineSpec("decoder", batch, 0, "fp32")) for batch in (4, 1))
    cache.write(ENGINES, one, cache.read(ENGINES, four) or b"")
    with pytest.raises(BackendFailed, match="other tensors than the bundle: image, latent"):
        open_pipeline(bundle)
    make(bundle)
    with open_pipeline(bundle) as pipeline:
        pipeline.generate(VOICE)
    world.check()


def test_no_driver_no_device_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bundle_of(tmp_path)
    with monkeypatch.context() as patch:
        fakes.install(patch, "10.3", no_driver=True)
        with pytest.raises(DeviceUnavailable, match="nvidia-smi"):
            select("tensorrt")
        assert not tensorrt.probe().usable
    with monkeypatch.context() as patch:
        fakes.install(patch, "10.3").device_count = 0
        with pytest.raises(DeviceUnavailable, match="No GPU can be used"):
            open_pipeline(bundle)
    for package, named in (("tensorrt", "TensorRT"), ("pycuda", "pycuda")):
        with monkeypatch.context() as patch:
            fakes.install(patch, "10.3", without=(package,))
            with pytest.raises(BackendMissing, match=rf"{named}.*s2f-edge\[trt\]"):
                select("tensorrt")
            assert select("auto", bundle.manifest) == "cpu"


def test_a_release_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.install(monkeypatch, "8.6")
    monkeypatch.setattr("tensorrt.__version__", "8.5.2.2")
    with pytest.raises(BackendMissing, match="too old"):
        select("tensorrt")


def test_no_memory_to_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bundle_of(tmp_path)
    world = fakes.install(monkeypatch, "10.3")
    make(bundle)
    world.activation_bytes = 1 << 40
    with pytest.raises(DeviceOutOfMemory, match="allocating"):
        open_pipeline(bundle)
    world.check()


def test_an_execution_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = fakes.install(monkeypatch, "10.3")
    world.refuse_capture = True  # a replay says nothing until the wait
    bundle = bundle_of(tmp_path)
    make(bundle)
    with open_pipeline(bundle) as pipeline:
        pipeline.generate(VOICE)
        world.fail_execution = True
        with pytest.raises(BackendFailed, match="TensorRT failed in"):
            pipeline.generate(VOICE)
        world.fail_execution = False
        pipeline.generate(VOICE)


def test_a_flat_colour_is_no_portrait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.install(monkeypatch, "10.3")
    bundle = bundle_of(tmp_path)
    make(bundle)
    with open_pipeline(bundle) as pipeline:
        executor = pipeline._executor
        assert isinstance(executor, TensorRTExecutor)
        monkeypatch.setattr(executor._gpu._lanes[1]._device, "download", lambda target, _: target.fill(0))
        with pytest.raises(BackendFailed, match="flat colour"):
            pipeline.generate(VOICE)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.install(monkeypatch, "10.3")
    bundle = bundle_of(tmp_path)
    make(bundle)
    with open_pipeline(bundle) as pipeline:
        child = os.fork()
        if child == 0:
            try:
                pipeline.generate(VOICE)
                os._exit(1)
            except BackendFailed:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        pipeline.generate(VOICE)


def test_a_pipeline_nobody_holds_any_more_gives_everything_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = fakes.install(monkeypatch, "10.3")
    first = read_bundle(write_tiny_bundle(tmp_path / "first", arm=SHORTCUT))
    second = read_bundle(write_tiny_bundle(tmp_path / "second", name="second", arm=SHORTCUT))
    live, threads = [], []
    for bundle in (first, second) * 3:
        make(bundle, batches=(1,), steps=())
        runtime.generate(VOICE, bundle=bundle.path, device="tensorrt")
        live.append(world.live_bytes)
        threads.append(threading.active_count())
    assert len(set(live[1:])) == 1
    assert len(set(threads)) == 1


def test_an_error_that_is_kept_keeps_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = fakes.install(monkeypatch, "10.3")
    world.refuse_capture = True
    bundle = bundle_of(tmp_path)
    make(bundle)
    gc.disable()
    try:
        with open_pipeline(bundle) as pipeline:
            world.fail_execution = True
            with pytest.raises(BackendFailed) as kept:
                pipeline.generate(VOICE)
        assert (world.live_bytes, world.live_pinned_bytes) == (0, 0)
        assert kept.value is not None
    finally:
        gc.enable()
    world.check()
