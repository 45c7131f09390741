"""Engines in eight bits, on fakes of every release: what TensorRT is told, what is recorded, opened, drawn, refused."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import fakes
import numpy as np
import onnx
import pytest
from graph_factory import operators
from tiny_bundle import SHORTCUT, write_tiny_bundle
from variant_factory import write_variant

import runtime
from export import adaptor, cli, engines, trial
from export.adaptor import Builder, BuildOptions, builder_package
from export.derive import derive
from runtime.backends import tensorrt
from runtime.bench import synthetic_speech
from runtime.bundle import Bundle, manifest_to_json, read_bundle, sha256_hex
from runtime.cache import Cache
from runtime.cli import main
from runtime.engines import INT8_FAMILY, EngineSpec, Prepared, engine_key, read_record
from runtime.errors import CODES, BackendFailed, NotPrepared
from runtime.pipeline import shipped_bundle
from runtime.portrait import ALIKE_INT8_DB, psnr

RELEASES = fakes.versions("tensorrt")
VOICE = (synthetic_speech(), 16000)
CONVOLUTIONS = {f"Conv_{index}" for index in range(12)}
"""The layers of encoder and decoder. The unet's one layer of random weights does not bear eight bits."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle with a variant whose convolutions are in eight bits."""
    folder = tmp_path_factory.mktemp("eight")
    own = read_bundle(write_tiny_bundle(folder / "float", arm=SHORTCUT))
    return write_variant(own, folder / "eight", INT8_FAMILY, CONVOLUTIONS).path


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The shipped bundle, of which a variant was read."""
    return write_variant(read_bundle(shipped_bundle()), tmp_path_factory.mktemp("demo") / "eight", INT8_FAMILY)


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "eight"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setenv("S2F_CACHE", str(tmp_path / "cache"))
    return Cache.default()


def make(path: Path, precision: str = "int8") -> int:
    words = ["--precision", precision, "--batch", "1", "--steps", "4"]
    return int(cli.main(["engines", str(path), *words]))


def record_of(bundle: Bundle) -> Prepared | None:
    return read_record(Cache.default(), bundle.manifest, tensorrt.place_here(tensorrt.package()))


def load(path: Path, precision: str, device: str = "tensorrt") -> runtime.Pipeline:
    return runtime.load(path, device=device, precision=precision)


# From the command to the portrait


@pytest.mark.parametrize("release", RELEASES)
def test_the_command_builds_records_opens_and_draws(
    release: str, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = fakes.install(monkeypatch, release)
    assert make(path) == 0
    said = capsys.readouterr()
    assert "unet (batch 1, int8)" in said.out + said.err
    record = record_of(read_bundle(path))
    assert record is not None
    assert (record.precision, record.batches) == ("int8", (1,))
    assert len(world.builds) == 4
    for built in world.builds:
        assert built.succeeded
        assert ("INT8" in built.flags) == (release == "8.6" and b"QuantizeLinear" in built.graph)
        assert release == "8.6" or "FP16" not in built.flags
        assert set(built.network_flags) == {"8.6": {"EXPLICIT_BATCH"}, "11.4": set()}.get(release, {"STRONGLY_TYPED"})
    kept = [operators(onnx.load_from_string(built.graph)) for built in world.builds]
    assert [count["QuantizeLinear"] > 0 for count in kept] == [True, False, True, True]
    with load(path, "auto") as pipeline, load(path, "fp32", "cpu") as cpu:
        assert (pipeline.device, pipeline.precision) == ("tensorrt", "int8")
        for steps in (1, 4):
            found, wanted = (one.generate(VOICE, steps=steps, seed=3).image for one in (pipeline, cpu))
            assert not np.array_equal(found, wanted)
            assert psnr(found, wanted) >= ALIKE_INT8_DB
    with load(path, "int8") as pipeline:
        assert pipeline.precision == "int8"
    world.check()


def test_prepare_keeps_int8_that_somebody_chose(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = fakes.install(monkeypatch, "10.3")
    make(path)
    builds = len(world.builds)
    assert main(["prepare", str(path), "--device", "tensorrt"]) == 0
    assert "prepared before, in int8" in capsys.readouterr().out
    assert len(world.builds) == builds


def test_without_the_variant_nothing_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = fakes.install(monkeypatch, "10.3")
    path = write_tiny_bundle(tmp_path / "plain", arm=SHORTCUT)
    assert make(path) == CODES["BundleInvalid"]
    assert INT8_FAMILY in capsys.readouterr().err
    assert world.builds == []
    assert record_of(read_bundle(path)) is None


def test_a_bundle_without_the_variant_has_a_record_of_its_own(
    path: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes.install(monkeypatch, "10.3")
    make(path)
    plain = made.parent / "float"
    assert record_of(read_bundle(plain)) is None
    make(plain, "fp16")
    for one, precision in ((path, "int8"), (plain, "fp16")):
        with load(one, "auto") as pipeline:
            assert pipeline.precision == precision


@pytest.mark.parametrize(("made_in", "asked"), [("fp16", "int8"), ("int8", "fp16"), ("int8", "fp32")])
def test_engines_of_another_precision_are_refused_with_the_command(
    made_in: str, asked: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = fakes.install(monkeypatch, "10.3")
    make(path, made_in)
    with pytest.raises(NotPrepared, match=rf"in {made_in}, not in {asked}\. Run: s2f-export .* --precision {asked}"):
        load(path, asked)
    with load(path, made_in) as pipeline:
        assert pipeline.precision == made_in
        pipeline.generate(VOICE)
    world.check()


def test_engines_of_a_changed_variant_are_not_used(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = fakes.install(monkeypatch, "10.3")
    make(path)
    builds, before = len(world.builds), read_bundle(path)
    keys = [engine_key(before.manifest, tensorrt.place_here(tensorrt.package()), EngineSpec("decoder", 1, 0, "int8"))]
    change(path)
    keys.append(engine_key(read_bundle(path).manifest, tensorrt.place_here(tensorrt.package()),
                           EngineSpec("decoder", 1, 0, "int8")))  # fmt: skip
    assert keys[0] != keys[1]
    for precision in ("auto", "int8"):
        with pytest.raises(NotPrepared, match="decoder"):
            load(path, precision)
    assert main(["prepare", str(path), "--device", "tensorrt"]) == 0
    assert "what was prepared before is not used" in capsys.readouterr().out
    assert len(world.builds) == builds + 2  # the decoder and the pipeline
    with load(path, "int8") as pipeline:
        assert pipeline.precision == "int8"


def change(path: Path) -> None:
    """Calibrate anew, as far as the decoder's bytes show it."""
    bundle = read_bundle(path)
    variant = bundle.manifest.variants[INT8_FAMILY]
    ref = variant.stages["decoder"]
    model = onnx.load_from_string((path / ref.file).read_bytes())
    scale = next(one for one in model.graph.initializer if one.name.endswith("_scale_of_int8") and not one.dims)
    scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * np.float32(1.01), scale.name))
    data = model.SerializeToString()
    (path / ref.file).write_bytes(data)
    refs = {**variant.stages, "decoder": dataclasses.replace(ref, sha256=sha256_hex(data), size=len(data))}
    variants = {INT8_FAMILY: dataclasses.replace(variant, stages=refs)}
    changed = dataclasses.replace(bundle.manifest, variants=variants)
    (path / "manifest.json").write_bytes(manifest_to_json(changed))


@pytest.mark.parametrize(("precision", "found"), [("int8", 31.0), ("int8", 29.0), ("fp16", 31.0)])
def test_portraits_are_compared_at_the_limit_of_their_precision(
    precision: str,
    found: float,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fakes.install(monkeypatch, "10.3")
    good = (precision, found) == ("int8", 31.0)
    monkeypatch.setattr(trial, "psnr", lambda *_: found)
    monkeypatch.setattr(engines, "is_no_slower", lambda *_: False)
    assert make(path, precision) == (0 if good else BackendFailed.code)
    limit, other = ("30", "fp16") if precision == "int8" else ("35", "fp32")
    said = capsys.readouterr().err
    assert good or f"{found:.1f} dB PSNR, {limit} are needed" in said
    assert good or f"--precision {other}" in said
    assert (record_of(read_bundle(path)) is not None) == good


# What 8.6 has to be told


@pytest.mark.parametrize("stage", ["encoder", "unet", "decoder"])
def test_8_6_is_told_no_type_for_what_it_fuses_in_int8(
    stage: str, demo: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = fakes.install(monkeypatch, "8.6")
    data = derive(demo, stage, batch=1, precision="int8")
    Builder(builder_package()).build(data, BuildOptions())
    graph = onnx.load_from_string(world.builds[-1].graph).graph
    told = {name: (precision, types) for name, precision, types in world.builds[-1].layers}
    scaled = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    layers = [node for node in graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]
    quiet = [node for node in layers if scaled.intersection(node.input)]
    assert quiet
    quiet += [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in quiet:
        precision, types = told[node.name]
        assert (precision, set(types)) == (None, {None}), node.name
    delicate = [node for node in graph.node if node.op_type in ("Softmax", "LayerNormalization", "ReduceMean", "Mul")]
    assert all(told[node.name][0] for node in delicate)
    assert world.builds[-1].succeeded


@pytest.mark.parametrize("steps", [0, 2])
def test_weights_in_float_are_rounded_to_the_same_integers(steps: int, demo: Bundle) -> None:
    data = derive(demo, "pipeline" if steps else "decoder", batch=1, steps=steps, precision="int8")
    before, after = (onnx.load_from_string(one).graph for one in (data, adaptor._float_weights(data)))
    integers = {t.name: onnx.numpy_helper.to_array(t) for t in before.initializer if t.data_type == t.INT8 and t.dims}
    floats = {t.name: t for t in after.initializer}
    wanted = {n.output[0]: integers[n.input[0]] for n in before.node if n.input[0] in integers}
    seen = 0
    for node in after.node:
        if node.op_type == "QuantizeLinear" and node.output[0].endswith("_dequantised_int8"):
            single = onnx.helper.make_graph(
                [node],
                "one",
                [],
                [onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.INT8, None)],
                [floats[each] for each in node.input],
            )
            model = onnx.helper.make_model(single, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
            (found,) = onnx.reference.ReferenceEvaluator(model).run(None, {})
            reader = next(one for one in after.node if node.output[0] in one.input)
            np.testing.assert_array_equal(found, wanted[reader.output[0]])
            seen += 1
    assert seen == len(wanted) > 0
    zero_points = {node.input[2] for node in after.node if node.op_type.endswith("tizeLinear")}
    assert {t.name for t in after.initializer if t.data_type == t.INT8} <= zero_points


def test_a_graph_without_eight_bits_stays_as_it_is(path: Path) -> None:
    data = derive(read_bundle(path), "decoder", batch=1)
    assert adaptor._float_weights(data) is data


def test_the_fake_of_8_6_refuses_int8_without_its_flag_and_int8_constants(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes.install(monkeypatch, "8.6")
    data = derive(read_bundle(path, INT8_FAMILY), "decoder", batch=1, precision="int8")
    with monkeypatch.context() as patch:
        patch.setattr(adaptor, "_float_weights", lambda data: data)
        with pytest.raises(BackendFailed, match="invalid weights type of Int8"):
            Builder(builder_package()).build(data, BuildOptions())
    monkeypatch.setattr(Builder, "_tell_types", lambda *_: None)
    with pytest.raises(BackendFailed, match="int8 is not configured"):
        Builder(builder_package()).build(data, BuildOptions())
