"""The graphs: names and shapes of the contract, clean and reproducible files, free batch, shared guidance work."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from export import simplify
from export.batch import NotMergeableError, merge_batches
from export.denoiser import PixelShuffle
from export.graphs import Signature, example_inputs, export_graph
from export.modules import DecoderGraph, EncoderGraph, step_graph
from export.sharing import share_guidance
from runtime.bundle import TensorSpec
from runtime.errors import BackendFailed
from tests.toy_system import CHANNELS, SIZE, toy_rows, toy_system, toy_tensors

STANDARD = ("", "ai.onnx")
ARMS = ("diffusion", "shortcut")


def modules(system, rows):
    return {"encoder": EncoderGraph(system), "unet": step_graph(system, rows), "decoder": DecoderGraph(system)}


def export(system, stage, *, float16=False):
    rows = toy_rows(system)
    signature = Signature(stage, *toy_tensors(system, rows)[stage])
    return export_graph(modules(system, rows)[stage], signature, float16=float16, producer="s2f-edge test")


def export_all(system):
    return {stage: export(system, stage) for stage in ("encoder", "unet", "decoder")}


@pytest.fixture(scope="module", params=ARMS)
def arm(request):
    return request.param


@pytest.fixture(scope="module")
def graphs(arm):
    return export_all(toy_system(arm=arm))


@pytest.mark.parametrize("stage", ["encoder", "unet", "decoder"])
def test_graph_keeps_the_contract(graphs, arm, stage):
    model = onnx.load_from_string(graphs[stage])
    system = toy_system(arm=arm)
    inputs, outputs = toy_tensors(system, toy_rows(system))[stage]
    for values, specs in ((model.graph.input, inputs), (model.graph.output, outputs)):
        assert [_spec(v) for v in values] == list(specs)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    assert {n.domain for n in model.graph.node} <= set(STANDARD)
    assert all(t.data_location == onnx.TensorProto.DEFAULT for t in model.graph.initializer)


def _spec(value):
    tensor = value.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    return TensorSpec(value.name, dtype, tuple(d.dim_param or d.dim_value for d in tensor.shape.dim))


@pytest.mark.parametrize("stage", ["encoder", "unet", "decoder"])
def test_files_say_nothing_about_this_machine(graphs, stage):
    model = onnx.load_from_string(graphs[stage])
    assert not model.doc_string
    assert not model.metadata_props
    assert not any(n.doc_string or n.metadata_props for n in model.graph.node)
    assert b".py" not in graphs[stage]
    assert b"site-packages" not in graphs[stage]


def test_same_weights_give_the_same_bytes(graphs, arm):
    assert export_all(toy_system(arm=arm)) == graphs


def test_no_shape_arithmetic_is_left_but_one_batch_size(graphs):
    for stage in ("unet", "decoder"):
        operators = [n.op_type for n in onnx.load_from_string(graphs[stage]).graph.node]
        assert operators.count("Shape") <= 1
        assert "ConstantOfShape" not in operators
        assert "Identity" not in operators


def test_time_and_step_size_became_one_table(graphs):
    graph = onnx.load_from_string(graphs["unet"]).graph
    names = [t.name for t in graph.initializer]
    assert not any(part in name for name in names for part in ("time_emb", "class_emb"))
    assert [node.op_type for node in graph.node if "step" in node.input] == ["Gather"]


def test_the_shortcut_arm_computes_nothing_twice():
    """One forward per step, and nothing for the history or the guidance."""
    both = [onnx.load_from_string(export(toy_system(arm=arm), "unet")).graph for arm in ARMS]
    diffusion, shortcut = ([node.op_type for node in graph.node] for graph in both)
    assert len(shortcut) < len(diffusion)
    assert "Expand" not in shortcut
    assert shortcut.count("Conv") == diffusion.count("Conv")


def test_what_is_fixed_leaves_no_nodes():
    system = toy_system(arm="shortcut", weights=(0.3, 0.3))
    free, fixed, none = (
        onnx.load_from_string(export(one, "unet")).graph
        for one in (toy_system(arm="shortcut"), system, toy_system(arm="shortcut", weight=0.0, weights=(0.0, 0.0)))
    )
    assert len(free.node) > len(fixed.node) > len(none.node)
    assert "prior_weight" not in [value.name for graph in (fixed, none) for value in graph.input]
    assert not any(t.name == "prior" for t in none.initializer)


@pytest.mark.parametrize("attention_first", [False, True])
def test_guidance_shares_the_first_layers(attention_first):
    data = export(toy_system(attention_first=attention_first), "unet")
    nodes = onnx.load_from_string(data).graph.node
    shared = {n.op_type for n in nodes if any(name.endswith("_once") for name in n.output)}
    assert {"Conv", "InstanceNormalization"} <= shared
    assert "Softmax" in shared, "self-attention in front of the first cross-attention is common to both halves"


def test_float16_files_are_smaller_and_lose_nothing_representable():
    system = toy_system()
    with torch.no_grad():
        for parameter in system.face_decoder.parameters():
            parameter.copy_(parameter.half().float())
    wide, narrow = export(system, "decoder"), export(system, "decoder", float16=True)
    assert len(narrow) < 0.65 * len(wide)
    feeds = {"latent": np.random.default_rng(0).standard_normal((2, CHANNELS, SIZE, SIZE)).astype(np.float32)}
    first, second = (onnxruntime.InferenceSession(d).run(None, feeds)[0] for d in (wide, narrow))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("factor", [2, 3])
def test_pixel_shuffle_moves_every_number_to_its_place(factor):
    stock = nn.PixelShuffle(factor)
    x = torch.arange(2 * 5 * factor**2 * 3 * 4, dtype=torch.float32).reshape(2, 5 * factor**2, 3, 4)
    torch.testing.assert_close(PixelShuffle(stock)(x), stock(x), rtol=0, atol=0)


def test_float16_leaves_alone_what_it_cannot_hold():
    assert simplify.round_float16(np.array([0.5, 1.0], np.float32)) is not None
    assert simplify.round_float16(np.array([1e6], np.float32)) is None
    assert simplify.round_float16(np.array([0.1], np.float32)) is None


def test_a_batch_that_reaches_the_data_is_refused():
    class Baked(nn.Module):
        def forward(self, latent):
            return latent * float(len(latent))

    tensor = TensorSpec("latent", "float32", ("batch", 3))
    with pytest.raises(BackendFailed, match="free batch"):
        export_graph(Baked(), Signature("toy", (tensor,), (tensor,)), float16=False, producer="x 1")


def test_an_ignored_input_is_refused():
    class Deaf(nn.Module):
        def forward(self, latent, unused):
            return latent + 1

    tensors = [TensorSpec(n, "float32", ("batch", 3)) for n in ("latent", "unused", "out")]
    with pytest.raises(BackendFailed, match="contract"):
        export_graph(Deaf(), Signature("toy", tuple(tensors[:2]), tuple(tensors[2:])), float16=False, producer="x 1")


def test_merge_refuses_different_structure():
    def model(operator):
        value = [onnx.helper.make_tensor_value_info(n, 1, [2]) for n in "ab"]
        node = onnx.helper.make_node(operator, ["a"], ["b"])
        return onnx.helper.make_model(onnx.helper.make_graph([node], "g", value[:1], value[1:]))

    with pytest.raises(NotMergeableError, match="different nodes"):
        merge_batches(model("Exp"), model("Neg"), (2, 3))


def test_batch_size_is_computed_where_a_wildcard_does_not_do():
    class Tiled(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("ones", torch.ones(1, 3))

        def forward(self, latent):
            ones = self.ones.expand(2 * len(latent), -1)
            return (torch.cat([latent, latent + 1]) * ones).reshape(2, len(latent), 3)[1]

    tensors = [TensorSpec(n, "float32", ("batch", 3)) for n in ("latent", "out")]
    signature = Signature("toy", tuple(tensors[:1]), tuple(tensors[1:]))
    session = onnxruntime.InferenceSession(export_graph(Tiled(), signature, float16=False, producer="x 1"))
    for batch in (1, 5):
        value = np.arange(3 * batch, dtype=np.float32).reshape(batch, 3)
        np.testing.assert_array_equal(session.run(None, {"latent": value})[0], value + 1)


def test_sharing_stops_where_entries_mix():
    """A transpose that moves the batch must see the doubled tensor; the result must not change."""

    class Mixing(nn.Module):
        def forward(self, latent):
            both = torch.cat([latent, latent]) * 2
            return both.transpose(0, 1).reshape(3, 2, -1).sum(dim=1).transpose(0, 1)

    module = Mixing()
    tensors = [TensorSpec(n, "float32", ("batch", 3)) for n in ("latent", "out")]
    signature = Signature("toy", tuple(tensors[:1]), tuple(tensors[1:]))
    (value,) = example_inputs(signature, 4, torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(export_graph(module, signature, float16=False, producer="x 1"))
    np.testing.assert_allclose(session.run(None, {"latent": value.numpy()})[0], module(value).numpy(), atol=1e-6)


def test_sharing_reports_what_it_moved():
    infos = [onnx.helper.make_tensor_value_info("x", 1, [2, 3]), onnx.helper.make_tensor_value_info("y", 1, [4, 3])]
    nodes = [
        onnx.helper.make_node("Concat", ["x", "x"], ["both"], axis=0),
        onnx.helper.make_node("Sigmoid", ["both"], ["y"]),
    ]
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", infos[:1], infos[1:]), opset_imports=opset)
    assert share_guidance(model) == 1
    assert [n.op_type for n in model.graph.node] == ["Sigmoid", "Concat"]
