"""What benchmarks/gpu compares TensorRT with: PyTorch, ONNX Runtime, and the second interpreter that runs them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_benchmark import SMALL, install, isolate, results, tiny
from tiny_bundle import SHORTCUT, write_tiny_bundle

from benchmarks.gpu import baselines, command, worker
from benchmarks.gpu.plan import Counts, Job, Selection
from benchmarks.gpu.verdicts import COMPILED
from runtime.errors import BackendFailed


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)


# The other interpreter


def test_environment_for_another_interpreter(tmp_path: Path) -> None:
    kit = tmp_path / "kit"
    (kit / "python").mkdir(parents=True)
    here = {
        "PYTHONHOME": str(kit / "python"),
        "PYTHONPATH": f"{kit}/site:/other",
        "LD_LIBRARY_PATH": f"{kit}/stubs:/driver/lib:{kit}/site/tensorrt",
        "PATH": "/bin",
    }
    assert worker.foreign(here, "/wheels") == {
        "PYTHONPATH": "/wheels",
        "LD_LIBRARY_PATH": "/driver/lib",
        "PATH": "/bin",
    }
    assert worker.foreign({"PATH": "/bin", "PYTHONPATH": "/x"}, "") == {"PATH": "/bin"}
    assert worker.foreign({"LD_LIBRARY_PATH": f"{kit}/stubs", "PYTHONHOME": str(kit / "python")}, "") == {}


def job_for_torch(tmp_path: Path, **settings: Any) -> Job:
    out = tmp_path / "out"
    out.mkdir()
    bundle = write_tiny_bundle(tmp_path / "tiny", steps=(1,), arm=SHORTCUT)
    counts = Counts(runs=1, rounds=1, voices=1, seeds=1, soak=1, warm=0.0)
    return Job(out, bundle, Selection(("fp16",), steps=(1,)), counts, torch_device="cpu", network="tiny", **settings)


def test_another_interpreter_measures_and_may_be_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    remote = worker.Remote(job_for_torch(tmp_path), Path(sys.executable))
    try:
        hello = remote.ask({"do": "hello"}, 60)
        assert "torch eager fp16" in hello["ways"]
        assert "BackendMissing" in hello["missing"]["tensorrt"]
        assert hello["versions"]["torch"]
        with pytest.raises(BackendFailed, match="no way 'magic'"):
            remote.ask({"do": "prepare", "way": "magic"}, 60)
        about = remote.ask({"do": "prepare", "way": "torch eager fp16"}, 60)
        assert (about["weights"], about["to_eager_max_levels"], about["log"]) == ("random", 0, [])
        request = {"do": "measure", "way": "torch eager fp16", "runs": 1, "warm": 0.0, "most": 1.0}
        assert len(remote.ask(request, 60)["ms"]) == 1
        with pytest.raises(BackendFailed, match="no answer"):
            remote.ask({"do": "prepare", "way": "torch eager fp16"}, 0.01)
        assert not remote.alive
        with pytest.raises(BackendFailed, match=r"worker\.log"):
            remote.ask({"do": "hello"}, 1)
        remote.restart()
        assert remote.ask({"do": "hello"}, 60) == hello
    finally:
        remote.close()
    remote.close()
    assert not remote.alive


def test_an_interpreter_that_cannot_start(tmp_path: Path) -> None:
    with pytest.raises(BackendFailed, match="cannot be started"):
        worker.Remote(job_for_torch(tmp_path), tmp_path / "nothing")


class Scripted(worker.Remote):
    """Another interpreter in which compiling outlasts its time."""

    def __init__(self) -> None:
        self.prepared: list[str] = []
        self.asked: list[str] = []
        self.dead = False

    @property
    def alive(self) -> bool:
        return not self.dead

    def restart(self) -> None:
        self.prepared, self.dead = [], False

    def close(self, grace: float = 0.0) -> None:
        pass

    def ask(self, request: dict[str, Any], seconds: float | None = None) -> dict[str, Any]:
        if request["do"] == "hello":
            return {"ways": [COMPILED, "torch eager fp16", "broken"], "missing": {}, "versions": {}}
        if request["do"] == "probe":
            return {"size": 1, "fp16_tflops": 1.0, "fp32_tflops": 1.0}
        way = request["way"]
        self.asked.append(f"{request['do']} {way}")
        if request["do"] == "measure":
            assert way in self.prepared
            return {"ms": [2.0, 2.0]}
        self.dead = way == COMPILED
        if way in (COMPILED, "broken"):
            raise BackendFailed(f"{way} fails")
        self.prepared.append(way)
        return {"seconds": 1.0}


def test_what_outlasts_its_time_takes_nothing_else_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = install(monkeypatch)
    other = Scripted()
    monkeypatch.setattr(baselines, "Remote", Scripted)
    monkeypatch.setattr(Scripted, "__new__", lambda *arguments: other)
    monkeypatch.setattr(Scripted, "__init__", lambda *arguments: None)
    monkeypatch.setattr("benchmarks.gpu.arms._torch", lambda job: {})
    out, bundle = tmp_path / "out", tiny(tmp_path)
    words = ["-o", str(out), "--bundle", str(bundle), *SMALL, "--batches", "1", "--steps", "4"]
    assert command.main(["engines", "baselines", *words, "--torch-python", "elsewhere"]) == 0
    ways = results(out, "baselines")["results"]["ways"]
    assert "fails" in ways[COMPILED]["error"]
    assert "fails" in ways["broken"]["error"]
    assert ways["torch eager fp16"]["p50_of_rounds"] == [2.0, 2.0]
    assert len(ways["tensorrt pipeline fp16"]["p50_of_rounds"]) == 2
    assert other.asked.index(f"prepare {COMPILED}") > other.asked.index("prepare broken")
    assert other.prepared == ["torch eager fp16"]
    world.check()


# ONNX Runtime, with the CPU's kernels in the place of the GPU's


def test_onnxruntime_is_compared_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime
    from test_ort_executor import Gpu

    from runtime.backends import ort

    gpu = Gpu(onnxruntime)
    monkeypatch.setattr(ort, "package", lambda _: gpu)
    monkeypatch.setitem(ort.MEMORIES, "cuda", "cpu")
    monkeypatch.setattr("benchmarks.gpu.arms._torch", lambda job: {})
    monkeypatch.setattr("benchmarks.gpu.cuda_check.bench", lambda bundle, device: {"device": device})
    out, bundle = tmp_path / "out", tiny(tmp_path)
    assert command.main(["baselines", "cuda", "-o", str(out), "--bundle", str(bundle), *SMALL]) == 0
    ways = results(out, "baselines")["results"]["ways"]
    assert set(ways) == {"onnxruntime cuda stages fp32", *(f"onnxruntime cuda pipeline {p}" for p in ("fp16", "fp32"))}
    assert all("ms" in way and way["log"] == [] for way in ways.values())
    assert gpu.graphs.count(True) == 2
    checked = results(out, "cuda")["results"]
    assert checked["portraits"].keys() == {"1 steps", "4 steps"}
    assert all(value["max_levels"] == 0 and value["cuda_repeats"] for value in checked["portraits"].values())
    assert checked["bench"] == {device: {"device": device} for device in ("cuda", "cpu")}


# PyTorch


@pytest.mark.parametrize("arm", ["shortcut", "diffusion"])
def test_what_pytorch_draws_is_what_is_exported(arm: str) -> None:
    """In float32 the baseline draws what the modules draw that the graphs come from; compiling finds no break in it."""
    torch = pytest.importorskip("torch")
    from toy_system import toy_rows, toy_system

    from benchmarks.gpu import torch_baseline
    from export.modules import DecoderGraph, EncoderGraph, step_graph
    from runtime.bench import synthetic_speech
    from training.arms import GUIDANCE

    system, steps = toy_system(arm=arm), 2
    painter = torch_baseline.Painter(system, steps, torch.float32)
    canvas = torch_baseline.Canvas(system, synthetic_speech(), "cpu")
    step, rows = step_graph(system, toy_rows(system, (steps,))), range(steps)
    with torch.no_grad():
        image = canvas.draw(torch_baseline.eager(painter, canvas), 3)
        pcm, noise = canvas.device
        condition, latent, history = EncoderGraph(system)(pcm), noise, torch.zeros_like(noise)
        for row in rows:
            index = torch.tensor([row])
            if arm == "shortcut":
                latent = step(latent, condition, index, torch.tensor([system.prior_weight]))
            else:
                latent, history = step(latent, history, condition, index, torch.tensor([GUIDANCE]))
        wanted = DecoderGraph(system)(latent)[0].numpy()
        np.testing.assert_array_equal(image, wanted)
        traced = torch_baseline.compiled(painter, canvas, backend="eager")
        assert np.abs(canvas.draw(traced, 3).astype(int) - wanted).max() <= 1


def test_pytorch_in_half_precision(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from benchmarks.gpu import torch_baseline

    job = job_for_torch(tmp_path)
    way = torch_baseline.TorchArm("torch eager fp16, channels last", "tiny", 1, job.voices[0], "cpu")
    about = way.prepare()
    assert (about["weights"], about["to_eager_max_levels"]) == ("random", 0)
    image = way.draw(1)
    assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)
    assert np.array_equal(way.draw(1), image)
    assert not np.array_equal(way.draw(2), image)
    way.close()
    assert torch_baseline.probe("cpu")["fp32_tflops"] >= 0


def test_the_compiled_way_is_the_one_the_verdict_speaks_of() -> None:
    pytest.importorskip("torch")
    from benchmarks.gpu import torch_baseline

    assert COMPILED in torch_baseline.WAYS
