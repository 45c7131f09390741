"""Fused graphs on ONNX Runtime's CUDA provider, with the CPU's memory and kernels in the place of the GPU's."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_runtime_backends import Pretender
from tiny_bundle import DIFFUSION, SHORTCUT, Arm, write_tiny_bundle

import runtime
from export import ort_cuda, trial
from runtime.backends import Settings, open_executor, ort
from runtime.backends.ort_executor import OrtExecutor, place_here
from runtime.bench import synthetic_speech
from runtime.bundle import Bundle, read_bundle
from runtime.cache import Cache
from runtime.cli import main
from runtime.engines import Prepared, read_record
from runtime.errors import BackendFailed, DeviceUnavailable, NotPrepared
from runtime.pipeline import Pipeline

VOICE = (synthetic_speech(), 16000)
CUDA = Settings("cuda", 1)


class Gpu(Pretender):
    """Counts runs per session, and can refuse CUDA graphs as ONNX Runtime does where nodes are left on the CPU."""

    def __init__(self, real: Any) -> None:
        super().__init__(real, ["CUDAExecutionProvider", "CPUExecutionProvider"])
        self.refuse_graphs = False
        self.graphs: list[bool] = []
        self.__file__ = real.__file__

    def InferenceSession(self, data: bytes, options: Any, providers: list[Any]) -> Any:  # noqa: N802 - their name
        self.graphs.append(providers[0][1].get("enable_cuda_graph") == "1")
        if self.graphs[-1] and self.refuse_graphs:
            raise RuntimeError("This session cannot use the graph capture feature")
        session = super().InferenceSession(data, options, providers)
        session.get_providers = lambda: [providers[0][0]]
        return session


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Gpu]:
    import onnxruntime

    made = Gpu(onnxruntime)
    monkeypatch.setattr(ort, "package", lambda _: made)
    monkeypatch.setitem(ort.MEMORIES, "cuda", "cpu")
    monkeypatch.setenv("S2F_CACHE", str(tmp_path / "cache"))
    return made


def bundle_of(tmp_path: Path, arm: Arm = SHORTCUT) -> Bundle:
    return read_bundle(write_tiny_bundle(tmp_path / "tiny", arm=arm))


def prepared(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    told: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(ort_cuda, "is_no_slower", lambda *_: True)
        ort_cuda.prepare(bundle, told.append)
    return told


def spy(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    from runtime.backends.ort_executor import FusedGraph

    seen: list[str] = []
    real = FusedGraph.run
    monkeypatch.setattr(FusedGraph, "run", lambda self, work: (seen.append("fused"), real(self, work))[1])
    return seen


@pytest.mark.parametrize("arm", [SHORTCUT, DIFFUSION], ids=["shortcut", "diffusion"])
def test_a_fused_graph_draws_what_the_stages_draw(
    arm: Arm, gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_of(tmp_path, arm)
    told = prepared(bundle, monkeypatch)
    assert "stages: PSNR" in told[1]
    assert "one graph: PSNR" in told[2]
    assert told[-1] == "ready: 4 steps as one graph"
    seen = spy(monkeypatch)
    options = {"prior_weight": 0.1} if arm is SHORTCUT else {"guidance": 3.0}
    with Pipeline(bundle, CUDA) as whole, Pipeline(bundle, Settings("cpu", 1)) as cpu:
        for seed in (3, 4):
            difference = whole.generate(VOICE, seed=seed, **options).image.astype(int)
            difference -= cpu.generate(VOICE, seed=seed, **options).image
            assert np.abs(difference).max() <= 2
        assert seen == ["fused", "fused"]
        whole.generate(VOICE, steps=2)
        whole.generate(VOICE, seed=[1, 2])
        assert seen == ["fused", "fused"]
    assert gpu.graphs.count(True) == 2  # once in prepare, once here


def test_nothing_has_to_be_prepared(gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spy(monkeypatch)
    with Pipeline(bundle_of(tmp_path), CUDA) as pipeline:
        pipeline.generate(VOICE)
    assert (seen, any(gpu.graphs)) == ([], False)


def test_the_slower_form_is_not_used(gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bundle_of(tmp_path)
    monkeypatch.setattr(ort_cuda, "is_no_slower", lambda *_: False)
    ort_cuda.prepare(bundle, lambda _: None)
    assert read_record(Cache.default(), bundle.manifest, place_here()) == Prepared("fp16", (), ())


def test_one_that_draws_something_else_is_not_recorded(
    gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_of(tmp_path)
    monkeypatch.setattr(trial, "psnr", lambda *_: 1.0)
    with pytest.raises(BackendFailed, match="it is not used"):
        ort_cuda.prepare(bundle, lambda _: None)
    assert read_record(Cache.default(), bundle.manifest, place_here()) is None


def test_a_graph_that_cannot_be_captured_runs_all_the_same(
    gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.refuse_graphs = True
    bundle = bundle_of(tmp_path)
    prepared(bundle, monkeypatch)
    seen = spy(monkeypatch)
    with caplog.at_level(logging.WARNING, "runtime"), Pipeline(bundle, CUDA) as pipeline:
        pipeline.generate(VOICE)
    assert seen == ["fused"]
    assert "no CUDA graph for pipeline (batch 1, 4 steps, fp16)" in caplog.text


def test_a_spoilt_graph_is_passed_over_with_the_reason(
    gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = bundle_of(tmp_path)
    prepared(bundle, monkeypatch)
    for path in (Cache.default().folder / "engines").glob("*.bin"):
        path.chmod(0o666)
    with caplog.at_level(logging.WARNING, "runtime"):
        executor = open_executor(bundle, CUDA)
    assert isinstance(executor, OrtExecutor)
    assert "may be written by others" in caplog.text
    executor.close()
    with Pipeline(bundle, CUDA) as pipeline:
        pipeline.generate(VOICE)


def test_the_command(gpu: Gpu, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = bundle_of(tmp_path)
    assert main(["prepare", str(bundle.path), "--device", "cuda"]) == 0
    assert "ms as one graph" in capsys.readouterr().out


# Precision


@pytest.mark.parametrize(("asked", "fused"), [("auto", True), ("fp16", True), ("fp32", False)])
def test_the_precision_asked_for_decides_on_the_fused_graph(
    asked: str, fused: bool, gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_of(tmp_path)
    prepared(bundle, monkeypatch)
    seen = spy(monkeypatch)
    with runtime.load(bundle.path, device="cuda", precision=asked) as pipeline:
        assert (pipeline.device, pipeline.precision) == ("cuda", "fp16" if fused else "fp32")
        pipeline.generate(VOICE)
    assert seen == ["fused"] * fused


def test_without_a_fused_graph_it_is_float32(gpu: Gpu, tmp_path: Path) -> None:
    path = bundle_of(tmp_path).path
    for asked in ("auto", "fp32"):
        with runtime.load(path, device="cuda", precision=asked) as pipeline:
            assert pipeline.precision == "fp32"
    with pytest.raises(NotPrepared, match=r"Run: s2f prepare BUNDLE --device cuda"):
        runtime.load(path, device="cuda", precision="fp16")


def test_a_spoilt_graph_in_fp16_that_was_asked_for_is_an_error(
    gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_of(tmp_path)
    prepared(bundle, monkeypatch)
    for path in (Cache.default().folder / "engines").glob("*.bin"):
        path.chmod(0o666)
    with pytest.raises(NotPrepared, match="may be written by others"):
        runtime.load(bundle.path, device="cuda", precision="fp16")
    with runtime.load(bundle.path, device="cuda", precision="auto") as pipeline:
        assert pipeline.precision == "fp32"


def test_eight_bits_are_not_for_this_device(gpu: Gpu, tmp_path: Path) -> None:
    with pytest.raises(DeviceUnavailable, match="cuda draws in fp32, fp16, not in int8"):
        runtime.load(bundle_of(tmp_path).path, device="cuda", precision="int8")
