"""The float graphs as calibration sees them: plain weights, batch norms folded in, every node named; and their layers.

A layer is a Conv, Gemm or MatMul with constant weights: what eight bits can make faster and smaller. Everything else
(norms, softmax, attention's products of two activations, step tables) stays as it is.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from export import fuse, simplify
from runtime.bundle import STAGES, Bundle
from runtime.errors import BundleInvalid, InvalidArgument

OPERATORS = ("Conv", "Gemm", "MatMul")
SMALL = 2048  # elements: a smaller weight saves neither time nor room

KEPT = (
    ("conv_in", "the first convolution of the UNet: it reads noise in float32 and is cheap"),
    ("conv_out", "the last convolution of the UNet: its error is the step's error"),
    ("shortcut", "a shortcut: its error meets no later layer of its block"),
    ("time_emb", "the time embedding: a few numbers that steer every layer"),
)
"""What stays in float32 unless asked for: a part of the layer's name, and why."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer. `axis`: of the output channels in `weight`; `keep`: why it stays in float32, empty if it need not.

    `group`: the block it belongs to, by its name.
    """

    stage: str
    name: str
    operator: str
    source: str  # the activation it reads
    result: str
    weight: str
    shape: tuple[int, ...]
    axis: int
    group: str
    keep: str = ""

    def __str__(self) -> str:
        return f"{self.stage}: {self.name}"


def float_graphs(bundle: Bundle, also: Sequence[str] = ()) -> dict[str, ModelProto]:
    """The bundle's three graphs by stage, ready to be observed and quantised. Raises BundleInvalid."""
    return {stage: float_graph(bundle.files[stage], stage, also) for stage in STAGES}


def float_graph(data: bytes, stage: str, also: Sequence[str] = ()) -> ModelProto:
    """One graph: weights widened, batch norms folded into convolutions, nodes named, halves of skips apart.

    `also`: see `layers_of`. Raises BundleInvalid.
    """
    try:
        model = onnx.load_from_string(data)
    except DecodeError:
        raise BundleInvalid(f"The {stage} graph cannot be read. Export the bundle again.") from None
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise BundleInvalid(f"The {stage} graph is quantised already. Calibrate the bundle it was made from.")
    fuse.widen_weights(model)
    fuse.fuse_into_convolutions(model)
    _name_nodes(model)
    split_concats(model, [layer for layer in layers_of(model, stage, also) if not layer.keep])
    return model


def layers_of(model: ModelProto, stage: str, also: Sequence[str] = ()) -> list[Layer]:
    """The layers of a graph in its order. `also`: parts of names that need not stay in float32 though KEPT says so."""
    weights = {t.name: tuple(t.dims) for t in model.graph.initializer}
    before_network = stage == "encoder"  # until its first convolution: the spectra
    found = []
    for node in model.graph.node:
        before_network &= node.op_type != "Conv"
        shape = weights.get(node.input[1], ()) if node.op_type in OPERATORS else ()
        if len(shape) > 1 and node.input[0] not in weights and (node.op_type == "Conv" or len(shape) == 2):
            axis = channel_axis(node, len(shape))
            names = (node.name, node.input[0], node.output[0], node.input[1])
            keep = "the front end: spectra span more decades than eight bits hold" if before_network else ""
            keep = keep or _kept(node, shape, also)
            found.append(Layer(stage, names[0], node.op_type, *names[1:], shape, axis, _group(node.name, stage), keep))
    return found


def split_concats(model: ModelProto, layers: Sequence[Layer]) -> None:
    """A convolution of a concatenation becomes the sum of two, in place: each half gets a range and a scale of its own.

    The halves of a skip connection differ in size (Q-Diffusion, Li et al. 2023, arXiv:2302.04304, section 4.2).
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    names = {layer.name for layer in layers if layer.operator == "Conv"}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        concat = makers.get(node.input[0]) if node.name in names else None
        if concat is None or concat.op_type != "Concat" or concat.attribute[0].i != 1 or len(concat.input) != 2:
            nodes.append(node)
        else:
            nodes.extend(_halves(model, node, list(concat.input), makers))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    simplify.remove_unused(model)


def check_also(bundle: Bundle, also: Sequence[str]) -> None:
    """Raise InvalidArgument for a part of a name that no layer of the bundle has, BundleInvalid for a bad graph."""
    names = [layer.name for stage, model in float_graphs(bundle).items() for layer in layers_of(model, stage)]
    for part in also:
        if not any(part in name for name in names):
            raise InvalidArgument(f"--also is {part!r:.40}, but no layer has that in its name; a report lists them all")


def channel_axis(node: NodeProto, rank: int) -> int:
    """The axis of a layer's weight along which its output channels lie."""
    if node.op_type == "Conv":
        return 0
    transposed = node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if transposed else rank - 1


def smaller_stored(model: ModelProto, layers: Sequence[Layer]) -> Mapping[str, int]:
    """The weights that may be stored in eight bits, each with the axis of its channels; see `simplify.store_int8`."""
    front = {layer.weight for layer in layers if "front end" in layer.keep}
    sizes = {t.name: int(np.prod(t.dims)) for t in model.graph.initializer}
    return {one.weight: one.axis for one in layers if one.weight not in front and sizes[one.weight] >= SMALL}


def weight_of(model: ModelProto, name: str) -> NDArray[np.float32]:
    """An initialiser's values."""
    return next(
        numpy_helper.to_array(tensor).astype(np.float32) for tensor in model.graph.initializer if tensor.name == name
    )


def _name_nodes(model: ModelProto) -> None:
    """A name of its own for every node; those that have one keep it."""
    given = {node.name for node in model.graph.node}
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}"
            while node.name in given | taken:
                node.name += "_"
        taken.add(node.name)


def _halves(model: ModelProto, node: NodeProto, sides: list[str], makers: Mapping[str, NodeProto]) -> list[NodeProto]:
    """Two convolutions and their sum, named after the one they stand for; that one where its halves are not known."""
    weight = weight_of(model, node.input[1])
    first = _channels(model, sides[0], makers)
    grouped = any(attribute.name == "group" and attribute.i != 1 for attribute in node.attribute)
    if grouped or first is None or not 0 < first < weight.shape[1]:
        return [node]
    made = []
    for index, part in enumerate((weight[:, :first], weight[:, first:])):
        own = f"{node.name}_half_{index}"
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(part), f"{own}_weight"))
        half = NodeProto()
        half.CopyFrom(node)
        half.name = own
        half.input[:] = [sides[index], f"{own}_weight", *(node.input[2:] if index == 0 else ())]
        half.output[:] = [own]
        made.append(half)
    made.append(helper.make_node("Add", [one.output[0] for one in made], [node.output[0]], name=f"{node.name}_sum"))
    return made


def _channels(model: ModelProto, name: str, makers: Mapping[str, NodeProto]) -> int | None:
    """How many channels an activation has, as far as the weight of its maker, or of what that reads, tells."""
    while name in makers and makers[name].op_type in ("Add", "Relu", "Resize", "Mul", "Sigmoid"):
        name = makers[name].input[0]
    node = makers.get(name)
    return int(weight_of(model, node.input[1]).shape[0]) if node is not None and node.op_type == "Conv" else None


def _kept(node: NodeProto, shape: tuple[int, ...], also: Sequence[str]) -> str:
    for part, reason in KEPT:
        if part in node.name and not any(one in node.name for one in also):
            return reason
    return "too small to gain anything" if int(np.prod(shape)) < SMALL else ""


def _group(name: str, stage: str) -> str:
    """The block of a layer: the first part of its name that counts ("down_blocks.0"), else the last but one."""
    parts = [part for part in name.split("/") if part]
    counted = [part for part in parts if re.search(r"\.\d+$", part)]
    return counted[0] if counted else parts[-2] if len(parts) > 1 else stage
