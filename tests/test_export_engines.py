"""Building engines, on fakes of every release: what TensorRT is told, what the cache gets, how it can fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
from tiny_bundle import SHORTCUT, write_tiny_bundle

from export import cli, engines, presets, trial
from export.adaptor import Builder, BuildOptions, builder_package
from export.derive import derive
from export.engines import Request, build
from export.trial import psnr
from runtime.backends import Settings, tensorrt
from runtime.bench import synthetic_speech
from runtime.bundle import Bundle, read_bundle
from runtime.cache import Cache
from runtime.cli import main
from runtime.engines import ENGINES, Prepared, engine_tensors, read_record
from runtime.errors import (
    CODES,
    BackendFailed,
    BackendMissing,
    DeviceOutOfMemory,
    InvalidArgument,
    NotPrepared,
    OutputUnwritable,
    StepsUnavailable,
)
from runtime.pipeline import Pipeline

ROOT = Path(__file__).parent.parent
RELEASES = fakes.versions("tensorrt")
VOICE = (synthetic_speech(), 16000)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return read_bundle(write_tiny_bundle(tmp_path / "tiny", arm=SHORTCUT))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setenv("S2F_CACHE", str(tmp_path / "cache"))
    return Cache.default()


def request(**changes: Any) -> Request:
    options = BuildOptions(**changes.pop("options", {}))
    return Request(**{"batches": (1,), "steps": (4,), "precision": "fp16", "options": options, **changes})


def run(bundle: Bundle, cache: Cache, **changes: Any) -> list[str]:
    told: list[str] = []
    build(bundle, request(**changes), cache, told.append)
    return told


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("release", RELEASES)
def test_what_tensorrt_is_told(
    release: str, precision: str, bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = fakes.install(monkeypatch, release)
    told = run(
        bundle,
        cache,
        precision=precision,
        options={"workspace_mib": 300, "optimisation": 2, "half": precision == "fp16"},
    )
    assert len(world.builds) == 4
    for made in world.builds:
        assert made.succeeded
        assert made.workspace == 300 << 20
        assert "TF32" not in made.flags
        assert {"VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"} & set(made.flags) == set()
    flags, network = set(world.builds[0].flags), set(world.builds[0].network_flags)
    if release == "8.6":
        assert network == {"EXPLICIT_BATCH"}
        assert ({"FP16", "PREFER_PRECISION_CONSTRAINTS"} <= flags) == (precision == "fp16")
    else:
        assert network == (set() if release == "11.4" else {"STRONGLY_TYPED"})
        assert "FP16" not in flags
    assert any("PSNR" in line for line in told)
    assert any("minutes left" in line for line in told)
    world.check()


def test_8_6_computes_each_layer_in_the_type_the_graph_gives_it(
    bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = fakes.install(monkeypatch, "8.6")
    run(bundle, cache, steps=())
    told = {name: (precision, outputs) for made in world.builds for name, precision, outputs in made.layers}
    used = {precision for precision, _ in told.values() if precision is not None}
    assert {str(one).rpartition(".")[2] for one in used} == {"HALF", "FLOAT"}


@pytest.mark.parametrize("release", RELEASES)
def test_engines_have_the_tensors_the_runtime_expects(release: str, bundle: Bundle, monkeypatch: Any) -> None:
    fakes.install(monkeypatch, release)
    manifest = bundle.manifest
    for spec in Prepared("fp16", (1, 4), ((1, 2), (1, 4))).engines():
        import onnx

        graph = onnx.load_from_string(
            derive(bundle, spec.graph, batch=spec.batch, steps=spec.steps, precision="fp16")
        ).graph
        inputs, outputs = engine_tensors(manifest, spec)
        assert {v.name for v in graph.input} == inputs.keys()
        assert {v.name for v in graph.output} == outputs.keys()
        for value in (*graph.input, *graph.output):
            wanted = {**inputs, **outputs}[value.name]
            assert tuple(d.dim_value for d in value.type.tensor_type.shape.dim) == wanted.shape
            assert onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type) == np.dtype(wanted.dtype)


def test_a_second_build_finds_everything(bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    world = fakes.install(monkeypatch, "10.3")
    run(bundle, cache)
    builds = len(world.builds)
    told = run(bundle, cache)
    assert len(world.builds) == builds
    assert sum("in the cache" in line for line in told) == 4
    run(bundle, cache, batches=(1, 4), steps=(2, 4))
    assert len(world.builds) == builds + 4


def test_the_timing_cache_is_handed_on_and_a_corrupt_one_is_not_used(
    bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = fakes.install(monkeypatch, "10.3")
    run(bundle, cache, steps=())
    assert b'"graphs": []' in world.builds[0].timing_cache
    assert b'"graphs": []' not in world.builds[1].timing_cache
    for path in (cache.folder / engines.TIMINGS).glob("*.bin"):
        path.write_bytes(path.read_bytes()[:-3])
    run(bundle, cache, steps=(1,))
    assert world.builds[-1].succeeded
    assert b'"graphs": []' in world.builds[-1].timing_cache
    for path in (cache.folder / ENGINES).glob("*.bin"):
        path.unlink()
    builder = Builder(builder_package())
    plan, _ = builder.build(derive(bundle, "decoder", batch=1), BuildOptions(), timings=b"of another release")
    assert plan


def test_the_faster_form_is_recorded(bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.install(monkeypatch, "10.3")
    for fused, expected in ((True, ((1, 4),)), (False, ())):
        monkeypatch.setattr(engines, "is_no_slower", lambda *_, answer=fused: answer)
        run(bundle, cache)
        place = tensorrt.place_here(tensorrt.package())
        record = read_record(cache, bundle.manifest, place)
        assert record == Prepared("fp16", (1,), expected)


def test_a_pipeline_whose_weights_were_copied_is_not_used(
    bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes.install(monkeypatch, "10.3")
    real = Builder.build

    def padded(self: Builder, data: bytes, options: BuildOptions, **more: Any) -> tuple[bytes, bytes]:
        plan, timings = real(self, data, options, **more)
        return plan + bytes(200_000 if b"noise" in data else 0), timings

    monkeypatch.setattr(Builder, "build", padded)
    told = run(bundle, cache)
    assert any("weights are copied, not used" in line for line in told)
    record = read_record(cache, bundle.manifest, tensorrt.place_here(tensorrt.package()))
    assert record == Prepared("fp16", (1,), ())


def test_an_engine_full_of_zeros_is_refused(bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    world = fakes.install(monkeypatch, "11.4")
    world.plan_padding = 80 << 20
    with pytest.raises(BackendFailed, match="Use another release"):
        run(bundle, cache)
    assert not list((cache.folder / ENGINES).glob("*.bin"))


def test_engines_that_draw_something_else_are_not_recorded(
    bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes.install(monkeypatch, "10.3")
    monkeypatch.setattr(trial, "psnr", lambda *_: 12.0)
    with pytest.raises(BackendFailed, match=r"12.0 dB PSNR .* nothing was recorded"):
        run(bundle, cache)
    with pytest.raises(NotPrepared):
        Pipeline(bundle, Settings("tensorrt", 1))


@pytest.mark.parametrize(
    ("failure", "error"), [("none", BackendFailed), ("memory", DeviceOutOfMemory), ("raise", Exception)]
)
def test_a_build_that_fails(
    failure: str, error: type[Exception], bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = fakes.install(monkeypatch, "10.3")
    world.build_failure = failure
    with pytest.raises(error):
        run(bundle, cache)
    world.build_failure = ""
    run(bundle, cache)
    world.check()


def test_not_enough_workspace(bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    world = fakes.install(monkeypatch, "10.3")
    world.workspace_needed = 100 << 20
    with pytest.raises((BackendFailed, DeviceOutOfMemory)):
        run(bundle, cache, options={"workspace_mib": 50})
    run(bundle, cache, options={"workspace_mib": 200})


def test_an_operator_the_parser_lacks(bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.install(monkeypatch, "10.3").unsupported = ("Conv",)
    with pytest.raises(BackendFailed, match="does not read the graph"):
        run(bundle, cache)


def test_a_full_disk(bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    world = fakes.install(monkeypatch, "10.3")
    run(bundle, cache, steps=())
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputUnwritable, match="No space left"):
        run(bundle, cache)
    assert calls
    monkeypatch.setattr(os, "fsync", real)
    builds = len(world.builds)
    run(bundle, cache)
    assert len(world.builds) == builds + 1


@pytest.mark.parametrize(
    "changes",
    [
        {"batches": ()},
        {"batches": (0,)},
        {"batches": (17,)},
        {"precision": "int8"},
        {"options": {"optimisation": 6}},
        {"options": {"workspace_mib": 0}},
    ],
)
def test_requests_that_make_no_sense(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        request(**changes)


def test_steps_the_bundle_lacks(bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.install(monkeypatch, "10.3")
    with pytest.raises(StepsUnavailable):
        run(bundle, cache, steps=(3,))


def test_psnr() -> None:
    a = np.zeros((2, 2, 3), np.uint8)
    assert psnr(a, a) == 100
    assert psnr(a, a + np.uint8(255)) == pytest.approx(0)
    assert psnr(a + np.uint8(1), a) == pytest.approx(48.13, abs=0.01)


def test_s2f_prepare(
    bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fakes.install(monkeypatch, "10.3", capability=(8, 7))
    monkeypatch.setattr(engines, "board", lambda: "NVIDIA Jetson Orin Nano Developer Kit")
    assert main(["prepare", str(bundle.path), "--device", "tensorrt"]) == 0
    out = capsys.readouterr().out
    assert "preset orin-nano" in out
    assert "ready: batch 1" in out
    voice = ROOT / "examples" / "woman.wav"
    target = tmp_path / "face.png"
    command = ["generate", str(voice), "-o", str(target), "--bundle", str(bundle.path), "--device", "tensorrt"]
    assert main(command) == 0
    assert target.read_bytes().startswith(b"\x89PNG")
    assert main(["verify", str(bundle.path), "--device", "tensorrt"]) == 0
    assert main(["doctor"]) in (0, CODES["BundleNotFound"])
    assert "tensorrt tensorrt: works" in capsys.readouterr().out


def test_s2f_export_engines(
    bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    world = fakes.install(monkeypatch, "10.3", capability=(8, 7))
    report = tmp_path / "layers.json"
    words = [
        "engines",
        str(bundle.path),
        "--device",
        "orin-nano",
        "--batch",
        "1,4",
        "--steps",
        "1,2",
        "--precision",
        "fp32",
    ]
    assert cli.main([*words, "--workspace", "99", "--optimisation", "1", "--report", str(report)]) == 0
    assert "engines for tiny are in" in capsys.readouterr().out
    assert {made.workspace for made in world.builds} == {99 << 20}
    assert len(world.builds) == 8
    assert len(json.loads(report.read_text())) == 8
    for wrong in (["--forms", "x"], ["--batch", "one"], ["--steps", "3"], ["--batch", "99"]):
        assert cli.main(["engines", str(bundle.path), *wrong]) in (CODES["InvalidArgument"], CODES["StepsUnavailable"])
    assert cli.main(["engines", str(tmp_path / "none")]) == CODES["BundleNotFound"]


def test_every_preset_asks_for_something_that_can_be_built(bundle: Bundle) -> None:
    for preset in presets.PRESETS.values():
        asked = Request.of(preset, bundle)
        assert asked.stages()
        assert (asked.pipelines() != []) == ("pipeline" in preset.forms)


def test_without_the_builder(bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.install(monkeypatch, "11.4", lean=True)
    with pytest.raises(BackendMissing, match="package tensorrt"):
        run(bundle, cache)
    fakes.install(monkeypatch, "10.3", without=("tensorrt",))
    with pytest.raises(BackendMissing, match=r"s2f-edge\[trt\]"):
        run(bundle, cache)


def test_building_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import export.engines, export.engines_cli, export.cli"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


PREPARE = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
import fakes, pytest
world = fakes.install(pytest.MonkeyPatch(), "10.3")
world.build_seconds = float(sys.argv[2])
from export.adaptor import BuildOptions
from export.engines import Request, build
from runtime.bundle import read_bundle
from runtime.cache import Cache
print("begun", flush=True)
request = Request((1,), (4,), "fp16", BuildOptions())
build(read_bundle(Path(sys.argv[1])), request, Cache.default(), lambda line: print(line, flush=True))
print("builds", len(world.builds), flush=True)
"""


def start(bundle: Bundle, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, str(bundle.path), str(seconds)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_two_prepare_at_once_and_one_builds(bundle: Bundle, cache: Cache) -> None:
    both = [start(bundle, 0.3) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    built = sorted(int(out.rpartition("builds ")[2]) for out, _ in outputs)
    assert built == [0, 4]
    assert any("another process builds; waiting" in out for out, _ in outputs)
