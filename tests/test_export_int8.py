"""Eight bits in files: weights stored small and back, and TensorRT's graphs made of a bundle's variant."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graph_factory import conv, graph, load, nearness, node, normal, operators, run, values_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from onnx import TensorProto
from tiny_bundle import DIFFUSION, SHORTCUT, write_tiny_bundle
from variant_factory import write_variant

from calibration.layers import layers_of, smaller_stored
from export import fuse, simplify
from export.derive import GRAPHS, derive
from export.lint import lint
from runtime.audio import load_speech
from runtime.bench import synthetic_speech
from runtime.bundle import STAGES, read_bundle
from runtime.engines import INT8_FAMILY, MAX_ENGINE_BATCH
from runtime.errors import InvalidArgument
from runtime.noise import seeded_noise
from runtime.pipeline import shipped_bundle
from runtime.portrait import ALIKE_INT8_DB, psnr

WEIGHTS = npst.arrays(
    np.float32, npst.array_shapes(min_dims=1, max_dims=4, max_side=5), elements=st.floats(-(2.0**99), 2.0**99, width=32)
)


# Rounding


@settings(max_examples=200, deadline=None)
@given(WEIGHTS, st.data())
def test_rounding_is_off_by_half_a_step_at_most(values, data):
    axis = data.draw(st.integers(-values.ndim, values.ndim - 1))
    integers, scale = simplify.round_int8(values, axis)
    assert (integers.dtype, integers.shape) == (np.int8, values.shape)
    assert scale.dtype == np.float32
    assert scale.shape == tuple(n if i == axis % values.ndim else 1 for i, n in enumerate(values.shape))
    assert (scale > 0).all()
    assert integers.min() >= -127
    step = scale.astype(np.float64)
    error = np.abs(integers * step - values)
    assert (error <= 0.5 * step * (1 + 1e-5)).all()
    others = tuple(i for i in range(values.ndim) if i != axis % values.ndim)
    largest = np.abs(values).max(axis=others, keepdims=True)
    np.testing.assert_array_equal(np.abs(integers).max(axis=others, keepdims=True)[largest > 1e-30], 127)


@settings(max_examples=200, deadline=None)
@given(WEIGHTS, st.data())
def test_rounding_again_changes_nothing(values, data):
    axis = data.draw(st.integers(0, values.ndim - 1))
    integers, scale = simplify.round_int8(values, axis)
    again, same = simplify.round_int8(integers * scale, axis)
    np.testing.assert_array_equal(again, integers)
    np.testing.assert_array_equal(same, scale)


@pytest.mark.parametrize("nothing", [0.0, 1e-45, 1e-42])
def test_a_channel_of_nothing_is_zeros(nothing):
    values = np.array([[nothing, 0.0, -nothing], [1.0, -2.0, 0.5]], np.float32)
    integers, scale = simplify.round_int8(values, 0)
    assert not integers[0].any()
    assert np.isfinite(scale).all()
    np.testing.assert_allclose(integers[1] * scale[1], values[1], atol=0.5 * 2 / 127)


# Stored and widened


def small_net():
    nodes = [conv("x w_a b", "h"), node("Relu", "h", "r"), conv("r w_b", "y")]
    return graph(nodes, {"w_a": normal(32, 16, 3, 3), "w_b": normal(16, 32, 3, 3), "b": normal(32)})


@pytest.mark.parametrize("axes", [{"w_a": 0, "w_b": 0}, {"w_a": 1}, {"w_b": 3}])
def test_stored_weights_come_back(axes):
    model, x = small_net(), normal(2, 16, 8, 8, size=1.0)
    before, size = values_of(model), len(model.SerializeToString())
    simplify.store_int8(model, axes)
    onnx.checker.check_model(model, full_check=True)
    wanted = run(small_net(), {"x": x})["y"]
    stored = run(model, {"x": x})["y"]
    assert nearness(stored, wanted) > 30
    if len(axes) == 2:
        assert len(model.SerializeToString()) < 0.3 * size
    fuse.widen_weights(model)
    assert operators(model) == {"Conv": 2, "Relu": 1}
    after = values_of(model)
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert after[name].dtype == np.float32
        if name in axes:
            integers, scale = simplify.round_int8(value, axes[name])
            np.testing.assert_array_equal(after[name], integers * scale)
        else:
            np.testing.assert_array_equal(after[name], value)
    np.testing.assert_allclose(run(model, {"x": x})["y"], stored, rtol=0, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 30), st.floats(1e-6, 1e6))
def test_storing_a_second_time_changes_no_byte(seed, size):
    model = graph([conv("x w", "y")], {"w": normal(64, 16, 3, 3, seed=seed, size=size)})
    simplify.store_int8(model, {"w": 0})
    once = model.SerializeToString(deterministic=True)
    fuse.widen_weights(model)
    simplify.store_int8(model, {"w": 0})
    assert model.SerializeToString(deterministic=True) == once


@pytest.mark.parametrize("stage", STAGES)
def test_a_graph_stored_a_second_time_holds_the_same(stage):
    found, data = [], read_bundle(shipped_bundle()).files[stage]
    for _ in range(2):
        model = load(data)
        fuse.widen_weights(model)
        simplify.store_int8(model, smaller_stored(model, layers_of(model, stage)))
        simplify.store_float16(model, 256)
        data = model.SerializeToString()
        found.append(values_of(model))
    assert sum(value.dtype == np.int8 for value in found[0].values()) > 10
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        np.testing.assert_array_equal(found[1][name], value)


def test_weights_stored_both_ways_are_widened():
    model, x = small_net(), normal(2, 16, 8, 8, size=1.0)
    half = next(one for one in model.graph.initializer if one.name == "w_b")
    half.CopyFrom(onnx.numpy_helper.from_array(values_of(model)["w_b"].astype(np.float16).astype(np.float32), "w_b"))
    simplify.store_int8(model, {"w_a": 0})
    simplify.store_float16(model, 256)
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    assert {TensorProto.INT8, TensorProto.FLOAT16} <= kinds
    wanted = run(model, {"x": x})["y"]
    fuse.widen_weights(model)
    assert operators(model) == {"Conv": 2, "Relu": 1}
    np.testing.assert_allclose(run(model, {"x": x})["y"], wanted, rtol=0, atol=1e-5)


def test_folding_leaves_weights_in_eight_bits(variants):
    for stage in STAGES:
        model = load(derive(variants["demo"], stage, batch=1, precision="int8"))
        readers = {one.input[0] for one in model.graph.node if one.op_type == "DequantizeLinear"}
        weights = {t.name: t for t in model.graph.initializer if t.name in readers}
        assert weights
        assert {t.data_type for t in weights.values()} == {TensorProto.INT8}


# TensorRT's graphs


@pytest.fixture(scope="module")
def variants(tmp_path_factory):
    """By name a bundle of which the variant for TensorRT was read."""
    folder = tmp_path_factory.mktemp("variants")
    made = {"demo": write_variant(read_bundle(shipped_bundle()), folder / "demo", INT8_FAMILY)}
    for name, arm in (("shortcut", SHORTCUT), ("diffusion", DIFFUSION)):
        own = read_bundle(write_tiny_bundle(folder / f"{name}-float", arm=arm))
        # the tiny graphs name nothing, so their layers are called after their places, and are small
        every = {f"{kind}_{index}" for kind in ("Conv", "MatMul") for index in range(12)}
        made[name] = write_variant(own, folder / name, INT8_FAMILY, every)
    return made


@pytest.mark.parametrize("name", ["demo", "shortcut", "diffusion"])
def test_int8_is_made_of_the_variant_and_nothing_else_is(variants, name):
    own = read_bundle(variants[name].path)
    for graph_name in GRAPHS:
        steps = 1 if graph_name == "pipeline" else 0
        with pytest.raises(InvalidArgument, match="s2f-calibrate"):
            derive(own, graph_name, batch=1, steps=steps, precision="int8")
        for precision in ("fp16", "fp32"):
            with pytest.raises(InvalidArgument, match=precision):
                derive(variants[name], graph_name, batch=1, steps=steps, precision=precision)


@pytest.mark.parametrize("name", ["demo", "shortcut", "diffusion"])
@pytest.mark.parametrize("batch", [1, 4, MAX_ENGINE_BATCH])
def test_graphs_in_int8_are_clean(variants, name, batch):
    bundle = variants[name]
    made = [derive(bundle, stage, batch=batch, precision="int8") for stage in STAGES]
    made.append(derive(bundle, "pipeline", batch=batch, steps=2, precision="int8"))
    for data in made:
        assert lint(data) == []
    assert sum(operators(load(data))["QuantizeLinear"] for data in made[:3]) >= 3
    assert operators(load(made[3]))["QuantizeLinear"] >= 3
    assert made[0] == derive(bundle, "encoder", batch=batch, precision="int8")


def test_a_layer_in_int8_reads_what_was_dequantised_and_no_cast(variants):
    """A Cast between a layer and its scales would keep TensorRT from computing in int8."""
    model = load(derive(variants["demo"], "pipeline", batch=1, steps=1, precision="int8"))
    makers = {one.output[0]: one.op_type for one in model.graph.node}
    layers = [one for one in model.graph.node if one.op_type in ("Conv", "MatMul", "Gemm")]
    kinds = [[makers.get(name, "") for name in one.input[:2]] for one in layers]
    whole = [pair for pair in kinds if pair == ["DequantizeLinear"] * 2]
    assert len(whole) > 40
    assert all("DequantizeLinear" not in pair for pair in kinds if pair not in whole)


@pytest.mark.parametrize("steps", [1, 4])
def test_every_planned_layer_has_its_pair_in_the_pipeline(variants, steps):
    """As many weights in eight bits as calibration put into the variant, each layer of a step once per step."""
    bundle = variants["demo"]
    planned = {stage: set(layers_in_int8(load(bundle.files[stage]))) for stage in STAGES}
    assert min(map(len, planned.values())) > 5
    for stage in STAGES:
        derived = layers_in_int8(load(derive(bundle, stage, batch=1, precision="int8")))
        assert {name.removesuffix("_dequantised") for name in derived} == {
            name.removesuffix("_dequantised") for name in planned[stage]
        }
    whole = layers_in_int8(load(derive(bundle, "pipeline", batch=1, steps=steps, precision="int8")))
    assert len(set(whole)) == sum(map(len, planned.values()))
    once = len(planned["encoder"]) + len(planned["decoder"])
    condition = sum(1 for name in set(whole) if whole.count(name) == 1) - once  # the same in every step, so once
    assert len(whole) == once + len(planned["unet"]) * steps - condition * (steps - 1)
    assert steps == 1 or condition < len(planned["unet"]) / 3


def layers_in_int8(model):
    """What is read as weight and as activation in eight bits: the name of the weight's integers, a layer each."""
    stored = {t.name for t in model.graph.initializer if t.data_type == TensorProto.INT8}
    pairs = {one.output[0]: one.input[0] for one in model.graph.node if one.op_type == "DequantizeLinear"}
    layers = [one for one in model.graph.node if one.op_type in ("Conv", "MatMul", "Gemm")]
    return [pairs[one.input[1]] for one in layers if pairs.get(one.input[1]) in stored and one.input[0] in pairs]


def test_what_a_step_adds_per_channel_is_a_bias_and_not_in_eight_bits(variants):
    for graph_name, steps in (("unet", 0), ("pipeline", 2)):
        model = load(derive(variants["demo"], graph_name, batch=1, steps=steps, precision="int8"))
        known = {tensor.name for tensor in model.graph.initializer}
        shapes = simplify.static_shapes(onnx.shape_inference.infer_shapes(model, data_prop=True))
        convolved = {one.output[0] for one in model.graph.node if one.op_type == "Conv"}
        for one in model.graph.node:
            if one.op_type == "QuantizeLinear":
                assert one.input[0] not in known
                assert set(shapes[one.input[0]][2:]) != {1} or len(shapes[one.input[0]]) < 3, one.name
            if steps and one.op_type == "Add" and convolved.intersection(one.input):
                assert not any(shapes[name][2:] == (1, 1) for name in known.intersection(one.input)), one.name


@pytest.mark.parametrize(("name", "steps"), [("demo", 1), ("demo", 4), ("shortcut", 2), ("diffusion", 2)])
def test_portraits_in_int8_are_near(variants, name, steps):
    bundle = variants[name]
    own = read_bundle(bundle.path)
    latent = own.manifest.latent
    shape = latent.channels, latent.height, latent.width
    full = derive(own, "pipeline", batch=1, steps=steps, precision="fp32")
    narrow = derive(bundle, "pipeline", batch=1, steps=steps, precision="int8")
    for seed in (11, 12):
        values = {
            "pcm": load_speech((synthetic_speech(seed=seed), 16000))[None],
            "noise": seeded_noise(seed, shape)[None],
            "guidance": np.array([own.manifest.guidance.default], np.float32),
            "prior_weight": np.array([own.manifest.prior.weight], np.float32),
        }
        wanted, found = (run(data, values)["image"] for data in (full, narrow))
        assert wanted.std() > 5
        assert 25.0 < psnr(found, wanted) < 70.0
        if name == "demo":
            assert psnr(found, wanted) >= ALIKE_INT8_DB
