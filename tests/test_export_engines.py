"""Building engines, on fakes of every release: what TensorRT is told, what the cache gets, how it can fail."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
from tiny_bundle import DIFFUSION, SHORTCUT, write_tiny_bundle

from export import cli, engines, presets, trial
from export.adaptor import Builder, BuildOptions, builder_package
from export.derive import derive
from export.engines import Request, build
from export.simplify import element_types
from runtime.backends import Settings, ort, tensorrt
from runtime.bench import synthetic_speech
from runtime.bundle import STAGES, Bundle, read_bundle
from runtime.cache import Cache
from runtime.cli import main
from runtime.engines import (
    ENGINES,
    RECIPE,
    RECORDS,
    EngineSpec,
    Prepared,
    engine_key,
    engine_tensors,
    read_record,
    record_key,
)
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
from runtime.executor import Executor
from runtime.pipeline import Pipeline
from runtime.portrait import psnr

ROOT = Path(__file__).parent.parent
RELEASES = fakes.versions("tensorrt")
VOICE = (synthetic_speech(), 16000)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return read_bundle(write_tiny_bundle(tmp_path / "tiny", arm=SHORTCUT))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setenv("S2F_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(trial, "PATIENCE", 0.0)
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
        options={"workspace_mib": 300, "optimisation": 2},
    )
    assert len(world.builds) == 4
    for made in world.builds:
        assert made.succeeded
        assert made.workspace == 300 << 20
        assert "TF32" not in made.flags
        assert {"VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"} & set(made.flags) == set()
    flags, network = set().union(*(made.flags for made in world.builds)), set(world.builds[0].network_flags)
    if release == "8.6":
        assert network == {"EXPLICIT_BATCH"}
        assert ({"FP16", "PREFER_PRECISION_CONSTRAINTS"} <= flags) == (precision == "fp16")
    else:
        assert network == (set() if release == "11.4" else {"STRONGLY_TYPED"})
        assert "FP16" not in flags
    assert any(line.startswith("stages: PSNR") for line in told)
    assert any(line.startswith("one engine: PSNR") for line in told)
    assert not world.host_code
    assert any("minutes left" in line for line in told)
    world.check()


@pytest.mark.parametrize("stage", ["unet", "decoder"])
def test_8_6_computes_each_layer_in_the_type_the_graph_gives_it(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx

    world = fakes.install(monkeypatch, "8.6")
    data = derive(read_bundle(ROOT / "runtime" / "bundles" / "demo"), stage, batch=1)
    Builder(builder_package()).build(data, BuildOptions())
    kinds = {onnx.TensorProto.FLOAT: "FLOAT", onnx.TensorProto.FLOAT16: "HALF"}
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(data))
    types = {name: kinds.get(kind) for name, kind in element_types(model).items()}
    told = {name: (precision, outputs) for name, precision, outputs in world.builds[-1].layers}
    seen: set[str] = set()
    for node in model.graph.node:
        reads = {types[name] for name in node.input if types.get(name)}
        if node.op_type == "Cast" or node.name not in told or not reads:
            continue
        precision, outputs = told[node.name]
        assert name_of(precision) == ("FLOAT" if "FLOAT" in reads else "HALF"), node.name
        if types[node.output[0]]:
            assert name_of(outputs[0]) == types[node.output[0]], node.name
        seen.add(name_of(precision))
    assert seen == {"HALF", "FLOAT"}
    sources = world.builds[-1].settings["tactic_sources"]
    import tensorrt as trt

    for library in (trt.TacticSource.CUBLAS, trt.TacticSource.CUBLAS_LT, trt.TacticSource.CUDNN):
        assert not sources & 1 << int(library)


def name_of(kind: object) -> str:
    return str(kind).rpartition(".")[2]


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
        assert record is not None
        assert (record.batches, record.pipelines) == ((1,), expected)


def test_a_pipeline_whose_weights_were_copied_is_not_used(
    bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = fakes.install(monkeypatch, "10.3")
    monkeypatch.setattr(engines, "is_no_slower", lambda *_: True)
    run(bundle, cache)
    manifest, place = bundle.manifest, tensorrt.place_here(tensorrt.package())
    stages = [EngineSpec(stage, 1, 0, "fp16") for stage in STAGES]
    keys = [engine_key(manifest, place, spec, request().record("").options) for spec in stages]
    size = sum(len(cache.read(ENGINES, key) or b"") for key in keys)
    whole = EngineSpec("pipeline", 1, 4, "fp16")
    plain = len(cache.read(ENGINES, engine_key(manifest, place, whole, request().record("").options)) or b"")
    for share, used in ((1.25, True), (1.35, False)):
        world.plan_padding = int(share * size) - plain
        for path in (cache.folder / ENGINES).glob("*.bin"):
            if b'"graph": "pipeline"' in path.read_bytes():
                path.unlink()
        told = run(bundle, cache)
        assert any("weights are copied, not used" in line for line in told) != used
        record = read_record(cache, manifest, place)
        assert record is not None
        assert record.pipelines == (((1, 4),) if used else ())


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
    with pytest.raises(BackendFailed, match=r"12.0 dB PSNR.* it is not used"):
        run(bundle, cache)
    with pytest.raises(NotPrepared):
        Pipeline(bundle, Settings("tensorrt", 1))


@pytest.mark.parametrize(
    ("failure", "error"), [("none", BackendFailed), ("memory", DeviceOutOfMemory), ("raise", BackendFailed)]
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
    with pytest.raises((BackendFailed, DeviceOutOfMemory), match="cannot build the engine"):
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


def test_a_build_too_old_is_refused_before_it_begins(
    bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = fakes.install(monkeypatch, "8.6")
    monkeypatch.setattr("tensorrt.__version__", "8.5.2.2")
    with pytest.raises(BackendMissing, match="too old"):
        run(bundle, cache)
    assert world.builds == []


@pytest.mark.parametrize("release", RELEASES)
def test_the_report_of_layers(release: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.install(monkeypatch, release)
    builder = Builder(builder_package())
    plan, _ = builder.build(derive(bundle, "decoder", batch=1), BuildOptions(detailed=True))
    assert json.dumps(builder.layers(plan))


def test_without_onnx_runtime_portraits_are_drawn_all_the_same(
    bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = fakes.install(monkeypatch, "10.3")

    def missing(_: str) -> None:
        raise BackendMissing("ONNX Runtime is not installed.")

    monkeypatch.setattr(ort, "package", missing)
    told = run(bundle, cache, steps=(), batches=(1, 4))
    assert any("not compared with the CPU" in line for line in told)
    assert world.counts.d2h == 3 + 1  # every number of steps, and a batch of four


@pytest.mark.parametrize(
    "changes",
    [
        {"batches": ()},
        {"batches": (0,)},
        {"batches": (17,)},
        {"precision": "int4"},
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
    assert main(["prepare", str(bundle.path), "--device", "tensorrt"]) == 0
    assert "prepared before, in fp16" in capsys.readouterr().out
    voice = ROOT / "examples" / "woman.wav"
    target = tmp_path / "face.png"
    command = ["generate", str(voice), "-o", str(target), "--bundle", str(bundle.path), "--device", "tensorrt"]
    assert main(command) == 0
    assert target.read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert main(["verify", str(bundle.path), "--device", "tensorrt"]) == 0
    assert "PSNR to the CPU in fp32 at least" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr("runtime.portrait.psnr", lambda *_: 20.0)
        assert main(["verify", str(bundle.path), "--device", "tensorrt"]) == CODES["BackendFailed"]
        assert "20.0 dB PSNR" in capsys.readouterr().err
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


def test_prepare_keeps_what_an_engineer_chose_and_mends_what_is_broken(
    bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = fakes.install(monkeypatch, "10.3")
    run(bundle, cache, precision="fp32")
    builds = len(world.builds)
    assert main(["prepare", str(bundle.path), "--device", "tensorrt"]) == 0
    assert "prepared before, in fp32" in capsys.readouterr().out
    assert len(world.builds) == builds
    for path in (cache.folder / ENGINES).glob("*.bin"):
        path.write_bytes(path.read_bytes()[:-1])
    assert main(["prepare", str(bundle.path), "--device", "tensorrt"]) == 0
    out = capsys.readouterr().out
    assert "cut short" in out
    assert "it is built again" in out
    record = read_record(cache, bundle.manifest, tensorrt.place_here(tensorrt.package()))
    assert record is not None
    assert record.precision == "fp32"
    with Pipeline(bundle, Settings("tensorrt", 1)) as pipeline:
        pipeline.generate(VOICE)


def test_other_options_other_engines(bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    world = fakes.install(monkeypatch, "10.3")
    run(bundle, cache, steps=())
    run(bundle, cache, steps=(), options={"optimisation": 5, "workspace_mib": 4096})
    assert len(world.builds) == 6
    run(bundle, cache, steps=(), options={"optimisation": 5, "workspace_mib": 4096})
    assert len(world.builds) == 6


def test_every_batch_size_is_compared(bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.install(monkeypatch, "10.3")
    sizes: list[int] = []
    real = trial.psnr
    monkeypatch.setattr(trial, "psnr", lambda a, b: (sizes.append(1), real(a, b))[1])
    run(bundle, cache, batches=(1, 4), steps=())
    assert len(sizes) == 3 + 4  # every number of steps, and a batch of four


def test_an_interrupted_build(bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    world = fakes.install(monkeypatch, "10.3")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engines, "_log_progress", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(bundle, cache)
        assert cli.main(["engines", str(bundle.path)]) == 130
    assert not list((cache.folder / ENGINES).glob("*.bin"))
    run(bundle, cache)
    world.check()


def test_prepare_that_waited_keeps_what_was_chosen_meanwhile(
    bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes.install(monkeypatch, "10.3")
    place = tensorrt.place_here(tensorrt.package())
    waits, told = threading.Event(), []

    def tell(line: str) -> None:
        told.append(line)
        if "waiting" in line:
            waits.set()

    with cache.lock(RECORDS, record_key(bundle.manifest, place)):
        thread = threading.Thread(target=lambda: engines.prepare(bundle, tell))
        thread.start()
        assert waits.wait(30)
        chosen = request(precision="fp32")
        engines._build(engines._Job(bundle, chosen, cache, lambda _: None))
    thread.join(60)
    assert told[-1].startswith("prepared before, in fp32")


def test_a_pipeline_that_cannot_be_used_leaves_the_stages(
    bundle: Bundle, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes.install(monkeypatch, "10.3")
    real = engines._open

    def scarce(bundle: Bundle, cache: Cache, record: Prepared) -> Executor:
        if record.pipelines:
            raise DeviceOutOfMemory("no room for both")
        return real(bundle, cache, record)

    with monkeypatch.context() as patch:
        patch.setattr(engines, "_open", scarce)
        told = run(bundle, cache)
    assert any("one engine cannot be used: no room for both" in line for line in told)
    record = read_record(cache, bundle.manifest, tensorrt.place_here(tensorrt.package()))
    assert record is not None
    assert (record.pipelines, Request.again(record).steps) == ((), (4,))


def test_the_recipe_rises_when_derived_graphs_change(tmp_path: Path) -> None:
    """If this fails, `derive` makes other graphs than before: raise RECIPE, so that old engines are not used, and put
    the new numbers here.
    """
    import onnx

    operators = []
    for arm in (SHORTCUT, DIFFUSION):
        tiny = read_bundle(write_tiny_bundle(tmp_path / arm.solver, arm=arm))
        specs = [(stage, 0) for stage in STAGES] + [("pipeline", 2)]
        for graph, steps in specs:
            model = onnx.load_from_string(derive(tiny, graph, batch=1, steps=steps))
            operators.append(" ".join(node.op_type for node in model.graph.node))
    demo = read_bundle(ROOT / "runtime" / "bundles" / "demo")
    model = onnx.load_from_string(derive(demo, "pipeline", batch=1, steps=2))
    operators.append(" ".join(node.op_type for node in model.graph.node))
    digest = hashlib.sha256("\n".join(operators).encode()).hexdigest()[:16]
    assert (RECIPE, digest) == (2, "4f84e50a85ed7d84")


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
from export.simplify import element_types
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
