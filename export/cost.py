"""What a graph costs, counted before anything runs: arithmetic, weights, traffic, memory, kernels. numpy and onnx only.

The graph must be static, as `export.derive` makes it. What depends on constants alone costs nothing: a builder folds
it, so a weight is counted in the type its consumer reads, not in that of the file. Every other operator is of one of
five kinds:

- matrix work (Conv, ConvTranspose, Gemm, MatMul): two operations per multiply-add, counted as `flops`
- pointwise: one operation per element; fused into what produced its latest input where fusion is counted
- reducing (norms, softmax, sums, pools): one operation per element that goes in; never fused here
- moving (Concat, Transpose, Resize, …): no arithmetic, bytes in and bytes out
- views (Reshape, Squeeze, …): nothing at all
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, NodeProto, TensorProto, helper

from runtime.errors import InvalidArgument

VIEWS = frozenset(("Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"))
MOVING = frozenset(
    (
        *("Concat", "DepthToSpace", "Expand", "Gather", "Pad", "Resize", "Slice", "SpaceToDepth", "Split", "Tile"),
        "Transpose",
    )
)
SELECTING = frozenset(("Gather", "Slice"))  # read what they write, not the whole of their input
REDUCING = frozenset(
    (
        *("AveragePool", "GlobalAveragePool", "GroupNormalization", "InstanceNormalization", "LayerNormalization"),
        *("LogSoftmax", "MaxPool", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Softmax"),
    )
)
POINTWISE = frozenset(
    (
        *("Abs", "Add", "And", "BatchNormalization", "Cast", "Ceil", "Clip", "Cos", "Div", "Elu", "Equal", "Erf"),
        *("Exp", "Floor", "Gelu", "Greater", "HardSigmoid", "HardSwish", "LeakyRelu", "Less", "Log", "Max", "Min"),
        *("Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin"),
        *("Softplus", "Sqrt", "Sub", "Sum", "Tanh", "Where"),
    )
)
SHAPES_AND_INDICES = frozenset({"int64", "bool"})  # constants of these types end up in parameters, not in weights


@dataclass(frozen=True)
class Cost:
    """What one run of a graph costs.

    `matrix`: operations of matrix work by the type it reads, two per multiply-add; `elementwise`: those of everything
    else. `weights`: bytes by type, each constant once however often it is used; `weight_reads`: bytes of constants that
    all nodes read together, so that unrolled steps count their weights once each.
    `activation_bytes`: bytes that nodes read and write when nothing is fused; `fused_activation_bytes`: the same with
    pointwise nodes fused, about the least that can be expected. `peak_activation_bytes`: most bytes alive at once, in
    the graph's order, every tensor stored. `nodes`: without the folded ones; `kernels`: without views and fused ones.
    """

    matrix: Mapping[str, int]
    elementwise: int
    weights: Mapping[str, int]
    weight_reads: int
    activation_bytes: int
    fused_activation_bytes: int
    peak_activation_bytes: int
    nodes: int
    kernels: int

    @property
    def flops(self) -> int:
        """Operations of matrix work of all types."""
        return sum(self.matrix.values())

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights of all types."""
        return sum(self.weights.values())


@dataclass(frozen=True)
class Tensor:
    """What is known of a value in the graph. `type` is numpy's name for it."""

    shape: tuple[int, ...]
    type: str
    itemsize: int

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * self.itemsize


def count(data: bytes) -> Cost:
    """The cost of an ONNX file's bytes.

    Raises InvalidArgument for what is no ONNX graph, has a dimension that is not a number, or an operator of unknown
    cost.
    """
    graph = Graph(_inferred(data))
    matrix: dict[str, int] = defaultdict(int)
    elementwise = 0
    for node in graph.nodes:
        if node.op_type in MATRIX:
            matrix[graph[node.input[0]].type] += 2 * MATRIX[node.op_type](node, graph)
        elif node.op_type in POINTWISE or node.op_type in REDUCING:
            elementwise += max(graph[name].elements for name in (node.input[0], *filter(None, node.output)))
    weights: dict[str, int] = defaultdict(int)
    for name in {name for node in graph.nodes for name in graph.weights_of(node)}:
        weights[graph[name].type] += graph[name].bytes
    kernels, fused = _fused_traffic(graph)
    return Cost(
        matrix=dict(sorted(matrix.items())),
        elementwise=elementwise,
        weights=dict(sorted(weights.items())),
        weight_reads=sum(graph.read_bytes(node, name) for node in graph.nodes for name in graph.weights_of(node)),
        activation_bytes=sum(_node_traffic(node, graph) for node in graph.computing()),
        fused_activation_bytes=fused,
        peak_activation_bytes=_peak(graph),
        nodes=len(graph.nodes),
        kernels=kernels,
    )


def matrix_by_operator(data: bytes) -> dict[str, int]:
    """Operations of matrix work by operator, such as Conv. Raises as `count`."""
    graph = Graph(_inferred(data))
    found: dict[str, int] = defaultdict(int)
    for node in graph.nodes:
        if node.op_type in MATRIX:
            found[node.op_type] += 2 * MATRIX[node.op_type](node, graph)
    return dict(found)


class Graph:
    """A static graph without what depends on constants alone, and with views seen through. Raises InvalidArgument."""

    def __init__(self, model: ModelProto) -> None:
        self._tensors = _tensors(model)
        self.constant = {tensor.name for tensor in model.graph.initializer}
        self.inputs = [value.name for value in model.graph.input if value.name not in self.constant]
        self.nodes: list[NodeProto] = []
        self._source: dict[str, str] = {}
        for node in model.graph.node:
            if self._folds(node):
                self.constant.update(node.output)
                continue
            _refuse_unknown(node)
            self.nodes.append(node)
            if node.op_type in VIEWS:
                self._source[node.output[0]] = self.stored(node.input[0])
        self.outputs = {self.stored(value.name) for value in model.graph.output}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise InvalidArgument(
                f"The graph's tensor {name!r} has no shape in numbers; derive the graph for a batch size first."
            )
        return self._tensors[name]

    def stored(self, name: str) -> str:
        """The tensor whose bytes `name` shows: itself, or what it is a view of."""
        return self._source.get(name, name)

    def computing(self) -> Iterator[NodeProto]:
        """The nodes that do something."""
        return (node for node in self.nodes if node.op_type not in VIEWS)

    def weights_of(self, node: NodeProto) -> list[str]:
        """The constants among a node's inputs that are weights, each once."""
        constants = dict.fromkeys(name for name in node.input if name in self.constant)
        return [name for name in constants if self[name].type not in SHAPES_AND_INDICES]

    def activations_of(self, node: NodeProto) -> list[str]:
        """The stored tensors a node reads that are no constants, each once."""
        return list(dict.fromkeys(self.stored(name) for name in node.input if name and name not in self.constant))

    def read_bytes(self, node: NodeProto, name: str) -> int:
        """How much of an input a node reads: all of it, or for what selects as much as it gives."""
        size = self[name].bytes
        return min(size, self[node.output[0]].bytes) if node.op_type in SELECTING else size

    def _folds(self, node: NodeProto) -> bool:
        if node.op_type in ("Constant", "Shape"):
            return True
        return bool(node.input) and all(name in self.constant for name in node.input if name)


def _conv(node: NodeProto, graph: Graph) -> int:
    return graph[node.output[0]].elements * prod(graph[node.input[1]].shape[1:])


def _conv_transpose(node: NodeProto, graph: Graph) -> int:
    return graph[node.input[0]].elements * prod(graph[node.input[1]].shape[1:])


def _gemm(node: NodeProto, graph: Graph) -> int:
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return graph[node.output[0]].elements * graph[node.input[0]].shape[0 if transposed else 1]


def _matmul(node: NodeProto, graph: Graph) -> int:
    return graph[node.output[0]].elements * graph[node.input[0]].shape[-1]


MATRIX: dict[str, Callable[[NodeProto, Graph], int]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
"""Multiply-adds of each operator that multiplies matrices."""
KNOWN = VIEWS | MOVING | REDUCING | POINTWISE | MATRIX.keys()


def _node_traffic(node: NodeProto, graph: Graph) -> int:
    read = sum(graph.read_bytes(node, name) for name in graph.activations_of(node))
    return read + sum(graph[name].bytes for name in node.output if name)


def _fused_traffic(graph: Graph) -> tuple[int, int]:
    """(groups of nodes that run as one, bytes between them). A pointwise node joins the latest group it reads from.

    The latest, so that a group only ever reads from earlier ones and from itself.
    """
    producer: dict[str, int] = {}
    reads: dict[tuple[str, int], int] = {}
    groups = 0
    for node in graph.computing():
        names = graph.activations_of(node)
        earlier = [producer[name] for name in names if name in producer]
        if node.op_type in POINTWISE and earlier:
            group = max(earlier)
        else:
            group, groups = groups, groups + 1
        for name in names:
            if producer.get(name) != group:
                reads[name, group] = max(reads.get((name, group), 0), graph.read_bytes(node, name))
        producer.update((name, group) for name in node.output if name)
    written = graph.outputs.union(name for name, _ in reads).intersection(producer)
    return groups, sum(reads.values()) + sum(graph[name].bytes for name in written)


def _peak(graph: Graph) -> int:
    """Most bytes alive at once: a tensor lives from its node to the last that reads it, outputs to the end."""
    nodes = list(graph.computing())
    last = {name: index for index, node in enumerate(nodes) for name in graph.activations_of(node)}
    alive = sum(graph[name].bytes for name in graph.inputs)
    peak = alive
    for index, node in enumerate(nodes):
        made = [name for name in node.output if name]
        alive += sum(graph[name].bytes for name in made)
        peak = max(peak, alive)
        ended = {name for name in graph.activations_of(node) if last[name] == index}
        ended.update(name for name in made if name not in last)
        alive -= sum(graph[name].bytes for name in ended - graph.outputs)
    return peak


def _inferred(data: bytes) -> ModelProto:
    try:
        model = onnx.load_from_string(data)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except (DecodeError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise InvalidArgument(f"These bytes are no ONNX graph whose shapes can be inferred: {reason}") from None
    if not model.graph.output:
        raise InvalidArgument("These bytes are no ONNX graph: it has no output.")
    return model


def _tensors(model: ModelProto) -> dict[str, Tensor]:
    found = {tensor.name: _tensor(tuple(tensor.dims), tensor.data_type) for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            found[value.name] = _tensor(tuple(dim.dim_value for dim in kind.shape.dim), kind.elem_type)
    return found


def _tensor(shape: tuple[int, ...], element: int) -> Tensor:
    name = TensorProto.DataType.Name(element).lower()
    try:
        kind = helper.tensor_dtype_to_np_dtype(element)
    except KeyError:
        raise InvalidArgument(f"The graph has a tensor of type {name}, which has no size here.") from None
    return Tensor(shape, kind.name, kind.itemsize)


def _refuse_unknown(node: NodeProto) -> None:
    if node.op_type not in KNOWN or node.domain not in ("", "ai.onnx"):
        raise InvalidArgument(
            f"The cost of the operator {node.op_type} (node {node.name or node.output[0]!r}) is not known; "
            "say in export/cost.py of which kind it is."
        )
