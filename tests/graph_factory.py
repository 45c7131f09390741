"""Small float32 graphs with fixed random weights, and ways to run and read them, for the tests of calibration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from calibration.activations import Activations, observable
from calibration.layers import Layer

SIZE = 8  # of pictures


def graph(
    nodes: Sequence[NodeProto],
    constants: Mapping[str, Any],
    *,
    source: tuple[Any, ...] = ("batch", 16, SIZE, SIZE),
    outputs: Sequence[str] = ("y",),
) -> ModelProto:
    """A model that reads float32 `x` of shape `source`."""
    made = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, source)],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"{name}_{i}" for i in range(len(source))])
            for name in outputs
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def node(kind: str, inputs: str, output: str, name: str | None = None, **attributes: Any) -> NodeProto:
    """A node; `inputs` apart by blanks; called after its output unless `name` is given."""
    return helper.make_node(kind, inputs.split(), [output], name=output if name is None else name, **attributes)


def conv(inputs: str, output: str, name: str | None = None) -> NodeProto:
    """A 3×3 convolution that keeps the size."""
    return node("Conv", inputs, output, name, kernel_shape=[3, 3], pads=[1, 1, 1, 1])


def normal(*shape: int, seed: int = 0, size: float = 0.1) -> np.ndarray:
    """float32 random numbers."""
    return (size * np.random.default_rng([seed, *shape]).standard_normal(shape)).astype(np.float32)


def residual_net() -> ModelProto:
    """conv, relu, conv, a sum with what went in, relu, and a last convolution that reads the sum."""
    nodes = [
        conv("x w_in b_in", "first"),
        node("Relu", "first", "h"),
        conv("h w_a b_a", "second"),
        node("Add", "second h", "sum"),
        node("Relu", "sum", "after"),
        conv("after w_out b_out", "y"),
    ]
    shapes = {"in": (32, 16, 3, 3), "a": (32, 32, 3, 3), "out": (16, 32, 3, 3)}
    constants = {f"w_{name}": normal(*shape, seed=1) for name, shape in shapes.items()}
    constants |= {f"b_{name}": normal(shape[0], seed=2) for name, shape in shapes.items()}
    return graph(nodes, constants)


def norm_net(**shared: str) -> ModelProto:
    """A layer norm whose output two linears read, and a second norm with a linear of its own.

    `shared`: constants, by name, that are another one instead ("shift_2": "shift_1").
    """
    nodes = [
        node("LayerNormalization", "x scale_1 shift_1", "n1", axis=-1),
        node("MatMul", "n1 w_q", "q"),
        node("MatMul", "n1 w_k", "k"),
        node("Add", "q k", "sum"),
        node("LayerNormalization", "sum scale_2 shift_2", "n2", axis=-1),
        node("MatMul", "n2 w_o", "y"),
    ]
    constants = {f"w_{name}": normal(64, 64, seed=seed) for seed, name in enumerate("qko")}
    for index in (1, 2):
        constants[f"scale_{index}"] = 1 + normal(64, seed=10 + index)
        constants[f"shift_{index}"] = normal(64, seed=20 + index)
    constants["scale_1"][5] = 40.0  # an outlier channel
    for one in nodes:
        one.input[:] = [shared.get(name, name) for name in one.input]
    return graph(nodes, {k: v for k, v in constants.items() if k not in shared}, source=("batch", 6, 64))


def pictures(count: int, *, seed: int = 0, shape: Sequence[int] = (16, SIZE, SIZE)) -> np.ndarray:
    """float32 inputs for `x`."""
    return normal(count, *shape, seed=seed, size=1.0)


def run(model: ModelProto | bytes, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The outputs by name; of `values` the graph takes what it has inputs for."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    data = model if isinstance(model, bytes) else model.SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    feeds = {value.name: values[value.name] for value in session.get_inputs()}
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def seen_in(model: ModelProto, x: np.ndarray) -> dict[str, tuple[float, float]]:
    """Lowest and highest value of each float activation, for `x`."""
    known = {tensor.name for tensor in model.graph.initializer}
    names = sorted({name for one in model.graph.node for name in (*one.input, *one.output)} - known - {""})
    seen = Activations({"graph": names})
    seen.see("graph", 0, {"x": x, **run(observable(model, names), {"x": x})})
    return {name: one.extremes for name, one in seen.tensors["graph"].items()}


def values_of(model: ModelProto) -> dict[str, np.ndarray]:
    """The initialisers by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def operators(model: ModelProto) -> Counter[str]:
    """How often each operator is there."""
    return Counter(one.op_type for one in model.graph.node)


def in_eight_bits(model: ModelProto, layers: Sequence[Layer]) -> set[str]:
    """The names of the layers whose activation and weight both come out of a DequantizeLinear."""
    scaled = {one.output[0] for one in model.graph.node if one.op_type == "DequantizeLinear"}
    names = {layer.name for layer in layers}
    return {one.name for one in model.graph.node if one.name in names and scaled.issuperset(one.input[:2])}


def nearness(found: np.ndarray, wanted: np.ndarray) -> float:
    """Signal over error in dB."""
    wanted = wanted.astype(np.float64)
    error = float(np.mean((found.astype(np.float64) - wanted) ** 2))
    return float(10 * np.log10(np.mean(wanted**2) / error)) if error else float("inf")


def load(data: bytes) -> ModelProto:
    """The model in a file."""
    return onnx.load_from_string(data)
