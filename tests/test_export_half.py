"""Mixed precision: which operators stay float32, few Casts, portraits that look the same, nothing that overflows."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, shape_inference
from tiny_bundle import DIFFUSION, SHORTCUT, write_tiny_bundle

from benchmarks.precision import Graph, composition, inputs, rounded, stages, with_all_tensors
from export.derive import GRAPHS, derive
from export.half import to_half
from export.simplify import element_types
from runtime.bench import synthetic_speech
from runtime.bundle import STAGES, read_bundle
from runtime.pipeline import shipped_bundle
from runtime.portrait import psnr

EXAMPLES = Path(__file__).parents[1] / "examples"
FOLDER = os.environ.get("S2F_SPEECH", "")
RECORDINGS = sorted(Path(FOLDER).glob("*.flac"))[:64] if FOLDER else []
LEAST_PSNR = 35.0  # dB
SAMPLES = 96000


@pytest.fixture(scope="module")
def demo():
    return read_bundle(shipped_bundle())


@pytest.fixture(scope="module", params=["demo", "shortcut", "diffusion"])
def bundle(request, tmp_path_factory):
    if request.param == "demo":
        return read_bundle(shipped_bundle())
    arm = {"shortcut": SHORTCUT, "diffusion": DIFFUSION}[request.param]
    return read_bundle(write_tiny_bundle(tmp_path_factory.mktemp(request.param), arm=arm))


def check_portraits(bundle, voices, steps):
    """Both ways of running the mixed pipeline against the float32 one."""
    full = Graph(derive(bundle, "pipeline", batch=1, steps=steps, precision="fp32"))
    data = derive(bundle, "pipeline", batch=1, steps=steps)
    mixed = [Graph(data), Graph(rounded(data))]
    for values in inputs(bundle.manifest, voices):
        reference = full.run(values)["image"]
        assert reference.std() > 5
        for graph in mixed:
            assert psnr(graph.run(values)["image"], reference) >= LEAST_PSNR


@pytest.mark.skipif(not RECORDINGS, reason="set the variable S2F_SPEECH to a folder of FLAC recordings")
@pytest.mark.parametrize(("steps", "voices"), [(1, 4), (4, 64)])
def test_portraits_of_real_voices_are_the_same(demo, steps, voices):
    check_portraits(demo, RECORDINGS[:voices], steps)


def test_portraits_of_many_steps_are_the_same(bundle):
    check_portraits(bundle, [EXAMPLES / "woman.wav"], max(bundle.manifest.step_tables))


def extremes():
    """Sounds at the ends of what the border takes, float32 [1, 96000] each."""
    rng = np.random.default_rng(0)
    speech = synthetic_speech(seed=1)
    sine = np.sin(2 * np.pi * 997 * np.arange(SAMPLES) / 16000)
    sounds = {
        "silence": np.zeros(SAMPLES),
        "one step of 16 bits": np.where(np.arange(SAMPLES) == 48000, 2.0**-15, 0),
        "quiet noise": 1e-5 * rng.standard_normal(SAMPLES),
        "quiet speech": 1e-4 * speech,
        "full scale": sine,
        "square": np.sign(sine),
        "clipped speech": np.clip(50 * speech, -1, 1),
        "loud noise": np.clip(rng.standard_normal(SAMPLES), -1, 1),
        "direct current": np.ones(SAMPLES),
    }
    return {name: sound.astype(np.float32)[None] for name, sound in sounds.items()}


@pytest.fixture(scope="module")
def demo_encoders(demo):
    mixed = rounded(derive(demo, "encoder", batch=1))
    return Graph(derive(demo, "encoder", batch=1, precision="fp32")), Graph(with_all_tensors(mixed))


@pytest.mark.parametrize("kind", extremes())
def test_no_sound_leaves_the_range_of_float16(demo_encoders, kind):
    full, mixed = demo_encoders
    values = {"pcm": extremes()[kind]}
    found, expected = mixed.run(values), full.run(values)["condition"]
    assert all(np.isfinite(value).all() for value in found.values())
    assert max(np.abs(value).max() for name, value in found.items() if name != "condition") < 6550
    assert np.linalg.norm(found["condition"] - expected) < 0.01 * np.linalg.norm(expected)


def test_stages_stay_within_a_tenth_of_the_range(demo):
    """The largest numbers of encoder, steps and decoder on a portrait's way, and their errors."""
    report = stages(demo, inputs(demo.manifest, [EXAMPLES / "man.wav"]))
    assert all(report[stage]["of_range"] < 0.1 for stage in STAGES)
    assert report["encoder"]["max"] < 0.005
    assert report["unet"]["max"] < 0.005
    assert report["decoder"]["max"] <= 2


@pytest.fixture(scope="module")
def graphs(bundle):
    """All mixed graphs of a bundle for batch 1."""
    steps = bundle.manifest.default_steps
    return {graph: derive(bundle, graph, batch=1, steps=steps if graph == "pipeline" else 0) for graph in GRAPHS}


def test_delicate_operators_are_float32(graphs):
    delicate = {"Softmax", "ReduceSum", "ReduceL2", "ReduceMean", "Pow", "Sqrt", "Clip", "Round", "Abs", "Gather"}
    for graph, data in graphs.items():
        assert not delicate.intersection(composition(data)["float16"]), graph


def test_all_work_of_the_network_is_float16(demo):
    """Every Conv and MatMul of the demo, but for the three matrix products of its spectrum."""
    found = {stage: composition(derive(demo, stage, batch=1)) for stage in STAGES}
    work = {
        graph: [parts["float32"].get(kind, 0) for kind in ("Conv", "Gemm", "MatMul")] for graph, parts in found.items()
    }
    assert work == {"encoder": [0, 0, 3], "unet": [0, 0, 0], "decoder": [0, 0, 0]}
    weights = onnx.load_from_string(derive(demo, "unet", batch=1)).graph.initializer
    wide = [t.name for t in weights if t.data_type == TensorProto.FLOAT and np.prod(t.dims) > 4096]
    assert len(wide) == 1, "only the table of the steps' rows"


@pytest.mark.parametrize("graph", ["encoder", "pipeline"])
def test_the_sound_is_float32_up_to_the_first_convolution(graphs, graph):
    model = onnx.load_from_string(graphs[graph])
    types = element_types(shape_inference.infer_shapes(model, strict_mode=True))
    sound = {"pcm"}
    for node in model.graph.node:
        if node.op_type == "Conv" and types[node.input[0]] == TensorProto.FLOAT16:
            break
        if sound.intersection(node.input) and node.op_type != "Cast":
            assert types[node.output[0]] == TensorProto.FLOAT
            sound.update(node.output)
    assert len(sound) > 4


@pytest.fixture(scope="module")
def two_and_four_steps(demo):
    """The composition of the demo's pipelines of two and of four steps, which differ by two steps."""
    return [composition(derive(demo, "pipeline", batch=1, steps=steps)) for steps in (2, 4)]


def test_casts_are_few(two_and_four_steps):
    """Per step: two around each softmax, one into the first convolution, one out of the last."""
    two, four = two_and_four_steps
    softmaxes = (four["float32"]["Softmax"] - two["float32"]["Softmax"]) // 2
    assert (four["casts"] - two["casts"]) // 2 == 2 * softmaxes + 2


def test_the_solver_is_float32(two_and_four_steps):
    """S·x, P·x, Q·net, A·x and B·x0 of every step, in a pipeline as in a stage."""
    two, four = (found["float32"] for found in two_and_four_steps)
    assert (four["Mul"] - two["Mul"]) // 2 == 5
    assert (four["Add"] - two["Add"], four["Clip"] - two["Clip"]) == (2 * 2, 2)


def test_no_cast_is_made_twice_or_undone(graphs):
    for data in graphs.values():
        casts = [node for node in onnx.load_from_string(data).graph.node if node.op_type == "Cast"]
        made = {name for node in casts for name in node.output}
        assert not any(node.input[0] in made for node in casts)
        assert all(count == 1 for count in Counter(node.input[0] for node in casts).values())


def model_of(nodes, constants, shapes, outputs=("y",)):
    """A graph from x with the given constants; `shapes`: of x and the outputs."""
    values = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip(("x", *outputs), shapes, strict=True)
    ]
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "small", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def halved(model, keep=frozenset()):
    """The operators that became float16, the others, and the number of Casts, of a model that still works."""
    to_half(model, keep)
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    Graph(data).run({"x": np.ones(shape, np.float32)})
    found = composition(data)
    return sorted(found["float16"]), sorted(found["float32"]), found["casts"]


EYE = np.eye(4, dtype=np.float32)


@pytest.mark.parametrize(
    ("constant", "fits"),
    [(65504, True), (65520, False), (-1e5, False), (1e-5, False), (1e-4, True), (0, True), (np.inf, False)],
)
def test_a_constant_float16_cannot_hold_keeps_its_operator(constant, fits):
    nodes = [helper.make_node("MatMul", ["x", "eye"], ["a"]), helper.make_node("Add", ["a", "c"], ["y"])]
    model = model_of(nodes, {"eye": EYE, "c": np.full(4, constant, np.float32)}, ([2, 4], [2, 4]))
    assert halved(model) == ((["Add", "MatMul"], [], 2) if fits else (["MatMul"], ["Add"], 2))


def test_weights_float16_cannot_hold_keep_the_work_in_float32():
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": 1e6 * EYE}, ([2, 4], [2, 4]))
    assert halved(model) == ([], ["MatMul"], 0)


def test_constants_to_keep_are_kept():
    nodes = [helper.make_node("MatMul", ["x", "eye"], ["a"]), helper.make_node("Mul", ["a", "c"], ["y"])]
    model = model_of(nodes, {"eye": EYE, "c": np.ones(1, np.float32)}, ([2, 4], [2, 4]))
    assert halved(model, {"c"}) == (["MatMul"], ["Mul"], 2)


def test_a_constant_of_both_types_is_there_twice():
    nodes = [
        helper.make_node("Add", ["x", "eye"], ["a"]),
        helper.make_node("MatMul", ["a", "eye"], ["y"]),
    ]
    model = model_of(nodes, {"eye": EYE}, ([4, 4], [4, 4]))
    assert halved(model) == (["MatMul"], ["Add"], 2)
    assert [t.data_type for t in model.graph.initializer] == [TensorProto.FLOAT, TensorProto.FLOAT16]


def test_an_output_read_inside_the_graph_is_cast_once():
    nodes = [
        helper.make_node("MatMul", ["x", "eye"], ["y"]),
        helper.make_node("Softmax", ["y"], ["s"]),
        helper.make_node("MatMul", ["y", "eye"], ["z"]),
        helper.make_node("Add", ["s", "z"], ["w"]),
    ]
    model = model_of(nodes, {"eye": EYE}, ([2, 4], [2, 4], [2, 4], [2, 4]), ("y", "z", "w"))
    assert halved(model) == (["MatMul"], ["Add", "Softmax"], 3)


def test_one_cast_before_a_split_serves_all_parts():
    nodes = [
        helper.make_node("Softmax", ["x"], ["s"]),
        helper.make_node("Reshape", ["s", "shape"], ["r"]),
        helper.make_node("Split", ["r"], ["a", "b"], axis=1),
        helper.make_node("Transpose", ["b"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["a", "t"], ["y"]),
    ]
    model = model_of(nodes, {"shape": np.array([2, 8])}, ([4, 4], [2, 2]))
    assert halved(model) == (["MatMul", "Reshape", "Split", "Transpose"], ["Softmax"], 2)


def test_layout_stays_float32_where_float32_is_wanted():
    nodes = [
        helper.make_node("Softmax", ["x"], ["s"]),
        helper.make_node("Transpose", ["s"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["t", "eye"], ["m"]),
        helper.make_node("Add", ["m", "t"], ["y"]),
    ]
    assert halved(model_of(nodes, {"eye": EYE}, ([4, 4], [4, 4]))) == (["MatMul"], ["Add", "Softmax", "Transpose"], 2)


def test_integers_are_left_alone():
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT32),
        helper.make_node("MatMul", ["i", "eye"], ["y"]),
    ]
    model = model_of(nodes, {"eye": EYE.astype(np.int32)}, ([4, 4], [4, 4]))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT32
    to_half(model)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Cast", "MatMul"]


def test_norms_have_statistics_of_float32():
    """Their squares float16 cannot hold; a stash_type left out is 1, float32."""
    nodes = [
        helper.make_node("MatMul", ["x", "eye"], ["m"]),
        helper.make_node("LayerNormalization", ["m", "gain"], ["y"]),
    ]
    model = model_of(nodes, {"eye": 3000 * EYE, "gain": np.ones(4, np.float32)}, ([2, 4], [2, 4]))
    assert halved(model)[0] == ["LayerNormalization", "MatMul"]
    assert not any(attribute.name == "stash_type" for attribute in model.graph.node[2].attribute)
    x = np.array([[1, 2, 3, 4], [1, 1, 1, 1]], np.float32)
    normal = Graph(rounded(model.SerializeToString())).run({"x": x})["y"]
    np.testing.assert_allclose(normal[0], (x[0] - 2.5) / np.sqrt(1.25), rtol=2e-3)
    np.testing.assert_array_equal(normal[1], 0)


def test_rounding_is_what_float16_does():
    nodes = [
        helper.make_node("MatMul", ["x", "eye"], ["a"]),
        helper.make_node("Mul", ["a", "third"], ["b"]),
        helper.make_node("Add", ["b", "third"], ["y"]),
    ]
    third = np.array([1 / 3], np.float32)
    model = model_of(nodes, {"eye": EYE, "third": third}, ([4, 4], [4, 4]))
    to_half(model)
    x = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    third = third.astype(np.float16).astype(np.float32)
    product = (x.astype(np.float16).astype(np.float32) * third).astype(np.float16).astype(np.float32)
    expected = (product + third).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(Graph(rounded(model.SerializeToString())).run({"x": x})["y"], expected)
