"""Graphs for TensorRT: the bundle's numbers, static shapes, shared weights, the same bytes every time; no torch."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_bundle import DIFFUSION, SHORTCUT, make_graph, write_tiny_bundle

import runtime
from export import fuse
from export.derive import GRAPHS, derive
from export.options import ExportOptions
from export.pipeline import export_system
from runtime.audio import load_speech
from runtime.bench import synthetic_speech
from runtime.bundle import read_bundle
from runtime.errors import BackendFailed, InvalidArgument, StepsUnavailable
from runtime.noise import seeded_noise
from runtime.pipeline import shipped_bundle
from tests.toy_system import toy_system

EXAMPLES = Path(__file__).parents[1] / "examples"
VOICES = [EXAMPLES / "woman.wav", EXAMPLES / "man.wav", (synthetic_speech(seed=3), 16000)]
SEEDS = [5, 6, 7]
OPTIONS = {"guidance": 2.5, "prior_weight": 0.05}
BUNDLES = ("demo", "shortcut", "diffusion", "exported")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    arms = {"shortcut": SHORTCUT, "diffusion": DIFFUSION}
    paths = {name: write_tiny_bundle(folder / name, arm=arm) for name, arm in arms.items()}
    # What the exporter makes of the diffusion arm: doubled batches for guidance, null tokens, history.
    export_system(toy_system(), folder / "exported", ExportOptions(steps=(1, 2, 4)))
    return {name: read_bundle(folder / name) for name in (*paths, "exported")} | {"demo": read_bundle(shipped_bundle())}


def run(data, values):
    """Outputs by name; of `values` the graph takes what it has inputs for."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    feeds = {value.name: values[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(None, feeds), strict=True))


def options_of(manifest):
    """The values of OPTIONS a caller may choose from, for `generate`."""
    specs = {"guidance": manifest.guidance, "prior_weight": manifest.prior}
    return {name: OPTIONS[name] for name, spec in specs.items() if not spec.fixed}


def arrays(options):
    return {name: np.array([value], np.float32) for name, value in options.items()}


def operators(data):
    return [node.op_type for node in onnx.load_from_string(data).graph.node]


def borders(data):
    graph = onnx.load_from_string(data).graph
    return [
        (value.name, value.type.tensor_type.elem_type, [dim.dim_value for dim in value.type.tensor_type.shape.dim])
        for value in (*graph.input, *graph.output)
    ]


def stage_inputs(bundle, stage, batch):
    rng = np.random.default_rng(batch)
    pcm = np.stack([load_speech(voice) for voice in VOICES[:batch]])
    condition = run(bundle.files["encoder"], {"pcm": pcm})["condition"]
    spec = bundle.manifest.latent
    state = rng.standard_normal((2, batch, spec.channels, spec.height, spec.width)).astype(np.float32)
    values = {"pcm": pcm, "condition": condition, "latent": state[0], "history": state[1], **arrays(OPTIONS)}
    return [{**values, "step": np.array([row])} for row in ((0, 1, 5) if stage == "unet" else (0,))]


@pytest.mark.parametrize("name", BUNDLES)
@pytest.mark.parametrize("stage", ["encoder", "unet", "decoder"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_stage_is_the_bundles_own(bundles, name, stage, batch):
    data = derive(bundles[name], stage, batch=batch, precision="fp32")
    for values in stage_inputs(bundles[name], stage, batch):
        expected = run(bundles[name].files[stage], values)
        found = run(data, {**values, "step": values["step"].astype(np.int32)})
        assert found.keys() == expected.keys()
        for output, value in expected.items():
            scale = np.abs(value.astype(np.float64)).max()
            tolerance = 1 if stage == "decoder" else 2e-5 * scale
            np.testing.assert_allclose(found[output].astype(float), value.astype(float), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", BUNDLES)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_pipeline_draws_what_generate_draws(bundles, name, batch):
    bundle = bundles[name]
    spec, options = bundle.manifest.latent, options_of(bundle.manifest)
    pcm = np.stack([load_speech(voice) for voice in VOICES[:batch]])
    noise = np.stack([seeded_noise(seed, (spec.channels, spec.height, spec.width)) for seed in SEEDS[:batch]])
    with runtime.load(bundle.path, device="cpu", threads=1, precision="fp32") as pipeline:
        for steps in bundle.manifest.step_tables:
            drawn = pipeline.generate(VOICES[:batch], steps=steps, seed=SEEDS[:batch], **options)
            data = derive(bundle, "pipeline", batch=batch, steps=steps, precision="fp32")
            images = run(data, {"pcm": pcm, "noise": noise, **arrays(options)})["image"]
            expected = np.stack([portrait.image for portrait in drawn]).astype(int)
            assert np.abs(images.astype(int) - expected).max() <= 1
            assert expected.std() > 5


@pytest.mark.parametrize("name", BUNDLES)
@pytest.mark.parametrize("batch", [1, 3])
def test_borders_are_those_of_the_design(bundles, name, batch):
    manifest = bundles[name].manifest
    options = [(option, TensorProto.FLOAT, [1]) for option in options_of(manifest)]
    latent = [batch, manifest.latent.channels, manifest.latent.height, manifest.latent.width]
    state = ["latent", "history"] if manifest.history else ["latent"]
    condition = ("condition", TensorProto.FLOAT, [batch, manifest.condition.tokens, manifest.condition.width])
    image = ("image", TensorProto.UINT8, [batch, manifest.image.height, manifest.image.width, 3])
    pcm = ("pcm", TensorProto.FLOAT, [batch, 96000])
    expected = {
        "encoder": [pcm, condition],
        "unet": [
            *((one, TensorProto.FLOAT, latent) for one in state),
            condition,
            ("step", TensorProto.INT32, [1]),
            *options,
            *((f"{one}_next", TensorProto.FLOAT, latent) for one in state),
        ],
        "decoder": [("latent", TensorProto.FLOAT, latent), image],
        "pipeline": [pcm, ("noise", TensorProto.FLOAT, latent), *options, image],
    }
    for graph in GRAPHS:
        for precision in ("fp32", "fp16"):
            steps = 1 if graph == "pipeline" else 0
            data = derive(bundles[name], graph, batch=batch, steps=steps, precision=precision)
            assert borders(data) == expected[graph]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_steps_share_their_weights(bundles, precision):
    """Nothing is stored twice, whatever its name."""
    one, four = (derive(bundles["demo"], "pipeline", batch=1, steps=n, precision=precision) for n in (1, 4))
    assert len(four) < 1.1 * len(one)
    weights = onnx.load_from_string(four).graph.initializer
    assert len({(t.data_type, tuple(t.dims), numpy_helper.to_array(t).tobytes()) for t in weights}) == len(weights)


def test_nothing_is_left_that_a_number_can_replace(bundles):
    """No shapes, no look-ups, no norms beside convolutions; of a float32 graph only the image is cast."""
    graphs = {graph: operators(derive(bundles["demo"], graph, batch=2, precision="fp32")) for graph in GRAPHS[:3]}
    graphs["pipeline"] = operators(derive(bundles["demo"], "pipeline", batch=2, steps=4, precision="fp32"))
    for found in graphs.values():
        assert not {"Shape", "Expand", "BatchNormalization", "Identity", "ConstantOfShape"}.intersection(found)
    assert graphs["unet"].count("Gather") == 1
    assert "Gather" not in graphs["pipeline"]
    assert [found.count("Cast") for found in graphs.values()] == [0, 0, 1, 1]


def test_what_all_steps_do_alike_is_done_once(bundles):
    """The condition is taken apart once, the prior enters once, and a step's own constants lie in biases."""
    step = operators(derive(bundles["demo"], "unet", batch=1, precision="fp32"))
    two, four = (operators(derive(bundles["demo"], "pipeline", batch=1, steps=n, precision="fp32")) for n in (2, 4))
    more = {kind: (four.count(kind) - two.count(kind)) // 2 for kind in ("Conv", "Add", "Mul", "Split", "Transpose")}
    assert more["Conv"] == step.count("Conv")
    residual_blocks = 8
    assert more["Add"] < step.count("Add") - residual_blocks
    assert more["Mul"] < step.count("Mul")
    assert more["Split"] == step.count("Split") - 2  # of the table's row and of the condition
    assert more["Transpose"] < step.count("Transpose")


@pytest.mark.parametrize("name", BUNDLES)
def test_same_bundle_same_bytes(bundles, name):
    for graph, steps in (("unet", 0), ("pipeline", 2)):
        first, second = (derive(read_bundle(bundles[name].path), graph, batch=2, steps=steps) for _ in range(2))
        assert first == second


def test_files_say_nothing_but_the_graph(bundles):
    model = onnx.load_from_string(derive(bundles["demo"], "pipeline", batch=1, steps=1))
    assert model.ir_version == 8
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    assert (model.producer_name, model.producer_version, model.doc_string) == ("s2f-edge", "", "")
    items = (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output)
    assert not any(item.doc_string or item.metadata_props for item in items)
    assert not model.metadata_props
    assert not model.graph.value_info


def test_arguments_are_checked(bundles):
    bundle = bundles["shortcut"]
    batches = [{"batch": batch} for batch in (0, 17, 1.0, True)]
    for wrong in ({"graph": "vae"}, {"precision": "int4"}, *batches):
        arguments = {"graph": "encoder", "batch": 1, **wrong}
        with pytest.raises(InvalidArgument, match=next(iter(wrong))):
            derive(bundle, arguments.pop("graph"), **arguments)
    with pytest.raises(InvalidArgument, match="steps"):
        derive(bundle, "unet", batch=1, steps=4)
    for steps in (0, 3):
        with pytest.raises(StepsUnavailable):
            derive(bundle, "pipeline", batch=1, steps=steps)


def broken_graphs():
    decoder = [helper.make_node("Identity", ["latent"], ["image"])]
    newer = onnx.load_from_string(make_graph("decoder", decoder, {}))
    newer.opset_import[0].version = 18
    return {
        "not ONNX": b"\x00nonsense",
        "another opset": newer.SerializeToString(),
        "a wrong type": make_graph("decoder", decoder, {}),
        "an unknown tensor": make_graph("decoder", [helper.make_node("Identity", ["nowhere"], ["image"])], {}),
        "a computed batch norm": make_graph(
            "decoder", [helper.make_node("BatchNormalization", ["latent"] * 5, ["y"])], {}
        ),
    }


@pytest.mark.parametrize("kind", broken_graphs())
@pytest.mark.parametrize("graph", ["decoder", "pipeline"])
def test_a_broken_graph_is_one_clear_error(bundles, kind, graph):
    bundle = bundles["diffusion"]
    bundle = dataclasses.replace(bundle, files={**bundle.files, "decoder": broken_graphs()[kind]})
    with pytest.raises(BackendFailed, match=r"bundle tiny.*Export the bundle again"):
        derive(bundle, graph, batch=1, steps=2 if graph == "pipeline" else 0)


def test_torch_is_not_needed():
    code = (
        "import sys; sys.modules['torch'] = None; import export.derive, export.half, export.fuse, export.lint; "
        "from runtime.bundle import read_bundle; from runtime.pipeline import shipped_bundle; "
        "export.derive.derive(read_bundle(shipped_bundle()), 'decoder', batch=1); "
        "sys.exit(any(name.partition('.')[0] in ('diffusers', 'onnxruntime', 'training') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def small_model(nodes, constants, shapes):
    """A graph from x to y with the given constants and (input, output) shapes."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in zip("xy", shapes, strict=True)
    ]
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "small", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def unchanged_by(change, model, kept):
    """Apply `change`; check that the numbers stay and which operators do."""
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    values = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    before = run(model.SerializeToString(), values)["y"]
    change(model)
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(run(model.SerializeToString(), values)["y"], before, rtol=1e-5, atol=1e-5)
    assert [node.op_type for node in model.graph.node] == kept


NORM = {"gain": [1.5, -2.0], "bias": [0.1, 0.2], "mean": [0.3, -0.4], "var": [0.5, 2.0]}
NORM = {name: np.array(value, np.float32) for name, value in NORM.items()}
KERNEL = np.arange(8, dtype=np.float32).reshape(2, 4, 1)


@pytest.mark.parametrize("bias", [(), ("shift",)])
def test_a_batch_norm_goes_into_the_convolution_before_it(bias):
    nodes = [
        helper.make_node("Conv", ["x", "kernel", *bias], ["c"]),
        helper.make_node("BatchNormalization", ["c", *NORM], ["y"], epsilon=0.25),
    ]
    constants = {"kernel": KERNEL, "shift": np.array([1.0, 2.0], np.float32), **NORM}
    unchanged_by(fuse.fuse_batch_norms, small_model(nodes, constants, ([3, 4, 5], [3, 2, 5])), ["Conv"])


def test_a_batch_norm_beside_another_reader_stays_scaling():
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["c"]),
        helper.make_node("BatchNormalization", ["c", *NORM], ["n"]),
        helper.make_node("Add", ["n", "c"], ["y"]),
    ]
    model = small_model(nodes, {"kernel": KERNEL, **NORM}, ([3, 4, 5], [3, 2, 5]))
    unchanged_by(fuse.fuse_batch_norms, model, ["Conv", "Mul", "Add", "Add"])


@pytest.mark.parametrize("shape", [[3, 2], [3, 2, 5], [3, 2, 5, 4]])
def test_a_batch_norm_of_any_rank_becomes_scaling(shape):
    model = small_model([helper.make_node("BatchNormalization", ["x", *NORM], ["y"])], NORM, (shape, shape))
    unchanged_by(fuse.fuse_batch_norms, model, ["Mul", "Add"])


@pytest.mark.parametrize("shape", [[3, 2, 5], [3, 2, 5, 4]])
@pytest.mark.parametrize(("gain", "bias", "more"), [([1, 1], [0, 0], []), ([1.5, -2], [0.1, 0.2], ["Mul", "Add"])])
def test_an_instance_norm_becomes_a_layer_norm(shape, gain, bias, more):
    constants = {"gain": np.array(gain, np.float32), "bias": np.array(bias, np.float32)}
    node = helper.make_node("InstanceNormalization", ["x", "gain", "bias"], ["y"], epsilon=0.1)
    unchanged_by(
        fuse.spell_instance_norms, small_model([node], constants, (shape, shape)), ["LayerNormalization", *more]
    )


@pytest.mark.parametrize(("shape", "kept"), [((1, 2, 1), ["Conv"]), ((2, 1), ["Conv", "Add"]), ((), ["Conv", "Add"])])
@pytest.mark.parametrize("sides", [("c", "row"), ("row", "c")])
def test_only_a_constant_per_channel_goes_into_a_bias(shape, kept, sides):
    nodes = [helper.make_node("Conv", ["x", "kernel"], ["c"]), helper.make_node("Add", sides, ["y"])]
    constants = {"kernel": KERNEL, "row": np.full(shape, 1.5, np.float32)}
    unchanged_by(fuse.fuse_biases, small_model(nodes, constants, ([3, 4, 5], [3, 2, 5])), kept)


def test_expands_go_where_nobody_needs_them():
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], axes=[1], keepdims=1),
        helper.make_node("Expand", ["m", "shape"], ["wide"]),
        helper.make_node("Div", ["x", "wide"], ["d"]),
        helper.make_node("Expand", ["one", "shape"], ["ones"]),
        helper.make_node("Add", ["d", "ones"], ["y"]),
    ]
    constants = {"shape": np.array([3, 4]), "one": np.ones((1, 1), np.float32)}
    unchanged_by(fuse.drop_expands, small_model(nodes, constants, ([3, 4], [3, 4])), ["ReduceMax", "Div", "Add"])


@pytest.mark.parametrize("reader", [("Mul", ["wide", "wide"]), ("Concat", ["wide", "wide"]), ("Mul", ["wide", "m"])])
def test_expands_stay_where_the_size_comes_from_them(reader):
    attributes = {"axis": 0} if reader[0] == "Concat" else {}
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], axes=[1], keepdims=1),
        helper.make_node("Expand", ["m", "shape"], ["wide"]),
        helper.make_node(*reader, ["y"], **attributes),
    ]
    shapes = [3, 4], [6, 4] if reader[0] == "Concat" else [3, 4]
    model = small_model(nodes, {"shape": np.array([3, 4])}, shapes)
    unchanged_by(fuse.drop_expands, model, ["ReduceMax", "Expand", reader[0]])


def test_neutral_arithmetic_goes_and_widening_stays():
    nodes = [
        helper.make_node("Mul", ["x", "one"], ["a"]),
        helper.make_node("Mul", ["zero", "a"], ["b"]),
        helper.make_node("Add", ["b", "a"], ["c"]),
        helper.make_node("Add", ["c", "wide"], ["d"]),
        helper.make_node("Tanh", ["d"], ["y"]),
    ]
    constants = {"one": np.ones(1, np.float32), "zero": np.zeros((1, 1), np.float32)}
    constants["wide"] = np.zeros((2, 3, 4), np.float32)
    unchanged_by(fuse.drop_neutral, small_model(nodes, constants, ([3, 4], [2, 3, 4])), ["Add", "Tanh"])


def test_twins_are_merged_and_outputs_kept():
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["a"]),
        helper.make_node("Mul", ["x", "too"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Mul", ["x", "other"], ["d"]),
        helper.make_node("Add", ["c", "d"], ["y"]),
    ]
    constants = {"two": np.full(1, 2, np.float32), "too": np.full(1, 2, np.float32), "other": np.full(2, 2, np.float32)}
    model = small_model(nodes, constants, ([1, 2], [1, 2]))
    unchanged_by(fuse.merge_twins, model, ["Mul", "Add", "Mul", "Add"])
    assert [tensor.name for tensor in model.graph.initializer] == ["two", "other"]
