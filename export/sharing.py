"""Guidance without double work: what both halves of the doubled batch have in common is computed once.

Classifier-free guidance feeds the UNet the same latent twice, Concat(x, x); the halves part at the first
cross-attention. An operator that treats batch entries independently commutes with that Concat, so it is moved down
until a node also takes something that differs between the halves. The result is the same numbers for less work.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import NodeProto, helper, numpy_helper

from export.simplify import Array, constants, remove_unused, static_shapes

Shapes = dict[str, tuple[int, ...]]

ELEMENTWISE = {"Sigmoid", "Relu", "Erf", "Tanh", "Sqrt", "Exp", "Neg", "Cast", "LeakyRelu", "HardSwish", "Softplus"}
ELEMENTWISE |= {"Add", "Mul", "Sub", "Div", "Pow", "Clip"}
# Independent per batch entry as long as only the first input is data.
PER_ENTRY = {"Conv", "ConvTranspose", "InstanceNormalization", "BatchNormalization", "LayerNormalization"}
PER_ENTRY |= {"Resize", "AveragePool", "MaxPool", "GlobalAveragePool", "DepthToSpace", "SpaceToDepth"}


def share_guidance(model: onnx.ModelProto) -> int:
    """Move every Concat(x, x) along the batch down as far as it goes, in place, in a graph of static shapes.

    Returns how many nodes now see half the batch.
    """
    shapes = static_shapes(onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True))
    weights = constants(model)
    halves: dict[str, str] = {}  # doubled tensor -> the tensor it is twice of
    restored: set[str] = set()
    nodes: list[NodeProto] = []
    moved = 0
    for node in model.graph.node:
        if _doubles(node):
            halves[node.output[0]] = halves.get(node.input[0], node.input[0])
        elif any(name in halves for name in node.input) and _commutes(node, halves, weights.keys(), shapes):
            nodes.append(_halved(model, node, halves, weights))
            moved += 1
        else:
            nodes.extend(_restore(node.input, halves, restored))
            nodes.append(node)
    nodes.extend(_restore([o.name for o in model.graph.output], halves, restored))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.value_info[:]
    remove_unused(model)
    return moved


def _doubles(node: NodeProto) -> bool:
    return node.op_type == "Concat" and _axis(node) == 0 and len(node.input) == 2 and len(set(node.input)) == 1


def _halved(model: onnx.ModelProto, node: NodeProto, halves: dict[str, str], weights: dict[str, Array]) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    for index, name in enumerate(copy.input):
        copy.input[index] = halves.get(name, name)
    if node.op_type == "Reshape":
        target = weights[node.input[1]].copy()
        target[0] //= 2 if target[0] > 0 else 1
        copy.input[1] = f"{node.output[0]}_once_shape"
        model.graph.initializer.append(numpy_helper.from_array(target, copy.input[1]))
    for index, name in enumerate(copy.output):
        halves[name] = copy.output[index] = f"{name}_once"
    return copy


def _restore(names: Iterable[str], halves: dict[str, str], restored: set[str]) -> list[NodeProto]:
    """The Concats that give the doubled tensors back where a node needs them."""
    made = []
    for name in dict.fromkeys(names):
        if name in halves and name not in restored:
            restored.add(name)
            made.append(helper.make_node("Concat", [halves[name]] * 2, [name], name=f"{name}_twice", axis=0))
    return made


def _commutes(node: NodeProto, halves: dict[str, str], weights: Iterable[str], shapes: Shapes) -> bool:
    """True if node(Concat(x, x)) = Concat(node(x), node(x)), inputs that are not doubled being free of the batch."""
    inputs = [name for name in node.input if name]
    if any(name not in shapes for name in (*inputs, *node.output)):
        return False
    rank = max(len(shapes[name]) for name in inputs)
    first, rest = inputs[0], inputs[1:]
    broadcast = all(_twice_or_broadcast(name, halves, shapes, rank) for name in inputs)
    if node.op_type in ELEMENTWISE:
        return broadcast
    if node.op_type == "MatMul":  # of two matrices only the rows of the left one may be batch entries
        return broadcast and (rank > 2 or first in halves)
    return first in halves and _keeps_entries(node, rest, halves, weights, shapes)


def _keeps_entries(
    node: NodeProto, rest: list[str], halves: dict[str, str], weights: Iterable[str], shapes: Shapes
) -> bool:
    """True for operators that, fed a doubled first input, work on each batch entry by itself."""
    kind = node.op_type
    if kind in PER_ENTRY:  # a Resize to explicit sizes would name the batch
        return all(name in weights for name in rest) and not (kind == "Resize" and len(node.input) > 3)
    if kind in ("Concat", "Split", "Softmax", "LogSoftmax"):
        others = weights if kind == "Split" else halves
        return all(name in others for name in rest) and _axis(node) % len(shapes[node.input[0]]) > 0
    if kind == "Transpose":
        return bool(next(a.ints[0] for a in node.attribute if a.name == "perm") == 0)
    # Row-major: the halves of a Reshape stay apart if its leading axis is even.
    return kind == "Reshape" and rest[0] in weights and shapes[node.output[0]][0] % 2 == 0


def _twice_or_broadcast(name: str, halves: dict[str, str], shapes: Shapes, rank: int) -> bool:
    """Doubled along an axis that is the result's first, or the same for every batch entry."""
    shape = shapes[name]
    if name in halves:
        return len(shape) == rank
    return len(shape) < rank or shape[0] == 1


def _axis(node: NodeProto) -> int:
    default = -1 if "Softmax" in node.op_type else 0
    return next((int(a.i) for a in node.attribute if a.name == "axis"), default)
