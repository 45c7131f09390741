"""Float graphs, their layers, smoothing and Q/DQ graphs: on small nets and on the demo bundle."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from graph_factory import (
    SIZE,
    conv,
    graph,
    in_eight_bits,
    load,
    nearness,
    node,
    norm_net,
    normal,
    operators,
    pictures,
    residual_net,
    run,
    seen_in,
    values_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from tiny_bundle import DIFFUSION, SHORTCUT, write_tiny_bundle

from calibration.activations import Activations, observable
from calibration.layers import channel_axis, float_graph, float_graphs, layers_of, smaller_stored, split_concats
from calibration.quantise import quantise
from calibration.smooth import smooth, smoothable
from export import fuse, lint, simplify
from runtime.audio import load_speech
from runtime.bench import synthetic_speech
from runtime.bundle import STAGES, read_bundle
from runtime.errors import BundleInvalid
from runtime.pipeline import shipped_bundle
from runtime.variants import FAMILIES

X86, TENSORRT = FAMILIES


@pytest.fixture(scope="module")
def demo():
    return read_bundle(shipped_bundle())


@pytest.fixture(scope="module")
def demo_graphs(demo):
    return float_graphs(demo)


def stage_inputs(bundle, batch):
    """Whatever a stage may ask for, for `batch` portraits."""
    rng = np.random.default_rng(batch)
    pcm = np.stack([load_speech((synthetic_speech(seed=seed), 16000)) for seed in range(batch)])
    spec = bundle.manifest.latent
    state = rng.standard_normal((2, batch, spec.channels, spec.height, spec.width)).astype(np.float32)
    condition = run(bundle.files["encoder"], {"pcm": pcm})["condition"]
    options = {"guidance": np.array([2.0], np.float32), "prior_weight": np.array([0.05], np.float32)}
    state = {"latent": state[0], "history": state[1]}
    return {"pcm": pcm, "condition": condition, "step": np.array([1]), **state, **options}


# The float graphs


@pytest.mark.parametrize("stage", STAGES)
def test_a_float_graph_computes_what_the_bundles_does(demo, demo_graphs, stage):
    for batch in (1, 3):
        values = stage_inputs(demo, batch)
        wanted = run(demo.files[stage], values)
        found = run(demo_graphs[stage], values)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            tolerance = 1 if stage == "decoder" else 5e-5 * np.abs(value).max()
            np.testing.assert_allclose(found[name].astype(float), value.astype(float), rtol=0, atol=tolerance)


@pytest.mark.parametrize("arm", [DIFFUSION, SHORTCUT])
def test_float_graphs_of_other_bundles(tmp_path, arm):
    bundle = read_bundle(write_tiny_bundle(tmp_path / "tiny", arm=arm))
    values = stage_inputs(bundle, 2)
    for stage, model in float_graphs(bundle).items():
        for name, value in run(bundle.files[stage], values).items():
            np.testing.assert_allclose(run(model, values)[name].astype(float), value.astype(float), atol=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_a_float_graph_is_valid_and_plain(demo_graphs, stage):
    model = demo_graphs[stage]
    onnx.checker.check_model(model)
    assert max(Counter(one.name for one in model.graph.node).values()) == 1
    for layer in layers_of(model, stage):
        assert values_of(model)[layer.weight].dtype == np.float32
    found = operators(model)
    assert found["Conv"] > 5
    after_conv = {one.output[0] for one in model.graph.node if one.op_type == "Conv"}
    assert not [one for one in model.graph.node if one.op_type == "BatchNormalization" and one.input[0] in after_conv]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["", "Relu_0", "Relu_1", "Relu_2", "Relu_3", "Relu_4", "a"]), min_size=1, max_size=6))
def test_every_node_gets_a_name_of_its_own(names):
    nodes = [node("Relu", f"t{i}" if i else "x", f"t{i + 1}", name) for i, name in enumerate(names)]
    model = graph(nodes, {}, outputs=[f"t{len(names)}"])
    found = [one.name for one in float_graph(model.SerializeToString(), "decoder").graph.node]
    assert "" not in found
    assert len(set(found)) == len(names)
    for given_name, name in zip(names, found, strict=True):
        assert name == given_name or not given_name or names.count(given_name) > 1


def test_what_is_no_float_graph_is_refused():
    with pytest.raises(BundleInvalid, match="encoder graph cannot be read"):
        float_graph(b"{}", "encoder")
    model = residual_net()
    layers = layers_of(model, "decoder")
    for family in FAMILIES:
        quantised = quantise(model, family, layers, {"first"}, seen_in(model, pictures(2)))
        with pytest.raises(BundleInvalid, match="quantised already"):
            float_graph(quantised.SerializeToString(), "decoder")


# Layers


def test_layers_say_why_they_stay(demo_graphs):
    unet = layers_of(demo_graphs["unet"], "unet")
    kept = {part: [one for one in unet if part in one.name] for part in ("conv_in", "conv_out", "shortcut")}
    for part, layers in kept.items():
        assert layers, part
        assert all(layer.keep for layer in layers), part
    assert sum(not one.keep for one in unet) > 20
    front = [one for one in layers_of(demo_graphs["encoder"], "encoder") if "front end" in one.keep]
    first = next(one for one in demo_graphs["encoder"].graph.node if one.op_type == "Conv")
    assert front
    assert first.name not in {one.name for one in front}
    assert not [one for one in layers_of(demo_graphs["decoder"], "decoder") if "front end" in one.keep]


def test_what_stays_can_be_asked_for(demo_graphs):
    def usable(*also):
        return {one.name for one in layers_of(demo_graphs["unet"], "unet", also) if not one.keep}

    assert {"shortcut"} == {"shortcut" if "shortcut" in name else name for name in usable("shortcut") - usable()}
    assert usable("no such layer") == usable() < usable("shortcut") < usable("shortcut", "conv_out")


def test_small_layers_stay():
    model = graph([conv("x w", "y")], {"w": normal(14, 16, 3, 3)})  # 2016 elements
    assert "small" in layers_of(model, "decoder")[0].keep
    model = graph([conv("x w", "y")], {"w": normal(15, 16, 3, 3)})
    assert layers_of(model, "decoder")[0].keep == ""


@pytest.mark.parametrize(
    ("layer", "shape", "axis"),
    [
        (conv("x w", "y"), (24, 16, 3, 3), 0),
        (node("Gemm", "x w", "y"), (16, 24), 1),
        (node("Gemm", "x w", "y", transB=0), (16, 24), 1),
        (node("Gemm", "x w", "y", transB=1), (24, 16), 0),
        (node("MatMul", "x w", "y"), (16, 24), 1),
    ],
)
def test_the_axis_of_the_output_channels(layer, shape, axis):
    """Scaling one index along the axis scales that output channel and no other."""
    assert channel_axis(layer, len(shape)) == axis
    rank = len(shape)
    source = (2, 16, SIZE, SIZE) if rank == 4 else (2, 16)
    weight = normal(*shape)
    wider = weight.copy()
    wider[(slice(None),) * axis + (5,)] *= 3
    x = normal(*source, size=1.0)
    first, second = (run(graph([layer], {"w": w}, source=source), {"x": x})["y"] for w in (weight, wider))
    changed = np.abs(first - second).max(axis=tuple(i for i in range(first.ndim) if i != 1)) > 1e-6
    assert changed.tolist() == [index == 5 for index in range(24)]
    found = layers_of(graph([layer], {"w": weight}, source=source), "decoder")
    assert [(one.axis, one.shape, one.weight, one.source, one.result) for one in found] == [
        (axis, shape, "w", "x", "y")
    ]


def test_what_is_no_layer():
    stack = normal(2, 64, 64)
    assert layers_of(graph([node("MatMul", "x w", "y")], {"w": stack}, source=(2, 6, 64)), "unet") == []
    assert layers_of(graph([node("MatMul", "w x", "y")], {"w": stack[0]}, source=(2, 64, 6)), "unet") == []
    assert layers_of(graph([node("MatMul", "x x", "y")], {}, source=(2, 64, 64)), "unet") == []
    assert layers_of(graph([node("Add", "x w", "y")], {"w": stack[0]}, source=(2, 64, 64)), "unet") == []


def test_the_front_end_is_not_stored_smaller(demo_graphs):
    layers = layers_of(demo_graphs["encoder"], "encoder")
    axes = smaller_stored(demo_graphs["encoder"], layers)
    by_weight = {one.weight: one for one in layers}
    assert axes
    assert not {one.weight for one in layers if "front end" in one.keep} & axes.keys()
    assert all(axis == by_weight[name].axis for name, axis in axes.items())


# Concatenations


def concat_net():
    nodes = [
        conv("x w_a", "a"),
        conv("x w_b", "b"),
        node("Relu", "b", "b_relu"),
        node("Concat", "a b_relu", "both", axis=1),
        conv("both w_c bias", "y"),
    ]
    constants = {"w_a": normal(16, 16, 3, 3), "w_b": normal(24, 16, 3, 3, size=5.0), "w_c": normal(16, 40, 3, 3)}
    return graph(nodes, {**constants, "bias": normal(16)})


def test_halves_of_a_concatenation_are_apart():
    model, x = concat_net(), pictures(3)
    wanted = run(model, {"x": x})["y"]
    split_concats(model, layers_of(model, "decoder"))
    onnx.checker.check_model(model)
    assert operators(model)["Concat"] == 0
    np.testing.assert_allclose(run(model, {"x": x})["y"], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    layers = layers_of(model, "decoder")
    spans, readers = seen_in(model, x), [one for one in layers if one.source in ("a", "b_relu")]
    assert {one.source for one in readers} == {"a", "b_relu"}
    quantised = quantise(model, TENSORRT, layers, {one.name for one in readers}, spans)
    scales = [float(values_of(quantised)[f"{one.source}_scale_of_int8"]) for one in readers]
    assert max(scales) > 10 * min(scales)


@pytest.mark.parametrize("change", ["axis", "three", "unknown", "not a layer"])
def test_other_concatenations_stay(change):
    model = concat_net()
    concat = next(one for one in model.graph.node if one.op_type == "Concat")
    layers = layers_of(model, "decoder")
    if change == "axis":
        concat.attribute[0].i = 2
    elif change == "three":
        concat.input.append("a")
    elif change == "unknown":
        concat.input[0] = "x"
    else:
        layers = [one for one in layers if one.source != "both"]
    before = operators(model)
    split_concats(model, layers)
    assert operators(model)["Concat"] == 1
    assert operators(model)["Add"] == before["Add"] == 0


# Smoothing


def smoothed(model, x, columns=None):
    layers = layers_of(model, "unet")
    groups = smoothable(model, layers)
    seen = Activations({"g": list(groups)}, [("g", name) for name in groups])
    seen.see("g", 0, run(observable(model, groups), {"x": x}))
    smooth(model, groups, columns or {name: one.columns for name, one in seen.tensors["g"].items()})
    return groups


def column_sizes(model, name, x):
    return np.abs(run(observable(model, [name]), {"x": x})[name]).max(axis=(0, 1))


def test_smoothing_moves_outliers_and_changes_no_result():
    model, x = norm_net(), pictures(4, shape=(6, 64))
    wanted, before = run(model, {"x": x})["y"], column_sizes(model, "n1", x)
    assert {name: [one.name for one in found] for name, found in smoothed(model, x).items()} == {
        "n1": ["q", "k"],
        "n2": ["y"],
    }
    onnx.checker.check_model(model)
    found, after = run(model, {"x": x})["y"], column_sizes(model, "n1", x)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    assert before.argmax() == 5
    assert after.max() / np.median(after) < 0.5 * before.max() / np.median(before)
    rows = np.max([np.abs(values_of(model)[name]).max(axis=1) for name in ("w_q", "w_k")], axis=0)
    np.testing.assert_allclose(after, rows, rtol=1e-3)  # α = 0.5 shares the difficulty in equal parts


def test_smoothing_shared_numbers_leaves_the_other_norm():
    model, x = norm_net(scale_2="scale_1", shift_2="shift_1"), pictures(4, shape=(6, 64))
    wanted = run(model, {"x": x})["y"]
    smoothed(model, x)
    np.testing.assert_allclose(run(model, {"x": x})["y"], wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def test_smoothing_leaves_weights_that_others_read():
    model, x = norm_net(w_o="w_q"), pictures(4, shape=(6, 64))
    wanted = run(model, {"x": x})["y"]
    assert smoothed(model, x) == {}
    np.testing.assert_allclose(run(model, {"x": x})["y"], wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    twins = norm_net(w_k="w_q")
    assert list(smoothable(twins, layers_of(twins, "unet"))) == ["n1", "n2"]
    wanted = run(twins, {"x": x})["y"]
    smoothed(twins, x)
    np.testing.assert_allclose(run(twins, {"x": x})["y"], wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def test_norms_that_something_else_reads_are_left_alone():
    model = norm_net()
    model.graph.node.insert(1, node("Relu", "n1", "other"))
    assert list(smoothable(model, layers_of(model, "unet"))) == ["n2"]
    model = norm_net()
    model.graph.output.append(onnx.helper.make_tensor_value_info("n2", TensorProto.FLOAT, ["b", 6, 64]))
    assert list(smoothable(model, layers_of(model, "unet"))) == ["n1"]
    model = norm_net()
    layers = [one for one in layers_of(model, "unet") if one.name != "k"]
    assert list(smoothable(model, layers)) == ["n2"]


def test_dead_channels_are_not_scaled():
    model, x = norm_net(), pictures(2, shape=(6, 64))
    scale = next(t for t in model.graph.initializer if t.name == "scale_1")
    values = values_of(model)["scale_1"].copy()
    values[7] = 0
    shift = next(t for t in model.graph.initializer if t.name == "shift_1")
    shifts = values_of(model)["shift_1"].copy()
    shifts[7] = 0
    scale.CopyFrom(onnx.numpy_helper.from_array(values, "scale_1"))
    shift.CopyFrom(onnx.numpy_helper.from_array(shifts, "shift_1"))
    before = values_of(model)["w_q"][7].copy()
    wanted = run(model, {"x": x})["y"]
    smoothed(model, x)
    np.testing.assert_array_equal(values_of(model)["w_q"][7], before)
    np.testing.assert_allclose(run(model, {"x": x})["y"], wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


# Q/DQ graphs


def all_quantised(model, family, x, chosen=None):
    layers = layers_of(model, "decoder")
    names = {one.name for one in layers} if chosen is None else chosen
    return quantise(model, family, layers, names, seen_in(model, x)), layers


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("make", "shape", "least"),
    [(residual_net, (16, SIZE, SIZE), 28), (concat_net, (16, SIZE, SIZE), 28), (norm_net, (6, 64), 16)],
)
def test_a_quantised_net_stays_near(family, make, shape, least):
    model, x = make(), pictures(6, shape=shape)
    before = model.SerializeToString()
    quantised, layers = all_quantised(model, family, x)
    assert model.SerializeToString() == before
    onnx.checker.check_model(quantised, full_check=True)
    assert in_eight_bits(quantised, layers) == {one.name for one in layers}
    for values in (x, pictures(1, seed=3, shape=shape)):
        wanted = run(model, {"x": values})["y"]
        assert least < nearness(run(quantised, {"x": values})["y"], wanted) < 70
    assert len(quantised.SerializeToString()) < 0.6 * len(before)
    again, _ = all_quantised(model, family, x)
    assert again.SerializeToString(deterministic=True) == quantised.SerializeToString(deterministic=True)


def sides(model):
    """The types of zero points of activations and of weights."""
    values = values_of(model)
    made = {one.output[0] for one in model.graph.node}
    reads = [one for one in model.graph.node if one.op_type == "DequantizeLinear"]
    zeros = {True: [], False: []}
    for one in reads:
        zeros[one.input[0] in made].append(values[one.input[2]])
    return zeros[True], zeros[False]


def test_x86_multiplies_unsigned_by_signed():
    model, x = residual_net(), pictures(4)
    quantised, _ = all_quantised(model, X86, x)
    activations, constants = sides(quantised)
    assert {zero.dtype for zero in activations} == {np.dtype(np.uint8)}
    assert any(zero.any() for zero in activations)
    weights = [zero for zero in constants if zero.dtype == np.int8]
    assert len(weights) == 3
    assert all(zero.size > 1 and not zero.any() for zero in weights)


def test_tensorrt_gets_zero_points_of_nothing_and_a_graph_it_reads():
    model, x = residual_net(), pictures(4)
    quantised, _ = all_quantised(model, TENSORRT, x)
    zeros = [zero for side in sides(quantised) for zero in side]
    assert {zero.dtype for zero in zeros} == {np.dtype(np.int8)}
    assert not any(zero.any() for zero in zeros)
    for value in (*quantised.graph.input, *quantised.graph.output):
        for dim, size in zip(value.type.tensor_type.shape.dim, (1, 16, SIZE, SIZE), strict=True):
            dim.dim_value = size
    assert lint.lint(quantised.SerializeToString()) == []


def test_tensorrt_gets_the_other_side_of_a_sum_in_eight_bits():
    model, x = residual_net(), pictures(4)
    quantised, _ = all_quantised(model, TENSORRT, x)
    makers = {one.output[0]: one for one in quantised.graph.node}
    total = next(one for one in quantised.graph.node if one.name == "sum")
    assert makers[total.input[0]].name == "second"  # straight from the layer, to be fused with it
    assert makers[total.input[1]].op_type == "DequantizeLinear"
    second = makers[total.input[0]]
    assert second.input[0] == total.input[1]  # one pair for both readers


def late_reader():
    """A sum that reads `r` before a layer does."""
    nodes = [
        conv("x w1", "c"),
        node("Relu", "c", "r"),
        node("Sigmoid", "r", "g"),
        conv("g w2", "c2"),
        node("Add", "c2 r", "s"),
        conv("r w2", "late"),
        node("Add", "s late", "y"),
    ]
    return graph(nodes, {"w1": normal(16, 16, 3, 3), "w2": normal(16, 16, 3, 3, seed=5)})


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_sum_and_a_later_layer_read_is_made_before_both(family):
    model, x = late_reader(), pictures(3)
    quantised, layers = all_quantised(model, family, x)
    onnx.checker.check_model(quantised, full_check=True)
    assert in_eight_bits(quantised, layers) == {"c", "c2", "late"}
    assert nearness(run(quantised, {"x": x})["y"], run(model, {"x": x})["y"]) > 30


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_that_are_not_chosen_stay(family):
    model, x = residual_net(), pictures(4)
    quantised, layers = all_quantised(model, family, x, {"second"})
    assert in_eight_bits(quantised, layers) == {"second"}
    unchanged, _ = all_quantised(model, family, x, set())
    assert operators(unchanged)["QuantizeLinear"] == 0
    np.testing.assert_allclose(run(unchanged, {"x": x})["y"], run(model, {"x": x})["y"], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_that_were_stored_small_stay_small(family):
    """A layer that stays float32 in a bundle whose weights are rounded already costs no more than one in eight bits."""
    model, x = residual_net(), pictures(4)
    plain, _ = all_quantised(model, family, x, {"second"})
    simplify.store_int8(model, dict.fromkeys(("w_in", "w_a", "w_out"), 0))
    fuse.widen_weights(model)
    quantised, layers = all_quantised(model, family, x, {"second"})
    assert in_eight_bits(quantised, layers) == {"second"}
    assert len(quantised.SerializeToString()) < 0.6 * len(plain.SerializeToString())
    assert nearness(run(quantised, {"x": x})["y"], run(model, {"x": x})["y"]) > 28
    unchanged, _ = all_quantised(model, family, x, set())
    np.testing.assert_allclose(run(unchanged, {"x": x})["y"], run(model, {"x": x})["y"], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_that_read_nothing_but_zeros_stay(family):
    model, x = residual_net(), pictures(4)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "b_in")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(32, -100, np.float32), "b_in"))  # nothing passes the ReLU
    quantised, layers = all_quantised(model, family, x)
    assert in_eight_bits(quantised, layers) == {"first", "y"}
    assert nearness(run(quantised, {"x": x})["y"], run(model, {"x": x})["y"]) > 20


@pytest.mark.parametrize("family", FAMILIES)
def test_smoothing_makes_eight_bits_better(family):
    model, x = norm_net(), pictures(6, shape=(6, 64))
    wanted = run(model, {"x": x})["y"]
    before = nearness(run(all_quantised(model, family, x)[0], {"x": x})["y"], wanted)
    smoothed(model, x)
    assert nearness(run(all_quantised(model, family, x)[0], {"x": x})["y"], wanted) > before + 5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_that_gives_nothing_but_zeros(family):
    model = graph(
        [conv("x w1", "c"), conv("c w0", "d"), node("Add", "d c", "y")],
        {"w1": normal(16, 16, 3, 3), "w0": np.zeros((16, 16, 3, 3), np.float32)},
    )
    quantised, _ = all_quantised(model, family, pictures(3))
    assert nearness(run(quantised, {"x": pictures(3)})["y"], run(model, {"x": pictures(3)})["y"]) > 30


@pytest.mark.parametrize("family", FAMILIES)
def test_a_decoder_in_eight_bits_draws_nearly_the_same(demo, demo_graphs, family):
    model = demo_graphs["decoder"]
    layers = layers_of(model, "decoder")
    chosen = {one.name for one in layers if not one.keep}
    spec = demo.manifest.latent
    latent = normal(2, spec.channels, spec.height, spec.width, size=1.0)
    known = {t.name for t in model.graph.initializer}
    inner = {name for one in model.graph.node if one.op_type in ("Conv", "Relu", "Add") for name in one.output}
    names = sorted((inner | {one.source for one in layers}) - known)
    seen = Activations({"decoder": names})
    seen.see("decoder", 0, {"latent": latent, **run(observable(model, names), {"latent": latent})})
    spans = {name: one.extremes for name, one in seen.tensors["decoder"].items()}
    quantised = quantise(model, family, layers, chosen, spans)
    data = quantised.SerializeToString(deterministic=True)
    assert len(data) < 0.35 * model.ByteSize()  # whose weights are float32
    assert in_eight_bits(load(data), layers) == chosen
    wanted, found = (run(one, {"latent": latent})["image"] for one in (model, data))
    assert nearness(found - 128.0, wanted - 128.0) > 20
