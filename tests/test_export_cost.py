"""Costs of graphs: each kind of operator against numbers worked out by hand, and what must hold for any graph."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from export.cost import count
from runtime.errors import InvalidArgument

FLOAT, HALF, INT32 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT32


def graph(nodes, inputs, outputs, weights=(), opset=17):
    """Bytes of a model. `inputs`, `outputs`: name → shape or (shape, type); `weights`: name → array."""

    def values(items):
        for name, item in items.items():
            shape, kind = item if isinstance(item, tuple) else (item, FLOAT)
            yield helper.make_tensor_value_info(name, kind, shape)

    constants = [numpy_helper.from_array(array, name) for name, array in dict(weights).items()]
    made = helper.make_graph(nodes, "test", list(values(inputs)), list(values(outputs)), constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)]).SerializeToString()


def node(kind, inputs, outputs, **attributes):
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def test_convolution_and_its_activation():
    """2 × 16·8·8 outputs × 3·3·3 multiply-adds; the activation is one operation per element and vanishes when fused."""
    nodes = [node("Conv", "x w", "y", pads=[1, 1, 1, 1]), node("Relu", "y", "z")]
    cost = count(graph(nodes, {"x": [1, 3, 8, 8]}, {"z": [1, 16, 8, 8]}, {"w": zeros(16, 3, 3, 3)}))
    assert cost.matrix == {"float32": 2 * 16 * 64 * 27}
    assert cost.flops == 55_296
    assert cost.elementwise == 1024
    assert cost.weights == {"float32": 16 * 27 * 4}
    assert cost.weight_reads == cost.weight_bytes == 1728
    x, y = 3 * 64 * 4, 16 * 64 * 4
    assert cost.activation_bytes == (x + y) + (y + y)
    assert cost.fused_activation_bytes == x + y
    assert cost.peak_activation_bytes == y + y  # x is gone when the second tensor of this size is made
    assert (cost.nodes, cost.kernels) == (2, 1)


@pytest.mark.parametrize(
    ("made", "inputs", "output", "weight", "multiply_adds"),
    [
        (node("Conv", "x w", "y", group=4), [2, 8, 5, 5], [2, 12, 3, 3], (12, 2, 3, 3), 2 * 12 * 9 * 2 * 9),
        (node("Conv", "x w", "y", strides=[4]), [1, 1, 96], [1, 6, 21], (6, 1, 16), 6 * 21 * 16),
        (node("ConvTranspose", "x w", "y", strides=[2, 2]), [1, 4, 3, 3], [1, 5, 6, 6], (4, 5, 2, 2), 4 * 9 * 5 * 4),
        (node("Gemm", "x w", "y"), [3, 7], [3, 5], (7, 5), 3 * 7 * 5),
        (node("Gemm", "x w", "y", transA=1, transB=1), [7, 3], [3, 5], (5, 7), 3 * 7 * 5),
        (node("MatMul", "x w", "y"), [2, 4, 3, 7], [2, 4, 3, 5], (7, 5), 2 * 4 * 3 * 7 * 5),
        (node("MatMul", "x w", "y"), [3, 7], [3], (7,), 3 * 7),
    ],
)
def test_multiply_adds_by_hand(made, inputs, output, weight, multiply_adds):
    cost = count(graph([made], {"x": inputs}, {"y": output}, {"w": zeros(*weight)}))
    assert cost.flops == 2 * multiply_adds
    assert cost.elementwise == 0


def test_work_is_told_apart_by_type():
    nodes = [
        node("MatMul", "x w", "y"),
        node("Cast", "y", "h", to=HALF),
        node("MatMul", "h v", "z"),
    ]
    weights = {"w": zeros(4, 6), "v": zeros(6, 2, dtype=np.float16)}
    cost = count(graph(nodes, {"x": [3, 4]}, {"z": ([3, 2], HALF)}, weights))
    assert cost.matrix == {"float16": 2 * 3 * 6 * 2, "float32": 2 * 3 * 4 * 6}
    assert cost.weights == {"float16": 24, "float32": 96}


def test_what_constants_decide_is_free_and_weights_count_in_the_type_that_is_read():
    nodes = [
        node("Cast", "stored", "w", to=FLOAT),
        node("Shape", "x", "shape"),
        node("Mul", "w two", "doubled"),
        node("MatMul", "x doubled", "y"),
        node("Reshape", "y shape", "z"),
    ]
    weights = {"stored": zeros(4, 4, dtype=np.float16), "two": zeros()}
    cost = count(graph(nodes, {"x": [4, 4]}, {"z": [4, 4]}, weights))
    assert cost.weights == {"float32": 64}
    assert (cost.nodes, cost.kernels, cost.elementwise) == (2, 1, 0)


def test_unrolled_steps_hold_a_weight_once_and_read_it_each():
    nodes = [node("MatMul", "x w", "a"), node("MatMul", "a w", "b"), node("MatMul", "b w", "c")]
    cost = count(graph(nodes, {"x": [2, 8]}, {"c": [2, 8]}, {"w": zeros(8, 8)}))
    assert cost.weight_bytes == 256
    assert cost.weight_reads == 3 * 256


def test_a_table_is_held_whole_and_read_by_the_row():
    cost = count(
        graph([node("Gather", "table step", "row")], {"step": ([1], INT32)}, {"row": [1, 10]}, {"table": zeros(50, 10)})
    )
    assert cost.weight_bytes == 2000
    assert cost.weight_reads == 40
    assert cost.activation_bytes == 4 + 40
    assert cost.flops == cost.elementwise == 0


def test_views_move_nothing_and_keep_their_source_alive():
    nodes = [
        node("MatMul", "x w", "a"),
        node("Reshape", "a flat", "b"),
        node("Relu", "x", "c"),
        node("Unsqueeze", "b axes", "d"),
        node("Softmax", "d", "e"),
        node("Add", "c c", "f"),
    ]
    weights = {"w": zeros(4, 4), "flat": np.array([16]), "axes": np.array([0])}
    cost = count(graph(nodes, {"x": [4, 4]}, {"e": [1, 16], "f": [4, 4]}, weights))
    assert cost.activation_bytes == 64 * (2 + 2 + 2 + 2)
    assert cost.peak_activation_bytes == 64 * 3  # x, a, c; then a, c, e; then c, e, f
    assert cost.nodes == 6
    assert cost.kernels == 4 - 1  # the last Add joins its Relu; Softmax does not fuse


def test_a_residual_joins_the_later_branch():
    """add(second(y), y) runs in the second convolution's kernel: y is written once and read once."""
    nodes = [
        node("Conv", "x w", "y"),
        node("Conv", "y w", "z"),
        node("Add", "z y", "s"),
        node("Relu", "s", "out"),
    ]
    cost = count(graph(nodes, {"x": [1, 2, 4, 4]}, {"out": [1, 2, 4, 4]}, {"w": zeros(2, 2, 1, 1)}))
    assert cost.kernels == 2
    assert cost.fused_activation_bytes == 128 * 4
    assert cost.peak_activation_bytes == 128 * 3


def test_norms_and_softmax_count_what_goes_in():
    nodes = [
        node("LayerNormalization", "x scale", "a", axis=-1),
        node("ReduceMean", "a", "b", axes=[2], keepdims=1),
        node("InstanceNormalization", "a scale3 scale3", "c"),
        node("Add", "b c", "y"),
    ]
    weights = {"scale": zeros(5), "scale3": zeros(3)}
    cost = count(graph(nodes, {"x": [2, 3, 5]}, {"y": [2, 3, 5]}, weights))
    assert cost.elementwise == 4 * 30
    assert cost.kernels == 3


def test_outputs_that_nobody_reads_are_freed_and_graph_outputs_are_not():
    nodes = [node("Split", "x", "a b", axis=0), node("Relu", "a", "c"), node("Relu", "c", "d")]
    cost = count(graph(nodes, {"x": [4, 8]}, {"d": [2, 8], "c": [2, 8]}))
    assert cost.peak_activation_bytes == 256
    assert cost.fused_activation_bytes == 128 + 2 * 64  # x read; c and d written


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"not a graph", "no ONNX graph"),
        (b"", "no ONNX graph"),
        (graph([node("Relu", "x", "y")], {"x": ["batch", 4]}, {"y": ["batch", 4]}), "no shape in numbers"),
        (graph([node("Det", "x", "y")], {"x": [4, 4]}, {"y": []}), "operator Det"),
        (graph([node("MatMul", "x x", "y")], {"x": [4, 3]}, {"y": [4, 3]}), "no ONNX graph"),
    ],
)
def test_refused(data, text):
    with pytest.raises(InvalidArgument, match=text):
        count(data)


def test_operators_of_others_are_refused():
    made = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], domain="com.example")],
        "test",
        [helper.make_tensor_value_info("x", FLOAT, [4])],
        [helper.make_tensor_value_info("y", FLOAT, [4])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    with pytest.raises(InvalidArgument, match=r"operator Relu \(node 'y'\) is not known"):
        count(helper.make_model(made, opset_imports=opsets).SerializeToString())


@st.composite
def chains(draw):
    """Graphs of square matrices whose nodes read any earlier tensors: (bytes, number of multiplications)."""
    size = draw(st.integers(1, 6))
    names, nodes, products = ["x"], [], 0
    for index in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(("MatMul", "Relu", "Add", "Softmax", "Transpose", "Identity")))
        read = [draw(st.sampled_from(names)) for _ in range(2 if kind == "Add" else 1)]
        products += kind == "MatMul"
        nodes.append(helper.make_node(kind, [*read, "w"] if kind == "MatMul" else read, [f"t{index}"]))
        names.append(f"t{index}")
    data = graph(nodes, {"x": [size, size]}, {names[-1]: [size, size]}, {"w": zeros(size, size)})
    return data, size, products


@settings(max_examples=60, deadline=None)
@given(chains())
def test_what_holds_for_any_graph(made):
    data, size, products = made
    cost = count(data)
    one, nodes = size * size * 4, len(onnx.load_from_string(data).graph.node)
    assert cost.flops == products * 2 * size**3
    assert cost.weight_reads == products * one
    assert cost.weight_bytes == (one if products else 0)
    assert cost.nodes == nodes
    assert 0 <= cost.kernels <= nodes
    assert cost.fused_activation_bytes <= cost.activation_bytes <= 3 * one * nodes
    assert one <= cost.peak_activation_bytes <= one * (nodes + 1)
