"""Less work for the same numbers in graphs of static shapes: norms fused, neutral arithmetic left out, twins merged.

All functions change the model in place.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Set
from typing import cast

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from export.simplify import Array, constants, remove_unused, static_shapes

Shapes = dict[str, tuple[int, ...]]
Reals = NDArray[np.float64]

BROADCASTING = {"Add", "Sub", "Mul", "Div"}
DEFAULT_EPSILON = 1e-5  # of BatchNormalization in ONNX
MAX_EXPANDED = 1 << 20  # elements; a larger constant is better made on the device


def widen_weights(model: ModelProto) -> None:
    """Weights stored small (`simplify.store_float16`, `store_int8`) become plain float32 weights under their names."""
    known = {name: value for name, value in constants(model).items() if value.dtype in (np.float16, np.int8)}
    scales = constants(model)
    units: dict[str, Array] = {}

    def rule(node: NodeProto) -> Array | None:
        if node.op_type == "Cast" and node.input[0] in known and node.attribute[0].i == TensorProto.FLOAT:
            wide = known[node.input[0]].astype(np.float32)
            if known[node.input[0]].dtype == np.int8:
                units[node.output[0]] = wide
            return wide
        if node.op_type == "Mul" and node.input[0] in units and node.input[1] in scales:
            return cast("Array", units[node.input[0]] * scales[node.input[1]])
        return None

    _rewrite(model, rule)


def fuse_batch_norms(model: ModelProto) -> None:
    """Move a batch norm into the convolution before it; where there is none, make it a Mul and an Add.

    Elementwise operators leave no doubt about types.
    """
    fuse_into_convolutions(model)
    known, shapes = constants(model), _shapes(model)
    kept: list[NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            place = node.input[0], node.output[0]
            kept.extend(_as_scaling(model, *place, _scale_and_shift(node, known), len(shapes[node.input[0]])))
        else:
            kept.append(node)
    _replace_nodes(model, kept)


def fuse_into_convolutions(model: ModelProto) -> None:
    """Move each batch norm that follows a convolution into it. Needs no shapes, so the batch may be free."""
    known, convolutions = constants(model), _convolutions(model)
    kept: list[NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "BatchNormalization" and node.input[0] in convolutions:
            change = node.output[0], *_scale_and_shift(node, known)
            _into_convolution(model, convolutions[node.input[0]], known, change)
        else:
            kept.append(node)
    _replace_nodes(model, kept)


def spell_instance_norms(model: ModelProto) -> None:
    """InstanceNormalization as LayerNormalization over all axes but batch and channel, then its scale and shift.

    The parser of 8.6 makes the former a plugin that runs on cuDNN, and 8.6.0's Python has no switch against it; the
    latter is TensorRT's own in every release, and says itself that its statistics are float32.
    """
    known, shapes = constants(model), _shapes(model)
    kept: list[NodeProto] = []
    for node in model.graph.node:
        if node.op_type != "InstanceNormalization":
            kept.append(node)
            continue
        name, shape = node.output[0], shapes[node.input[0]]
        scale, shift = (known[value].astype(np.float64) for value in node.input[1:3])
        plain = bool(np.all(scale == 1) and not shift.any())
        normal = name if plain else f"{name}_normal"
        sides = [
            _constant(model, f"{name}_{side}", make(shape[2:])) for side, make in (("one", np.ones), ("zero", np.zeros))
        ]
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), DEFAULT_EPSILON)
        kept.append(
            helper.make_node(
                "LayerNormalization", [node.input[0], *sides], [normal], name=node.name or name, axis=2, epsilon=epsilon
            )
        )
        if not plain:
            kept.extend(_as_scaling(model, normal, name, (scale, shift), len(shape)))
    _replace_nodes(model, kept)


def fuse_biases(model: ModelProto) -> None:
    """Move a constant per channel that is added to a convolution's output, such as a step's, into its bias."""
    scaled = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    known, shapes, convolutions = constants(model), _shapes(model), _convolutions(model, scaled)
    kept = []
    for node in model.graph.node:
        sides = _both_ways(node) if node.op_type == "Add" else ()
        added = {value: known[other] for value, other in sides if value in convolutions and other in known}
        for value, constant in added.items():
            if constant.shape == (1, shapes[value][1], *[1] * (len(shapes[value]) - 2)):
                shift = constant.astype(np.float64).reshape(-1)
                _into_convolution(model, convolutions[value], known, (node.output[0], np.ones_like(shift), shift))
                break
        else:
            kept.append(node)
    _replace_nodes(model, kept)


def drop_pairs_of_shifts(model: ModelProto) -> None:
    """A number per channel that is added, such as a step's, needs no Q/DQ pair: no sum of unequal shapes is fused, and
    what is constant becomes a bias.
    """
    shapes = _shapes(model)
    makers: dict[str, NodeProto] = {}
    readers: dict[str, set[str]] = defaultdict(set)
    for node in model.graph.node:
        makers.update(dict.fromkeys(node.output, node))
        for name in node.input:
            readers[name].add(node.op_type)

    def rule(node: NodeProto) -> str | Array | None:
        pair = makers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if pair is None or pair.op_type != "QuantizeLinear" or readers[node.output[0]] != {"Add"}:
            return None
        shape = shapes[pair.input[0]]
        return str(pair.input[0]) if len(shape) > 2 and set(shape[2:]) == {1} else None

    _rewrite(model, rule)


def _convolutions(model: ModelProto, also: Set[str] = frozenset()) -> dict[str, NodeProto]:
    """The convolutions with constant weights whose output goes to one place only, by that output; `also`: tensors that
    count as constant.
    """
    known = constants(model).keys() | also
    uses = Counter([*(name for node in model.graph.node for name in node.input), *(o.name for o in model.graph.output)])
    found = [node for node in model.graph.node if node.op_type == "Conv" and known >= set(node.input[1:])]
    return {node.output[0]: node for node in found if uses[node.output[0]] == 1}


def _scale_and_shift(node: NodeProto, known: dict[str, Array]) -> tuple[Reals, Reals]:
    """The batch norm as x·scale + shift, float64 [C] each."""
    weight, bias, mean, variance = (known[name].astype(np.float64) for name in node.input[1:5])
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), DEFAULT_EPSILON)
    scale = weight / np.sqrt(variance + epsilon)
    return scale, bias - mean * scale


def _into_convolution(
    model: ModelProto, conv: NodeProto, known: dict[str, Array], change: tuple[str, Reals, Reals]
) -> None:
    """Make conv·scale + shift of a convolution; `change`: the name of the result, scale and shift float64 [C]."""
    name, scale, shift = change
    bias = known[conv.input[2]].astype(np.float64) if len(conv.input) > 2 else np.zeros(len(shift))
    if np.any(scale != 1):
        weight = known[conv.input[1]].astype(np.float64)
        conv.input[1] = _constant(model, f"{name}_weight", weight * _column(scale, weight.ndim))
    conv.input[2:] = [_constant(model, f"{name}_bias", bias * scale + shift)]
    conv.output[0] = name


def _as_scaling(model: ModelProto, data: str, name: str, change: tuple[Reals, Reals], rank: int) -> list[NodeProto]:
    """`name` = `data` of that rank, times and plus the numbers of `change`, float64 [C] each, along axis 1."""
    scale, shift = change
    factor = _constant(model, f"{name}_scale", _column(scale, rank - 1))
    summand = _constant(model, f"{name}_shift", _column(shift, rank - 1))
    return [
        helper.make_node("Mul", [data, factor], [f"{name}_scaled"], name=f"{name}_scaled"),
        helper.make_node("Add", [f"{name}_scaled", summand], [name], name=f"{name}_shifted"),
    ]


def drop_expands(model: ModelProto) -> None:
    """Expand of a constant is a constant, and an operator that broadcasts needs no Expand before it."""
    known, shapes = constants(model), _shapes(model)
    expanded = {node.output[0] for node in model.graph.node if node.op_type == "Expand"}

    def needless(name: str) -> bool:
        readers = [node for node in model.graph.node if name in node.input]
        partners = [[other for other in node.input if other not in expanded] for node in readers]
        return all(
            reader.op_type in BROADCASTING and any(shapes.get(other) == shapes[reader.output[0]] for other in others)
            for reader, others in zip(readers, partners, strict=True)
        )

    def rule(node: NodeProto) -> str | Array | None:
        if node.op_type != "Expand":
            return None
        value, name = str(node.input[0]), node.output[0]
        if value in known and math.prod(shapes[name]) <= MAX_EXPANDED:
            return np.ascontiguousarray(np.broadcast_to(known[value], shapes[name]))
        return value if shapes.get(value) == shapes[name] or needless(name) else None

    _rewrite(model, rule)


def drop_neutral(model: ModelProto) -> None:
    """x·1 and x+0 are x, and x·0 is 0: what rows of step tables leave behind once they are constants.

    The prior, for one, enters at the first step only.
    """
    known, shapes = constants(model), _shapes(model)

    def rule(node: NodeProto) -> str | Array | None:
        if node.op_type not in ("Add", "Mul"):
            return None
        name, neutral = node.output[0], 0 if node.op_type == "Add" else 1
        for value, other in _both_ways(node):
            if other not in known or known[other].dtype.kind != "f":
                continue
            if np.all(known[other] == neutral) and shapes[value] == shapes[name]:
                return str(value)
            if node.op_type == "Mul" and not known[other].any():
                known[name] = np.zeros(shapes[name], known[other].dtype)
                return known[name]
        return None

    _rewrite(model, rule)


def merge_twins(model: ModelProto) -> None:
    """One initialiser per value and one node per computation, wherever the graph says the same thing twice.

    What all steps of a pipeline make of the condition is then made once.
    """
    outputs = {o.name for o in model.graph.output}
    renamed = _merge_initialisers(model)
    first: dict[tuple[object, ...], NodeProto] = {}
    kept = []
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        twin = first.setdefault(_computation(node), node)
        if twin is not node and outputs.isdisjoint(node.output):
            renamed.update(zip(node.output, twin.output, strict=True))
        else:
            kept.append(node)
    _replace_nodes(model, kept)


def _merge_initialisers(model: ModelProto) -> dict[str, str]:
    """For every initialiser the first one of the same type, shape and values."""
    first: dict[tuple[object, ...], str] = {}
    renamed = {}
    for tensor in model.graph.initializer:
        digest = hashlib.sha256(numpy_helper.to_array(tensor).tobytes()).digest()
        renamed[tensor.name] = first.setdefault((tensor.data_type, *tensor.dims, digest), tensor.name)
    return renamed


def _computation(node: NodeProto) -> tuple[object, ...]:
    attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
    return node.op_type, tuple(node.input), tuple(attributes), len(node.output)


def _rewrite(model: ModelProto, rule: Callable[[NodeProto], str | Array | None]) -> None:
    """Drop each node whose output, says `rule`, equals another tensor (its name) or a constant (its value)."""
    outputs = {o.name for o in model.graph.output}
    renamed: dict[str, str] = {}
    kept = []
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        found = rule(node) if outputs.isdisjoint(node.output) else None
        if isinstance(found, str):
            renamed[node.output[0]] = found
        elif found is not None:
            model.graph.initializer.append(numpy_helper.from_array(found, node.output[0]))
        else:
            kept.append(node)
    _replace_nodes(model, kept)


def _replace_nodes(model: ModelProto, nodes: list[NodeProto]) -> None:
    """Put other nodes into the graph and forget what was only there for those that went."""
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    remove_unused(model)


def _shapes(model: ModelProto) -> Shapes:
    return static_shapes(shape_inference.infer_shapes(model, strict_mode=True))


def _constant(model: ModelProto, name: str, value: Reals) -> str:
    model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    return name


def _both_ways(node: NodeProto) -> tuple[tuple[str, str], tuple[str, str]]:
    """The two inputs of a commutative operator in either order."""
    return (node.input[0], node.input[1]), (node.input[1], node.input[0])


def _column(values: Reals, rank: int) -> Reals:
    return values.reshape(-1, *[1] * (rank - 1))
