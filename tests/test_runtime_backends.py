"""Backends: the checks of the base, ONNX Runtime's settings, and no silent fall to another device."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from onnx import helper
from tiny_bundle import make_graph, write_bundle, write_tiny_bundle

import runtime
from runtime import backends
from runtime.backends import Settings, available, libraries, ort, select
from runtime.backends.base import Array, Kept, Session, Tensor
from runtime.bench import synthetic_speech
from runtime.bundle import TensorSpec
from runtime.errors import (
    BackendFailed,
    BackendMissing,
    BundleInvalid,
    Closed,
    DeviceOutOfMemory,
    DeviceUnavailable,
    InvalidArgument,
)

ROOT = Path(__file__).parent.parent
ONE = Settings("cpu", 1)
IN = (TensorSpec("x", "float32", ("batch", 3)), TensorSpec("step", "int64", (1,)))
OUT = (TensorSpec("y", "float32", ("batch", 2)), TensorSpec("z", "uint8", ("batch",)))


class Fake(Session):
    """A backend that returns what the test tells it to."""

    backend = "fake"
    specs: tuple[Sequence[TensorSpec], Sequence[TensorSpec]] = (IN, OUT)
    answer: Sequence[Array] = (np.zeros((2, 2), np.float32), np.zeros(2, np.uint8))
    opened = 0
    seen: dict[str, Tensor]

    def _open(self, data: bytes, settings: Settings) -> None:
        type(self).opened += 1

    def _specs(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        return list(self.specs[0]), list(self.specs[1])

    def _run(self, feeds: dict[str, Tensor], keep: bool) -> Sequence[Tensor]:
        self.seen = feeds
        return self.answer

    def _close(self) -> None:
        type(self).opened -= 1


def good() -> dict[str, Any]:
    return {"x": np.ones((2, 3), np.float32), "step": np.zeros(1, np.int64)}


def test_named_arrays_in_and_out() -> None:
    result = Fake("stage", b"", IN, OUT, ONE).run(good())
    assert list(result) == ["y", "z"]


def test_feeds_reach_the_backend_contiguous() -> None:
    session = Fake("stage", b"", IN, OUT, ONE)
    session.run({**good(), "x": np.ones((3, 2), np.float32).T})
    assert all(array.flags.c_contiguous for array in session.seen.values())


@pytest.mark.parametrize(
    "change",
    [
        {"x": np.ones((2, 3))},
        {"x": np.ones((2, 3), np.float16)},
        {"x": np.ones((2, 3), ">f4")},
        {"x": np.ones((2, 4), np.float32)},
        {"x": np.ones((3,), np.float32)},
        {"x": np.ones((1, 2, 3), np.float32)},
        {"x": np.ones((0, 3), np.float32)},
        {"x": np.float32(1)},
        {"x": [[1.0, 1.0, 1.0]]},
        {"step": np.zeros(2, np.int64)},
        {"step": np.zeros((), np.int64)},
        {"step": np.zeros(1, np.int32)},
        {"other": np.zeros(1)},
    ],
)
def test_bad_inputs_never_reach_the_backend(change: dict[str, Any]) -> None:
    session = Fake("stage", b"", IN, OUT, ONE)
    with pytest.raises(InvalidArgument, match="stage"):
        session.run({**good(), **change})
    assert not hasattr(session, "seen")


def test_a_missing_input() -> None:
    with pytest.raises(InvalidArgument, match="takes x, step"):
        Fake("stage", b"", IN, OUT, ONE).run({"x": np.ones((2, 3), np.float32)})


@pytest.mark.parametrize(
    "answer",
    [
        (np.zeros((2, 2), np.float32),),
        (np.zeros((2, 2), np.float32), np.zeros(3, np.uint8)),
        (np.zeros((3, 2), np.float32), np.zeros(3, np.uint8)),
        (np.zeros((2, 2), np.float64), np.zeros(2, np.uint8)),
        (np.full((2, 2), np.nan, np.float32), np.zeros(2, np.uint8)),
        (np.full((2, 2), np.inf, np.float32), np.zeros(2, np.uint8)),
    ],
)
def test_bad_outputs_are_the_backends_failure(answer: Sequence[Array]) -> None:
    session = Fake("stage", b"", IN, OUT, ONE)
    session.answer = answer
    with pytest.raises(BackendFailed, match="stage"):
        session.run(good())


@pytest.mark.parametrize(
    "inputs",
    [
        IN[:1],
        (*IN, TensorSpec("more", "float32", (1,))),
        (TensorSpec("x", "int64", ("batch", 3)), IN[1]),
        (TensorSpec("x", "float32", (1, 3)), IN[1]),
        (TensorSpec("x", "float32", ("batch", "?")), IN[1]),
    ],
)
def test_a_graph_unlike_its_manifest_is_refused_and_closed(inputs: Sequence[TensorSpec]) -> None:
    class Other(Fake):
        specs = (inputs, OUT)
        opened = 0

    with pytest.raises(BundleInvalid, match="inputs of the stage"):
        Other("stage", b"", IN, OUT, ONE)
    assert Other.opened == 0


def test_the_order_of_a_graphs_tensors_does_not_matter() -> None:
    class Other(Fake):
        specs = (IN[::-1], OUT)

    assert list(Other("stage", b"", IN, OUT, ONE).inputs) == ["x", "step"]


def test_a_closed_session() -> None:
    session = Fake("stage", b"", IN, OUT, ONE)
    session.close()
    session.close()
    with pytest.raises(Closed):
        session.run(good())


def test_ort_reports_a_graph_that_is_none() -> None:
    with pytest.raises(BackendFailed, match="cannot open"):
        ort.OrtSession("unet", b"not a model", IN, OUT, ONE)


def test_a_bundle_whose_graph_has_another_type(tmp_path: Path) -> None:
    folder = write_tiny_bundle(tmp_path / "good")
    graphs = {name: (folder / f"{name}.onnx").read_bytes() for name in ("encoder", "unet", "decoder")}
    nodes = [
        helper.make_node("Conv", ["latent", "kernel"], ["cells"]),
        helper.make_node("DepthToSpace", ["cells"], ["pixels"], blocksize=8),
        helper.make_node("Transpose", ["pixels"], ["image"], perm=[0, 2, 3, 1]),
    ]
    kernel = np.zeros((192, 4, 1, 1), np.float32)
    graphs["decoder"] = make_graph("decoder", nodes, {"kernel": kernel}, image="float32")
    with pytest.raises(BundleInvalid, match=r"image: manifest uint8 .* graph float32"):
        runtime.load(write_bundle(tmp_path / "bad", graphs, "bad", (1,)))


def test_threads_are_set() -> None:
    import onnxruntime

    options = ort._options(onnxruntime, Settings("cpu", 3))
    assert options.intra_op_num_threads == 3
    assert options.inter_op_num_threads == 1
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_spinning_is_short_or_off() -> None:
    new, old = ort._spinning("1.31.1"), ort._spinning("1.17.3")
    assert int(new["session.intra_op.spin_duration_us"]) <= 100
    assert (new["session.intra_op.allow_spinning"], old["session.intra_op.allow_spinning"]) == ("1", "0")
    assert new["session.inter_op.allow_spinning"] == old["session.inter_op.allow_spinning"] == "0"
    assert ort._spinning("2.0.0.dev1") == new


def test_cpu_works_here() -> None:
    cpu = {device.name: device for device in available()}["cpu"]
    assert cpu.usable
    assert (cpu.reason, cpu.cure) == ("", "")
    assert select("cpu") == "cpu"
    assert select("auto") in backends.DEVICES


def hide_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])


def test_a_missing_provider_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_cuda(monkeypatch)
    with pytest.raises(DeviceUnavailable, match=r"CUDAExecutionProvider.*s2f-edge\[gpu\]"):
        select("cuda")
    assert select("auto") == "cpu"
    cuda = {device.name: device for device in available()}["cuda"]
    assert not cuda.usable
    assert "CUDAExecutionProvider" in cuda.reason
    assert "s2f-edge[gpu]" in cuda.cure


LAYOUTS: list[tuple[list[str], bool]] = [
    (["libonnxruntime.so.1.32.0", "libonnxruntime_providers_shared.so"], False),
    (["libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so"], True),
    (["onnxruntime_providers_shared.dll", "onnxruntime_providers_cuda.dll"], True),
    (["onnxruntime_providers_shared.dll", "onnxruntime_providers_openvino.dll"], False),
    (["onnxruntime_pybind11_state.so"], True),  # its libraries lie elsewhere
]


@pytest.mark.parametrize(("files", "possible"), LAYOUTS)
def test_a_provider_is_looked_for_among_files(
    files: list[str], possible: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capi = tmp_path / "onnxruntime" / "capi"
    capi.mkdir(parents=True)
    for name in ("../__init__.py", *files):
        (capi / name).write_text("raise AssertionError('imported')")
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert ort.can_have_cuda() == possible


def test_without_the_package_there_is_no_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert not ort.can_have_cuda()


def test_auto_does_not_import_what_cannot_help() -> None:
    """Where another device serves; the CPU needs it."""
    code = """
import sys
from runtime import backends
backends._require = lambda name: print(name)
backends.select("auto")
print("onnxruntime" in sys.modules, backends._can_be_here("cuda"))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() in (["cpu", "False", "False"], ["cpu", "True", "True"])


class Pretender:
    """onnxruntime-gpu on a machine without a GPU: lists CUDA, opens the session, and quietly runs on the CPU."""

    def __init__(self, real: Any, providers: list[str]) -> None:
        self.real = real
        self.providers = providers
        self.__version__ = "9.9"
        self.asked: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def preload_dlls(self) -> None:
        sys.stdout.write("noise\n")

    def InferenceSession(self, data: bytes, options: Any, providers: list[Any]) -> Any:  # noqa: N802 - their name
        self.asked.append(providers)
        session = self.real.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        session.get_providers = lambda: self.providers
        return session


def test_a_provider_that_does_not_start_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    monkeypatch.setattr(ort, "package", lambda _: Pretender(onnxruntime, ["CPUExecutionProvider"]))
    with pytest.raises(DeviceUnavailable, match="does not start"):
        runtime.load(write_tiny_bundle(tmp_path / "tiny"), device="cuda")
    assert select("auto") == "cpu"
    assert capfd.readouterr() == ("", "")


def test_cuda_is_preferred_where_it_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import onnxruntime

    fake = Pretender(onnxruntime, ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "package", lambda _: fake)
    with runtime.load(write_tiny_bundle(tmp_path / "tiny")) as pipeline:
        assert pipeline.device == "cuda"
    assert {providers[0][0] for providers in fake.asked} == {"CUDAExecutionProvider"}


def test_onnxruntime_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnxruntime" else real(name, *a))
    with pytest.raises(BackendMissing, match=r"s2f-edge\[cpu\]"):
        runtime.load(write_tiny_bundle(tmp_path / "tiny"))
    with pytest.raises(BackendMissing, match=r"s2f-edge\[gpu\]"):
        select("cuda")
    assert not any(device.usable for device in available() if device.name != "openvino")
    assert ort.version() is None


def test_a_damaged_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: object())
    with pytest.raises(BackendMissing, match="side by side"):
        select("cpu")


def test_idle_threads_sleep(tmp_path: Path) -> None:
    """After a call the process uses no processor time: nothing of ours spins (spinning costs 25 ms and more)."""
    used = []
    with runtime.load(write_tiny_bundle(tmp_path / "tiny"), device="cpu", threads=2) as pipeline:
        for _ in range(3):
            pipeline.generate((synthetic_speech(), 16000))
            begin = time.process_time()
            time.sleep(0.1)
            used.append(time.process_time() - begin)
    assert min(used) < 0.01


@pytest.mark.gpu
def test_cuda_runs(tmp_path: Path) -> None:
    try:
        select("cuda")
    except (BackendMissing, DeviceUnavailable) as error:
        pytest.skip(str(error))
    folder = write_tiny_bundle(tmp_path / "tiny")
    voice = (synthetic_speech(), 16000)
    with runtime.load(folder, device="cuda") as gpu, runtime.load(folder, device="cpu") as cpu:
        difference = gpu.generate(voice).image.astype(int) - cpu.generate(voice).image
    assert np.abs(difference).max() <= 2


def test_missing_libraries_are_named(tmp_path: Path) -> None:
    library = tmp_path / "libprovider.so"
    library.write_bytes(b"\x7fELF\0libc.so.6\0libnothere.so.12\0libnothere_either.so.9\0text\0")
    assert libraries.missing(library) == ["libnothere.so.12", "libnothere_either.so.9"]
    assert libraries.missing(tmp_path / "none.so") == []
    (tmp_path / "empty.so").touch()
    assert libraries.missing(tmp_path / "empty.so") == []


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        (["libcuda.so.1", "libcudnn.so.9"], "no NVIDIA driver"),
        (["libcublas.so.12", "libcudnn.so.9"], r"libcublas.so.12, libcudnn.so.9.*onnxruntime-gpu\[cuda,cudnn\]"),
        ([], "no usable device"),
    ],
)
def test_why_a_provider_does_not_start(lacking: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(ort, "package", lambda _: Pretender(onnxruntime, ["CPUExecutionProvider"]))
    monkeypatch.setattr(ort, "missing", lambda _: lacking)
    device = ort.probe("cuda")
    assert not device.usable
    assert re.search(said, f"{device.reason} {device.cure}")


def test_what_a_graph_hands_on_stays_on_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The bound path, on host memory in the place of the GPU: same portraits, latents kept until the last step."""
    import onnxruntime

    folder = write_tiny_bundle(tmp_path / "tiny")
    voice = (synthetic_speech(), 16000)
    with runtime.load(folder, device="cpu", threads=1) as pipeline:
        plain = [p.image for p in pipeline.generate(voice, seed=[1, 2])]
        one = pipeline.generate(voice, seed=3).image
    fake = Pretender(onnxruntime, ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "package", lambda _: fake)
    monkeypatch.setitem(ort.MEMORIES, "cuda", "cpu")
    kept: list[str] = []
    bound = ort.OrtSession._run_bound

    def spied(session: ort.OrtSession, feeds: dict[str, Tensor], keep: bool) -> Sequence[Tensor]:
        results = bound(session, feeds, keep)
        kept.append(f"{session.stage} {all(isinstance(value, Kept) for value in results)}")
        return results

    monkeypatch.setattr(ort.OrtSession, "_run_bound", spied)
    with runtime.load(folder, device="cuda", threads=1) as pipeline:
        again = [p.image for p in pipeline.generate(voice, seed=[1, 2])]
        np.testing.assert_array_equal(again, plain)
        kept.clear()
        np.testing.assert_array_equal(pipeline.generate(voice, seed=3).image, one)
    assert kept == ["encoder True", *["unet True"] * 3, "unet False", "decoder False"]


def test_a_lack_of_memory_is_told_apart() -> None:
    with pytest.raises(DeviceOutOfMemory, match="x: CUDA failure 2"), ort.translated("x"):
        raise RuntimeError("CUDA failure 2: out of memory ; GPU=0")
    with pytest.raises(BackendFailed, match="x: CUDA error 700"), ort.translated("x"):
        raise RuntimeError("CUDA error 700: an illegal memory access was encountered")
    with pytest.raises(BackendFailed, match="x: bad shape"), ort.translated("x"):
        raise RuntimeError("bad shape")
