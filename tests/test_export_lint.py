"""The lint finds what TensorRT 8.6's parser refuses, and nothing in the graphs we derive."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_bundle import DIFFUSION, SHORTCUT, write_tiny_bundle

from export.derive import derive
from export.lint import CONSTANT_INPUTS, PARSER_OPERATORS, REFUSED, lint
from runtime.bundle import STAGES, read_bundle
from runtime.pipeline import shipped_bundle


@pytest.fixture(scope="module", params=["demo", "shortcut", "diffusion"])
def bundle(request, tmp_path_factory):
    if request.param == "demo":
        return read_bundle(shipped_bundle())
    arm = {"shortcut": SHORTCUT, "diffusion": DIFFUSION}[request.param]
    return read_bundle(write_tiny_bundle(tmp_path_factory.mktemp(request.param), arm=arm))


@pytest.mark.parametrize("precision", ["fp16", "fp32"])  # int8 needs a variant: test_export_int8
def test_derived_graphs_are_clean(bundle, precision):
    for stage in STAGES:
        for batch in (1, 4):
            assert lint(derive(bundle, stage, batch=batch, precision=precision)) == []
    for steps in bundle.manifest.step_tables:
        assert lint(derive(bundle, "pipeline", batch=1, steps=steps, precision=precision)) == []
    assert lint(derive(bundle, "pipeline", batch=4, steps=1, precision=precision)) == []


def test_a_bundles_own_graphs_are_not(bundle):
    problems = {stage: lint(bundle.files[stage]) for stage in STAGES}
    refused = ("'batch'", "InstanceNormalization")  # a free batch, or what is looked at before it
    assert all(any(word in problem for problem in found for word in refused) for found in problems.values())


def test_int64_borders_are_refused(bundle):
    model = onnx.load_from_string(derive(bundle, "unet", batch=1))
    next(value for value in model.graph.input if value.name == "step").type.tensor_type.elem_type = TensorProto.INT64
    problems = lint(model.SerializeToString())
    assert "The input step is int64; an input may be float, int32." in problems


FLOAT, HALF, INT32, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT32, TensorProto.INT64


def info(name, kind=FLOAT, shape=(2, 3)):
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(nodes, constants=(), *, x=None, y=None, opset=17, ir_version=8):
    """A graph from x to y, both float32 [2, 3] unless said otherwise."""
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in dict(constants).items()]
    graph = helper.make_graph(nodes, "small", [x or info("x")], [y or info("y")], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def node(kind, read, made, **attributes):
    return helper.make_node(kind, read.split(), made.split(), name=f"the_{kind}", **attributes)


def problems_of(*args, **kwargs):
    return lint(model_of(*args, **kwargs).SerializeToString())


def test_a_clean_graph_has_no_problem():
    assert problems_of([node("Relu", "x", "y")]) == []


def test_a_file_that_is_no_model():
    assert lint(b"\x00nonsense")[0].startswith("The file is not an ONNX model")
    assert lint(b"") != []


@pytest.mark.parametrize("opset", [16, 18])
def test_the_opset_is_17(opset):
    expected = f"The graph needs opsets ai.onnx {opset}; it must be 17 of ai.onnx and nothing else."
    assert problems_of([node("Relu", "x", "y")], opset=opset) == [expected]


def test_no_other_domain():
    model = model_of([node("Gelu", "x", "y", domain="com.microsoft")])
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    found = lint(model.SerializeToString())
    assert "com.microsoft 1" in found[0]
    assert "The Gelu node the_Gelu is of the domain com.microsoft" in found[1]


def test_no_newer_file_format_and_no_functions():
    model = model_of([node("Relu", "x", "y")], ir_version=9)
    function = helper.make_function("here", "own", ["a"], ["b"], [node("Relu", "a", "b")], model.opset_import)
    model.functions.append(function)
    found = lint(model.SerializeToString())
    assert "IR version 9" in found[0]
    assert "own" in found[1]


UNKNOWN = [
    "STFT",
    "DFT",
    "ConvInteger",
    "MatMulInteger",
    "QLinearConv",
    "QLinearMatMul",
    "DynamicQuantizeLinear",
    "Det",
]


@pytest.mark.parametrize("kind", UNKNOWN)
def test_operators_the_parser_lacks(kind):
    expected = f"The {kind} node the_{kind} is not among the operators of TensorRT 8.6's parser."
    assert problems_of([node(kind, "x", "y")]) == [expected]


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_operators_that_are_not_for_us(kind):
    assert kind in PARSER_OPERATORS
    found = problems_of([node(kind, "x", "y")])
    assert found == [f"The {kind} node the_{kind}: {REFUSED[kind]}."]


def test_the_list_of_operators_is_one_of_onnx():
    """But for what came with TensorRT or an older opset: no name is misspelt."""
    standard = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    assert PARSER_OPERATORS - standard <= {"ImageScaler", "ParametricSoftplus", "ScaledTanh"}
    assert CONSTANT_INPUTS.keys() | REFUSED.keys() <= PARSER_OPERATORS


def test_no_external_data():
    model = model_of([node("Add", "x w", "y")], {"w": np.ones(3, np.float32)})
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "weights.bin")
    assert lint(model.SerializeToString()) == [
        "The weight w lies outside the file; save the model without external data."
    ]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_weights_are_finite(bad, dtype):
    found = problems_of([node("Add", "x w", "y")], {"w": np.array([1, bad, 3], dtype)})
    assert found == ["The weight w holds NaN or infinity."]


def test_weights_are_of_a_type_tensorrt_has():
    found = problems_of([node("Cast", "w", "c", to=FLOAT), node("Add", "x c", "y")], {"w": np.ones(3)})
    assert found == ["The weight w is double, which TensorRT 8.6 does not have."]


def test_weights_inside_a_constant_count():
    value = numpy_helper.from_array(np.array([np.nan], np.float32))
    assert problems_of([node("Constant", "", "c", value=value), node("Add", "x c", "y")]) == [
        "The weight of a Constant holds NaN or infinity."
    ]


def test_no_sparse_weights():
    model = model_of([node("Add", "x w", "y")])
    values, indices = (
        numpy_helper.from_array(np.array([1], dtype), name) for dtype, name in ((np.float32, "w"), (np.int64, ""))
    )
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3]))
    assert "sparse" in lint(model.SerializeToString())[0]


@pytest.mark.parametrize("shape", [("batch", 3), (None, 3), (0, 3)])
def test_every_dimension_is_a_number(shape):
    found = problems_of(
        [node("Relu", "x", "a"), node("Relu", "a", "y")], x=info("x", shape=shape), y=info("y", shape=shape)
    )
    assert {problem.split()[2] for problem in found} == {"x", "a", "y"}


def test_no_dimension_inside_depends_on_data():
    nodes = [
        node("Cast", "x", "n", to=INT64),
        node("Reshape", "x n", "r"),
        node("Flatten", "r", "f"),
        node("ReduceMax", "f", "y"),
    ]
    found = problems_of(nodes, x=info("x", shape=(2,)), y=info("y", shape=(1, 1)))
    assert any("The tensor r has the shape" in problem for problem in found)
    assert any("its input n is computed" in problem for problem in found)


def test_no_unknown_rank():
    nodes = [node("Squeeze", "x", "s"), node("ReduceMax", "s", "y", keepdims=0)]
    found = problems_of(nodes, x=info("x", shape=(None, 3)), y=info("y", shape=()))
    assert "The Squeeze node the_Squeeze: the shape of its output s is unknown before it runs." in found


def test_no_weight_of_size_zero_and_no_rank_above_eight():
    empty = problems_of([node("Concat", "x w", "y", axis=0)], {"w": np.zeros((0, 3), np.float32)})
    assert empty == ["The weight w has the shape [0, 3]; every dimension must be above 0."]
    nodes = [node("Reshape", "x nine", "r"), node("Reshape", "r two", "y")]
    deep = problems_of(nodes, {"nine": np.array([1] * 7 + [2, 3]), "two": np.array([2, 3])})
    assert deep == ["The tensor r has 9 dimensions; TensorRT knows up to 8."]


@pytest.mark.parametrize("kind", [INT64, HALF, TensorProto.DOUBLE, TensorProto.UINT8, TensorProto.BOOL])
def test_inputs_are_float32_or_int32(kind):
    name = TensorProto.DataType.Name(kind).lower()
    found = problems_of([node("Cast", "x", "y", to=FLOAT)], x=info("x", kind))
    assert found == [f"The input x is {name}; an input may be float, int32."]


@pytest.mark.parametrize("kind", [INT64, HALF, TensorProto.DOUBLE])
def test_outputs_are_float32_int32_or_uint8(kind):
    name = TensorProto.DataType.Name(kind).lower()
    found = problems_of([node("Cast", "x", "y", to=kind)], y=info("y", kind))
    assert found == [f"The output y is {name}; an output may be float, int32, uint8."]


def test_uint8_is_made_by_the_last_cast():
    image = info("y", TensorProto.UINT8)
    assert problems_of([node("Cast", "x", "y", to=TensorProto.UINT8)], y=image) == []
    nodes = [node("Cast", "x", "c", to=TensorProto.UINT8), node("Identity", "c", "y")]
    assert problems_of(nodes, y=image) == [
        "The Cast node the_Cast makes the uint8 tensor c, which is no output; uint8 is for outputs only.",
        "The Identity node the_Identity makes the uint8 output y; only a Cast may, as the last node.",
    ]


@pytest.mark.parametrize("kind", [INT64, TensorProto.DOUBLE])
def test_no_such_type_inside(kind):
    name = TensorProto.DataType.Name(kind).lower()
    found = problems_of([node("Cast", "x", "c", to=kind), node("Cast", "c", "y", to=FLOAT)])
    assert found == [f"The Cast node the_Cast makes c of type {name}, which TensorRT 8.6 does not have."]


def test_the_inputs_of_an_operator_have_one_type():
    found = problems_of([node("Cast", "x", "h", to=HALF), node("Add", "x h", "y")])
    assert len(found) == 1
    assert found[0].startswith("The graph is not valid ONNX")
    assert "Add" in found[0]


def test_a_graph_out_of_order_is_not_valid():
    assert "not valid ONNX" in problems_of([node("Relu", "a", "y"), node("Relu", "x", "a")])[0]


QUANTISED = [node("QuantizeLinear", "x scale zero", "q"), node("DequantizeLinear", "q one zero", "y")]
CONSTANTS = {  # nodes, what they read beside x, and which of it to compute
    "Clip": ([node("Clip", "x low high", "y")], {"low": np.float32(0)}, "high"),
    "Slice": ([node("Slice", "x from to", "y")], {"to": np.array([2])}, "from"),
    "QuantizeLinear": (QUANTISED, {"zero": np.int8(0), "one": np.float32(1)}, "scale"),
}


@pytest.mark.parametrize("kind", CONSTANTS)
def test_what_the_parser_wants_as_weights_is_constant(kind):
    """A computed one is found, a constant one is not, and one that is left out neither."""
    nodes, constants, name = CONSTANTS[kind]
    shapes = {"x": info("x", shape=(2, 2, 2)), "y": info("y", shape=(2, 2, 2))}
    value = {"gain": np.ones(2, np.float32), "from": np.array([0])}.get(name, np.float32(1))
    make = [node("Relu", "source", name)] if value.dtype == np.float32 else [node("Abs", "source", name)]
    found = problems_of([*make, *nodes], {**constants, "source": value}, **shapes)
    assert f"The {kind} node the_{kind}: its input {name} is computed; it must be a constant." in found
    assert problems_of(nodes, {**constants, name: value}, **shapes) == []
    assert problems_of([node("Clip", "x", "y")]) == []


@pytest.mark.parametrize(
    ("zero", "problem"),
    [
        (np.int8(0), None),
        (np.int8(3), "has the zero point 3 of type int8; it must be int8 and 0"),
        (np.zeros(3, np.int8), None),
        (np.array([0, 1, 0], np.int8), "has the zero point 1 of type int8; it must be int8 and 0"),
    ],
)
def test_quantisation_is_symmetric(zero, problem):
    scale = np.ones(zero.shape, np.float32)
    nodes = [node("QuantizeLinear", "x s z", "q", axis=1), node("DequantizeLinear", "q s z", "y", axis=1)]
    found = problems_of(nodes, {"s": scale, "z": zero})
    kinds = ("QuantizeLinear", "DequantizeLinear") if problem else ()
    assert found == [f"The {kind} node the_{kind} {problem}." for kind in kinds]


def test_a_layer_has_both_sides_in_int8_or_neither():
    constants = {"scale": np.float32(0.1), "zero": np.int8(0), "w": np.ones((3, 3), np.int8), "v": np.eye(3)}
    constants["v"] = constants["v"].astype(np.float32)
    pair = [node("QuantizeLinear", "x scale zero", "q"), node("DequantizeLinear", "q scale zero", "a")]
    weight = node("DequantizeLinear", "w scale zero", "b")
    assert problems_of([*pair, weight, node("MatMul", "a b", "y")], constants) == []
    assert problems_of([node("MatMul", "x v", "y")], constants) == []
    text = "The MatMul node the_MatMul reads {} in int8 and its other side not, so it computes in float."
    assert problems_of([*pair, node("MatMul", "a v", "y")], constants) == [text.format("a")]
    assert problems_of([weight, node("MatMul", "x b", "y")], constants) == [text.format("b")]


def test_quantisation_is_of_int8():
    nodes = [node("QuantizeLinear", "x s", "q"), node("DequantizeLinear", "q s", "y")]
    without = problems_of(nodes, {"s": np.float32(1)})
    assert (
        "The QuantizeLinear node the_QuantizeLinear has no constant zero point, so its integers are not int8."
        in without
    )
    nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")]
    assert problems_of(nodes, {"s": np.float32(1), "z": np.uint8(128)}) == [
        "The weight z is uint8, which TensorRT 8.6 does not have."
    ]


def test_details_of_importers():
    norm = problems_of([node("InstanceNormalization", "x g g", "y")], {"g": np.ones(3, np.float32)})
    assert norm == [
        "The InstanceNormalization node the_InstanceNormalization: 8.6 makes it a plugin that needs cuDNN; write it as "
        "LayerNormalization."
    ]
    layer = problems_of([node("LayerNormalization", "x g", "y mean")], {"g": np.ones(3, np.float32)})
    assert layer == [
        "The LayerNormalization node the_LayerNormalization has more than one output; TensorRT gives the first."
    ]


def test_a_node_without_a_name_is_known_by_what_it_makes():
    found = problems_of([helper.make_node("Det", ["x"], ["y"])])
    assert found == ["The Det node that makes y is not among the operators of TensorRT 8.6's parser."]
